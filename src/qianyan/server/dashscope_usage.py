"""Token counts in DashScope's words; they come with every packet of a stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from qianyan.engine.request import Completion, Request
from qianyan.server.prompt_count import PromptCount
from qianyan.server.searching import TurnsSoFar


@dataclass(frozen=True, kw_only=True)
class OutputCount:
    """Tokens that have come so far, reasoning included, and those of the prompt known before."""

    num_tokens: int
    num_reasoning_tokens: int
    num_cached_tokens: int

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> Self:
        """Count those of finished answers to one prompt."""
        return cls(
            num_tokens=sum(one.usage.completion_tokens for one in completions),
            num_reasoning_tokens=sum(one.usage.reasoning_tokens for one in completions),
            num_cached_tokens=completions[0].usage.cached_tokens,
        )

    @classmethod
    def total(cls, counts: Sequence[Self]) -> Self:
        """Add up those of several answers to one prompt."""
        return cls(
            num_tokens=sum(one.num_tokens for one in counts),
            num_reasoning_tokens=sum(one.num_reasoning_tokens for one in counts),
            num_cached_tokens=counts[0].num_cached_tokens,
        )

    @classmethod
    def so_far(cls, request: Request | TurnsSoFar, num_tokens: int) -> Self:
        """Count those of an answer of which `num_tokens` were read; the model may be ahead."""
        return cls(
            num_tokens=num_tokens,
            num_reasoning_tokens=min(num_tokens, request.num_reasoning_tokens),
            num_cached_tokens=min(request.num_cached_tokens, len(request.prompt_token_ids)),
        )


def to_usage(
    prompt: PromptCount,
    output: OutputCount,
    *,
    has_details: bool,
    plugins: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the counts; `has_details` tells apart what models that see are told apart for."""
    usage: dict[str, Any] = {
        "input_tokens": prompt.num_tokens,
        "output_tokens": output.num_tokens,
        "total_tokens": prompt.num_tokens + output.num_tokens,
        "prompt_tokens_details": {"cached_tokens": output.num_cached_tokens},
        **({"plugins": plugins} if plugins else {}),
    }
    thought = output.num_reasoning_tokens
    reasoning = {"reasoning_tokens": thought} if thought else {}
    if not has_details:
        return usage | ({"output_tokens_details": reasoning} if reasoning else {})
    details = prompt.details
    seen = {name: count for name, count in details.items() if name != "text_tokens"}
    return {
        **usage,
        **seen,
        "input_tokens_details": details,
        "output_tokens_details": {"text_tokens": output.num_tokens - thought, **reasoning},
    }
