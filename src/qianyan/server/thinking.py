"""How long a model may think: the words of clients, made into the engine's budget.

Bailian's clients give `enable_thinking` and `thinking_budget`, OpenAI's a `reasoning_effort`; a
request gives one or the other. Without any of them a model that thinks has the server's budget, so
that it does not think to the end of its room.
"""

from dataclasses import dataclass, fields

from qianyan.engine.options import ChatOptions
from qianyan.errors import quote
from qianyan.inputs.chat import ChatTemplate
from qianyan.server.errors import RefusedError


@dataclass(frozen=True, kw_only=True)
class EffortBudgets:
    """What each reasoning_effort means, in tokens of reasoning.

    Args:
        none: no thinking.
        minimal: a few thoughts.
        low: Bailian's.
        medium: Bailian's.
        high: between its neighbours.
        xhigh: Bailian's.
    """

    none: int = 0
    minimal: int = 1_024
    low: int = 4_096
    medium: int = 16_384
    high: int = 65_536
    xhigh: int = 262_144

    def of(self, effort: str) -> int:
        """Give the budget of an effort; raises RefusedError for an unknown one."""
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        if effort not in known:
            raise _refused(
                f"reasoning_effort is {quote(effort)}; expected one of {', '.join(known)}.",
                "reasoning_effort",
            )
        budget: int = known[effort]
        return budget


def settle_thinking(
    options: ChatOptions, effort: str | None, template: ChatTemplate, *, default_budget: int
) -> ChatOptions:
    """Give the options with the budget that they come to.

    Args:
        options: of one answer, as they were sent.
        effort: the request's reasoning_effort.
        template: the model's, which tells whether it thinks.
        default_budget: of a request that says nothing; half of its max_completion_tokens at most.

    Raises:
        RefusedError: what is asked for contradicts itself, or the model does not think.
    """
    wants = options.get("enable_thinking")
    thinks = template.is_thinking or template.takes_thinking
    if effort is not None:
        options = {**options, **_of_effort(effort, options)}
        wants = options.get("enable_thinking")
    if not thinks:
        if wants:
            name = "enable_thinking" if effort is None else "reasoning_effort"
            raise _refused(
                f"{name} asks for thinking, and this model does not think; leave it out.", name
            )
        return _without_thinking(options)
    if wants is False and not template.takes_thinking:  # told by its budget, if not by its prompt
        return {**_without_thinking(options), "thinking_budget": 0}
    if options.get("thinking_budget") is None and wants is not False:
        most = options.get("max_completion_tokens")
        half = most // 2 if isinstance(most, int) else default_budget
        options = {**options, "thinking_budget": max(1, min(default_budget, half))}
    return options


def _of_effort(effort: str, options: ChatOptions) -> ChatOptions:
    """Put an effort into the engine's words; nothing else may speak of thinking beside it."""
    budget = EffortBudgets().of(effort)
    if options.get("thinking_budget") is not None:
        raise _refused(
            "Both reasoning_effort and thinking_budget are given; expected one of them.",
            "reasoning_effort",
        )
    if options.get("enable_thinking") not in (None, budget > 0):
        raise _refused(
            f"reasoning_effort is {effort}, and enable_thinking says otherwise; expected one of "
            "them.",
            "reasoning_effort",
        )
    return {"enable_thinking": budget > 0, "thinking_budget": budget}


def _without_thinking(options: ChatOptions) -> ChatOptions:
    kept = options.copy()
    kept.pop("enable_thinking", None)
    kept.pop("thinking_budget", None)
    return kept


def _refused(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
