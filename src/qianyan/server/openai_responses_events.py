"""A response as it grows: events in the protocol's order, and the same response whole.

One writer makes both, so a stream always ends in the response that would have come whole. Items
follow each other: thoughts, what is said, calls; each is added, grows and is done before the next
one. A finished response can be told once more as the events of larger pieces.
"""

import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qianyan.engine.request import Completion, TokenText
from qianyan.server.errors import Failure
from qianyan.server.openai_reply import TokenWords, cut_words
from qianyan.server.openai_responses_items import item_id
from qianyan.server.searching import AskedSearch
from qianyan.server.told import beside, inside

Event = dict[str, Any]
_CITATION = re.compile(r"\[(\d{1,4})\]", re.ASCII)


def new_response(model: str, echo: Mapping[str, Any], *, is_stored: bool) -> dict[str, Any]:
    """Begin a response to a request, of which it repeats what was set."""
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "store": is_stored,
        **echo,
    }


@dataclass
class _Growing:
    """An item that is not done yet; `text` is what has been said, thought or passed so far."""

    kind: str
    item: dict[str, Any]
    at: int
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)


class ResponseWriter:
    """Writes one response: `begin`, a `push` for every token, and `finish` or `fail`.

    `response` is the whole so far. `words` is None where no probabilities were asked for, `search`
    where no search was; with `summarizes` thoughts stand in the summary of their item, else in its
    content.
    """

    def __init__(
        self,
        response: dict[str, Any],
        *,
        words: TokenWords | None = None,
        summarizes: bool = False,
        search: AskedSearch | None = None,
    ) -> None:
        self.response = response
        self._words = words
        self._summarizes = summarizes
        self._search = search
        self._sources: list[dict[str, Any]] = []
        self._num_errors = self._num_queries = 0
        self._growing: _Growing | None = None
        self._num_calls = 0
        self._logprobs: list[dict[str, Any]] = []
        self._num_events = 0

    def begin(self) -> Iterator[Event]:
        """Say that there is a response now."""
        yield self._event("created", response=self._snapshot())
        yield self._event("in_progress", response=self._snapshot())
        yield from self._tell_search()

    def push(self, token: TokenText) -> Iterator[Event]:
        """Write what one more token shows."""
        yield from self._tell_search()
        if token.is_reasoning:
            if token.text:
                yield from self._grow("reasoning", token.text)
        else:
            if self._words is not None:
                self._logprobs += self._words.entries([token])
            if token.text:
                yield from self._grow("message", token.text)
        for piece in token.calls:
            if piece.name is not None:
                yield from self._close("completed")
                yield from self._open_call(piece.name, piece.index)
            if piece.arguments:
                yield from self._add(piece.arguments)

    def finish(self, completion: Completion) -> Iterator[Event]:
        """Close the response: completed, or incomplete where its length has cut it."""
        yield from self._tell_search()
        is_cut = completion.finish_reason == "length"
        if not (self.response["output"] or self._growing):
            yield from self._grow("message", "")
        is_whole = not is_cut or (
            self._num_calls > 0 and self._num_calls == len(completion.tool_calls)
        )
        yield from self._close("completed" if is_whole else "incomplete")
        self.response["status"] = "incomplete" if is_cut else "completed"
        self.response |= beside(completion) | inside(completion)
        if is_cut:
            why = {"reason": "max_output_tokens", **cut_words(completion)}
            self.response["incomplete_details"] = why
        else:
            self.response["completed_at"] = int(time.time())
        self.response["usage"] = to_usage(completion)

    def fail(self, failure: Failure) -> Iterator[Event]:
        """Close the response with what went wrong."""
        yield from self._close("incomplete")
        self.response["status"] = "failed"
        code = "server_error" if failure.status >= 500 else failure.code
        self.response["error"] = {"code": code, "message": failure.message}

    def end(self) -> Event:
        """Say how the response has ended."""
        return self._event(self.response["status"], response=self._snapshot())

    def replay(self, output: Sequence[dict[str, Any]]) -> Iterator[Event]:
        """Tell items that are done once more; the response's own state is left as it is."""
        for done in output:
            kind = done["type"]
            if kind == "web_search_call":
                yield from self._tell_call(done)
                continue
            if kind == "function_call":
                yield from self._open(kind, {**done, "status": "in_progress", "arguments": ""})
                yield from self._add(done["arguments"])
            else:
                self._summarizes = bool(done.get("summary"))
                parts = done["summary" if self._summarizes else "content"]
                self._logprobs = list(parts[0].get("logprobs", ()))
                yield from self._grow(kind, parts[0]["text"], name=done["id"])
                if self._growing is not None:
                    self._growing.annotations = parts[0].get("annotations", [])
            yield from self._close(done["status"])

    def _tell_search(self) -> Iterator[Event]:
        """Write an item for what was searched since the last look."""
        info = None if self._search is None else self._search.fresh_info()
        if info is None or self._search is None:
            return
        yield from self._close("completed")
        found, errors = info["search_results"], info.get("errors", ())
        fresh, queries = found[len(self._sources) :], self._search.queries[self._num_queries :]
        sources = [{"type": "url", "url": one["url"]} for one in fresh]
        has_failed = len(errors) > self._num_errors and not fresh
        self._sources, self._num_errors = found, len(errors)
        self._num_queries += len(queries)
        action = {"type": "search", "query": "; ".join(queries), "queries": list(queries)}
        yield from self._tell_call(
            {
                "id": self._new_id("web_search_call"),
                "type": "web_search_call",
                "status": "failed" if has_failed else "completed",
                "action": {**action, "sources": sources},
            }
        )

    def _tell_call(self, call: dict[str, Any]) -> Iterator[Event]:
        at = len(self.response["output"])
        named = {"output_index": at, "item_id": call["id"]}
        begun = {**call, "status": "in_progress"}
        yield self._event("output_item.added", output_index=at, item=begun)
        for step in ("in_progress", "searching", "completed"):
            yield self._event(f"web_search_call.{step}", **named)
        self.response["output"].append(call)
        yield self._event("output_item.done", output_index=at, item=call)

    def _grow(self, kind: str, text: str, *, name: str | None = None) -> Iterator[Event]:
        """Add text to the item of a kind, which is begun when another one stands there."""
        if self._growing is None or self._growing.kind != kind:
            yield from self._close("completed")
            named = name or self._new_id(kind)
            yield from self._open(kind, {"id": named, **_EMPTY[kind], "status": "in_progress"})
        if text or self._logprobs:
            yield from self._add(text)

    def _open_call(self, name: str, at: int) -> Iterator[Event]:
        self._logprobs.clear()
        self._num_calls = at + 1
        call = {"id": self._new_id("function_call"), "type": "function_call"}
        call_id = f"call_{uuid.uuid4().hex}"
        named = {"call_id": call_id, "name": name, "arguments": "", "status": "in_progress"}
        yield from self._open("function_call", {**call, **named})

    def _open(self, kind: str, item: dict[str, Any]) -> Iterator[Event]:
        self._growing = growing = _Growing(kind, item, len(self.response["output"]))
        yield self._event("output_item.added", output_index=growing.at, item=dict(item))
        if kind != "function_call":
            part = self._part(growing)
            yield self._on_item(growing, f"{self._holder(kind)}.added", part=part)

    def _add(self, text: str) -> Iterator[Event]:
        growing = self._growing
        if growing is None:
            return
        growing.text.append(text)
        more = {}
        if growing.kind == "message":
            more = {"logprobs": self._logprobs}
            growing.logprobs += self._logprobs
            self._logprobs = []
        yield self._on_item(growing, f"{self._stream(growing.kind)}.delta", delta=text, **more)

    def _close(self, status: str) -> Iterator[Event]:
        growing = self._growing
        if growing is None:
            return
        if growing.kind == "message" and self._logprobs:
            yield from self._add("")
        text, kind = "".join(growing.text), growing.kind
        growing.item["status"] = status
        stream = self._stream(kind)
        if kind == "function_call":
            growing.item["arguments"] = text
            name = growing.item["name"]
            yield self._on_item(growing, f"{stream}.done", arguments=text, name=name)
        else:
            if kind == "message":
                yield from self._annotate(growing, text)
            part = self._part(growing)
            more = {"logprobs": growing.logprobs} if kind == "message" else {}
            yield self._on_item(growing, f"{stream}.done", text=text, **more)
            yield self._on_item(growing, f"{self._holder(kind)}.done", part=part)
            holder = "summary" if kind == "reasoning" and self._summarizes else "content"
            growing.item[holder] = [part]
        self._growing = None
        self.response["output"].append(growing.item)
        yield self._event("output_item.done", output_index=growing.at, item=growing.item)

    def _annotate(self, growing: _Growing, text: str) -> Iterator[Event]:
        """Tell where a text names the sources that were found, by their numbers."""
        sources = {one["index"]: one for one in self._sources}
        for found in _CITATION.finditer(text):
            source = sources.get(int(found[1]))
            if source is not None:
                span = {"start_index": found.start(), "end_index": found.end()}
                named = {"url": source["url"], "title": source["title"]}
                growing.annotations.append({"type": "url_citation", **span, **named})
        for at, annotation in enumerate(growing.annotations):
            words = {"annotation_index": at, "annotation": annotation}
            yield self._on_item(growing, "output_text.annotation.added", **words)

    def _part(self, growing: _Growing) -> dict[str, Any]:
        text = "".join(growing.text)
        if growing.kind == "message":
            logprobs = {"logprobs": list(growing.logprobs)}
            annotations = list(growing.annotations)
            return {"type": "output_text", "text": text, "annotations": annotations, **logprobs}
        return {"type": "summary_text" if self._summarizes else "reasoning_text", "text": text}

    def _holder(self, kind: str) -> str:
        is_summary = kind == "reasoning" and self._summarizes
        return "reasoning_summary_part" if is_summary else "content_part"

    def _stream(self, kind: str) -> str:
        if kind == "reasoning":
            return "reasoning_summary_text" if self._summarizes else "reasoning_text"
        return "output_text" if kind == "message" else "function_call_arguments"

    def _on_item(self, growing: _Growing, what: str, **words: Any) -> Event:
        """Write an event about an item, and about its only part where it has parts."""
        part = {}
        if growing.kind != "function_call":
            is_summary = growing.kind == "reasoning" and self._summarizes
            part = {"summary_index" if is_summary else "content_index": 0}
        named = {"item_id": growing.item["id"], "output_index": growing.at}
        return self._event(what, **named, **part, **words)

    def _event(self, what: str, **words: Any) -> Event:
        event = {"type": f"response.{what}", "sequence_number": self._num_events, **words}
        self._num_events += 1
        return event

    def _new_id(self, kind: str) -> str:
        return item_id(kind, self.response["id"], "o", len(self.response["output"]))

    def _snapshot(self) -> dict[str, Any]:
        return {**self.response, "output": list(self.response["output"])}


_EMPTY: dict[str, dict[str, Any]] = {
    "message": {"type": "message", "role": "assistant", "content": []},
    "reasoning": {"type": "reasoning", "summary": [], "content": []},
}


def replay(response: dict[str, Any], *, starting_after: int | None) -> Iterator[Event]:
    """Tell a response that is over as the events of a stream, those after a number only."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    begun |= {"completed_at": None, "incomplete_details": None, "error": None}
    writer = ResponseWriter(begun)
    events = [*writer.begin(), *writer.replay(response["output"])]
    writer.response = response
    for event in (*events, writer.end()):
        if starting_after is None or event["sequence_number"] > starting_after:
            yield event


def to_usage(completion: Completion) -> dict[str, Any]:
    """Count the tokens of a response."""
    usage = completion.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
