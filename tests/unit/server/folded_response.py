"""A client's side of the Responses API: events in, the response they tell of out."""

import json
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]


def fold(events: Iterable[Event]) -> dict[str, Any]:
    """Put a response together from its events as a client would, checking their order."""
    folded = Folded()
    last: Event = {}
    for number, event in enumerate(json.loads(json.dumps(list(events)))):
        assert event["sequence_number"] == number
        kind = event["type"].removeprefix("response.")
        assert (kind == "created") == (number == 0)
        assert (kind == "in_progress") == (number == 1)
        folded.take(kind, event)
        last = event
    assert last["type"] == f"response.{last['response']['status']}"
    assert last["response"]["output"] == folded.output
    response: dict[str, Any] = last["response"]
    return response


class Folded:
    """The output so far, and the item that is growing."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._begin({})

    def _begin(self, item: dict[str, Any]) -> None:
        self._item = item
        self._text = ""
        self._parts: list[Any] = []
        self._notes: list[Any] = []
        self._steps: list[str] = []

    def take(self, kind: str, event: Event) -> None:
        """Take one event; those without an item are left to `fold`."""
        if "output_index" in event:
            assert event["output_index"] == len(self.output)
        if kind == "output_item.added":
            assert event["item"]["status"] == "in_progress"
            assert not self._item, "an item is done before the next one begins"
            self._begin(event["item"])
        elif kind == "output_item.done":
            self._finish(event["item"])
        elif "item_id" in event:
            assert event["item_id"] == self._item["id"]
            self._grow(kind, event)

    def _grow(self, kind: str, event: Event) -> None:
        if kind.endswith(".delta"):
            self._text += event["delta"]
        elif kind.startswith("web_search_call."):
            self._steps.append(kind.removeprefix("web_search_call."))
        elif kind == "output_text.annotation.added":
            assert event["annotation_index"] == len(self._notes)
            self._notes.append(event["annotation"])
        elif kind.endswith("part.done"):
            assert event["part"]["text"] == self._text
            assert event["part"].get("annotations", []) == self._notes
            self._parts.append(event["part"])
        elif kind.endswith(".done"):
            assert event.get("text", event.get("arguments")) == self._text

    def _finish(self, item: dict[str, Any]) -> None:
        assert item["id"] == self._item["id"]
        assert item["status"] != "in_progress"
        if item["type"] == "function_call":
            assert item["arguments"] == self._text
        elif item["type"] == "web_search_call":
            assert self._steps == ["in_progress", "searching", "completed"]
        else:
            assert (item.get("summary") or item["content"]) == self._parts
        self.output.append(item)
        self._begin({})
