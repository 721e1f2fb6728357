"""Web search around an answer: the model asks for it, or it is done first; sources are numbered.

`SearchTurns` knows no engine: it says what to ask next and takes what was answered. What pages say
is data: it stands between marks, its control words are broken up, and the model is told that it
gives no orders. Result pages themselves are not opened.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from qianyan.engine.options import ChatOptions
from qianyan.engine.reply import ToolCall
from qianyan.engine.request import Completion, TokenText, Usage
from qianyan.errors import EndpointError, InputError
from qianyan.inputs.chat import ChatTemplate
from qianyan.inputs.strangers import USUAL_CONTROL_WORDS, break_up
from qianyan.server.search_options import SearchOptions
from qianyan.server.search_providers import SearchProvider
from qianyan.server.search_results import Found, SearchLimits, SearchQuery, SearchResult, Sources
from qianyan.server.search_words import (
    CITE_WORDS,
    DATA_WORDS,
    FAILED_WORDS,
    MISUSED_WORDS,
    NOTHING_WORDS,
    TOO_MANY_WORDS,
    TOOL_NAME,
    search_tool,
)

logger = logging.getLogger(__name__)

TURN_GAP = "\n\n"
OPEN_MARK, CLOSE_MARK = "<search_results>", "</search_results>"
_CHINESE = re.compile("[\u4e00-\u9fff]")
_CHOICES = ("tool_choice", "parallel_tool_calls")


@dataclass(frozen=True, kw_only=True)
class Asker:
    """What there is to know of who is asked.

    `can_call` says that the model is shown functions (`shows_tools`); one that is not gets its
    results beforehand. `control_words` are its tokenizer's.
    """

    can_call: bool = True
    control_words: tuple[str, ...] = USUAL_CONTROL_WORDS


def shows_tools(template: ChatTemplate) -> bool:
    """Tell whether a model is shown functions: by its template, or in words beside it.

    The first generation's is not.
    """
    if not template.takes_tools:
        return True
    try:
        shown = template.render([{"role": "user", "content": "?"}], tools=[search_tool("en")])
    except InputError:
        return False
    return TOOL_NAME in shown


class SearchTurns:
    """One conversation with web search: `messages` and `tools` are what to ask next.

    Call `begin`, ask, and give each answer to `take`; while that is true, ask again with what
    `messages` and `tools` then are. `finish` makes the answer of the last one.
    """

    def __init__(
        self,
        messages: Sequence[Mapping[str, Any]],
        provider: SearchProvider,
        options: SearchOptions,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        asker: Asker | None = None,
        limits: SearchLimits | None = None,
    ) -> None:
        """Start; nothing is searched yet.

        Raises InputError when the caller has a function of the same name as ours, when there is no
        question in text, or when the answer has begun and would be searched for in the middle.
        """
        if any((tool.get("function") or {}).get("name") == TOOL_NAME for tool in tools):
            raise InputError(
                f"tools has a function called {TOOL_NAME}, which is what enable_search adds. "
                "Rename it, or leave enable_search out."
            )
        self.messages: list[dict[str, Any]] = [dict(message) for message in messages]
        self.errors: list[str] = []
        self.queries: list[str] = []
        self._provider = provider
        self._options = options
        self._own_tools = [dict(tool) for tool in tools]
        self._asker = asker or Asker()
        self._limits = limits or SearchLimits()
        self._question = _question(messages)
        if messages[-1].get("partial") and not self.searches_first:
            raise InputError(
                "The last message is partial, and the model cannot ask for a search within its "
                "answer; expected forced_search true in search_options, or no partial message."
            )
        self._lang = "zh" if _CHINESE.search(self._question) else "en"
        self._sources = Sources(self._limits)
        self._answers: list[str] = []
        self._rounds_left = options.strategy.max_rounds
        self.usages: list[Usage] = []
        self.prompt_token_ids: list[int] = []
        self._said: list[str] = []
        self._thought: list[str] = []
        self._gaps: set[bool] = set()

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The functions to show with the next question; None for none."""
        own = list(self._own_tools)
        if self.searches_first or self._rounds_left <= 0:
            return own or None
        return [*own, search_tool(self._lang, self._options.prompt_intervene)]

    def options(self, options: ChatOptions) -> ChatOptions:
        """Give the caller's options with the functions to show; without any, none is chosen.

        What earlier turns have said counts against `max_completion_tokens`; a turn has one at
        least.
        """
        tools = self.tools
        names = (*_CHOICES, "tools") if tools is None else ("tools",)
        kept: dict[str, Any] = {k: value for k, value in options.items() if k not in names}
        most = kept.get("max_completion_tokens")
        if self.usages and isinstance(most, int):
            spent = sum(usage.completion_tokens for usage in self.usages)
            kept["max_completion_tokens"] = max(1, most - spent)
        if tools is not None and kept.get("tool_choice") == "none":
            # It speaks of the caller's functions; searching was asked for all the same.
            tools = tools[len(self._own_tools) :]
            kept.pop("tool_choice")
        return cast("ChatOptions", kept if tools is None else {**kept, "tools": tools})

    @property
    def search_info(self) -> dict[str, Any] | None:
        """What Bailian calls search_info; None as long as nothing was searched.

        `errors` is there only when a search failed.
        """
        if not self.queries:
            return None
        tool = f"{self._provider.name} answer"
        info: dict[str, Any] = {
            "search_results": self._sources.to_json(),
            "extra_tool_info": [{"result": text, "tool": tool} for text in self._answers],
        }
        return {**info, "errors": list(self.errors)} if self.errors else info

    @property
    def plugins(self) -> dict[str, Any]:
        """The entry of usage.plugins; its count tells whether anything was searched at all."""
        spent = {"count": len(self.queries), "strategy": self._options.search_strategy}
        return {"search": spent}

    def begin(self) -> None:
        """Search for the question itself, where that was asked for or the model cannot ask.

        Raises EndpointError when the provider fails: a search that was forced did not happen.
        """
        if not self.searches_first:
            return
        found = self._search(self._question)
        text = self._told(found)
        at = max(i for i, message in enumerate(self.messages) if message.get("role") == "user")
        content = self.messages[at]["content"]
        if isinstance(content, str):
            content = f"{text}\n\n{content}"
        else:
            content = [{"type": "text", "text": f"{text}\n\n"}, *content]
        self.messages[at] = {**self.messages[at], "content": content}

    def take(self, completion: Completion) -> bool:
        """Take an answer; run the searches it asks for and say whether to ask again.

        Calls of the caller's own functions beside a search wait: the model makes them anew once
        it knows what was found.
        """
        self.usages.append(completion.usage)
        self.prompt_token_ids += completion.prompt_token_ids
        self._said.append(completion.text)
        self._thought.append(completion.reasoning or "")
        kinds = {True: self._thought, False: self._said}
        self._gaps = {is_reasoning for is_reasoning, texts in kinds.items() if any(texts)}
        if not self.asks(completion):
            return False
        calls = [call for call in completion.tool_calls if call.name == TOOL_NAME]
        self._rounds_left -= 1
        number = len(self.messages)
        named = [(f"call_{number}_{place}", call) for place, call in enumerate(calls)]
        self.messages.append(_call_message(completion.text, named))
        for place, (call_id, call) in enumerate(named):
            content = self._run(call) if place < self._limits.max_calls else TOO_MANY_WORDS
            said = content if isinstance(content, str) else content[self._lang]
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": said})
        return True

    def asks(self, completion: Completion) -> bool:
        """Whether an answer asks for searches that will be run."""
        is_asked = any(call.name == TOOL_NAME for call in completion.tool_calls)
        return is_asked and self._rounds_left > 0

    def join(self, token: TokenText) -> TokenText:
        """Set off the first text of a turn from what earlier turns said, as `finish` does."""
        if not token.text or token.is_reasoning not in self._gaps:
            return token
        self._gaps.discard(token.is_reasoning)
        return replace(token, text=TURN_GAP + token.text)

    def finish(self, completion: Completion) -> Completion:
        """Make the last answer that of all turns, without our own calls.

        Texts, reasonings and prompts stand one after the other, and the counts are added up.
        """
        own = tuple(call for call in completion.tool_calls if call.name != TOOL_NAME)
        has_thought = completion.reasoning is not None or any(self._thought)
        return replace(
            completion,
            text=TURN_GAP.join(filter(None, self._said)),
            reasoning=TURN_GAP.join(filter(None, self._thought)) if has_thought else None,
            prompt_token_ids=self.prompt_token_ids,
            tool_calls=own,
            usage=_sum(self.usages),
        )

    @property
    def searches_first(self) -> bool:
        """Whether `begin` searches."""
        return self._options.forced_search or not self._asker.can_call

    def _run(self, call: ToolCall) -> str:
        """Run one call of the model and write what it is told."""
        query = _query(call)
        if query is None:
            return MISUSED_WORDS[self._lang]
        try:
            return self._told(self._search(query))
        except EndpointError as error:
            self.errors.append(str(error))
            return FAILED_WORDS[self._lang]

    def _search(self, text: str) -> Found:
        strategy = self._options.strategy
        scope = self._options.prompt_intervene if self.searches_first else ""
        self.queries.append(text)
        query = SearchQuery(
            text=f"{text} {scope}".strip()[: self._limits.max_query_chars],
            num_results=strategy.num_results,
            is_deep=strategy.is_deep,
            wants_answers=self._options.enable_search_extension,
            since_days=self._options.freshness,
            sites=self._options.assigned_site_list,
        )
        try:
            return self._provider.search(query)
        except EndpointError as error:
            logger.warning("a search failed: %s", error)
            raise

    def _told(self, found: Found) -> str:
        """Write what was found for the model, and keep it for the caller."""
        results = self._sources.add(found.results)
        self._answers += found.answers
        if not results and not found.answers:
            return NOTHING_WORDS[self._lang]
        blocks = [*found.answers, *(self._block(result) for result in results)]
        words = (*self._asker.control_words, *USUAL_CONTROL_WORDS, OPEN_MARK, CLOSE_MARK)
        text, _ = break_up("\n\n".join(blocks), dict.fromkeys(words))
        lines = [OPEN_MARK, text, CLOSE_MARK, DATA_WORDS[self._lang]]
        if self._options.enable_citation and results:
            first = self._options.cite(results[0].index)
            lines.append(CITE_WORDS[self._lang].format(first=first))
        return "\n".join(lines)

    def _block(self, result: SearchResult) -> str:
        head = f"{self._options.cite(result.index)} {result.title}"
        return "\n".join(filter(None, (head, result.url, result.time, result.snippet)))


def _question(messages: Sequence[Mapping[str, Any]]) -> str:
    """Find the text of the last user's message."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list | tuple) else [{"text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
            question = " ".join(" ".join(text.split()) for text in texts if isinstance(text, str))
            if question:
                return question
            break
    raise InputError(
        "enable_search has nothing to search for: the last user message holds no text. Add a "
        "question, or leave enable_search out."
    )


def _query(call: ToolCall) -> str | None:
    """Read the query out of a call's arguments; None where there is none."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return None
    query = arguments.get("query") if isinstance(arguments, dict) else None
    return " ".join(query.split()) or None if isinstance(query, str) else None


def _call_message(text: str, named: Sequence[tuple[str, ToolCall]]) -> dict[str, Any]:
    """Write the assistant's turn that asked for searches, arguments that are no JSON as {}."""
    calls = []
    for call_id, call in named:
        arguments = call.arguments if _query(call) else "{}"
        function = {"name": TOOL_NAME, "arguments": arguments}
        calls.append({"id": call_id, "type": "function", "function": function})
    return {"role": "assistant", "content": text, "tool_calls": calls}


def _sum(usages: Sequence[Usage]) -> Usage:
    """Add up the counts of several answers."""
    names = [item.name for item in dataclasses.fields(Usage)]
    return Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in names})
