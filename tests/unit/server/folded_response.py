"""A client's side of the Responses API: events in, the response they tell of out."""

import json
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]


def fold(events: Iterable[Event]) -> dict[str, Any]:
    """Put a response together from its events as a client would, checking their order."""
    output: list[dict[str, Any]] = []
    grown: dict[str, Any] = {}
    last: Event = {}
    for number, event in enumerate(json.loads(json.dumps(list(events)))):
        assert event["sequence_number"] == number
        kind = event["type"].removeprefix("response.")
        assert (kind == "created") == (number == 0)
        assert (kind == "in_progress") == (number == 1)
        if kind == "output_item.added":
            assert event["output_index"] == len(output)
            assert event["item"]["status"] == "in_progress"
            assert not grown, "an item is done before the next one begins"
            grown = {**event["item"], "_parts": [], "_text": ""}
        elif kind == "output_item.done":
            item = event["item"]
            assert item["id"] == grown["id"]
            assert item["status"] != "in_progress"
            if item["type"] == "function_call":
                assert item["arguments"] == grown["_text"]
            else:
                assert (item.get("summary") or item["content"]) == grown["_parts"]
            output.append(item)
            grown = {}
        elif "item_id" in event:
            assert event["item_id"] == grown["id"]
            assert event["output_index"] == len(output)
            if kind.endswith(".delta"):
                grown["_text"] += event["delta"]
            elif kind.endswith("part.done"):
                assert event["part"]["text"] == grown["_text"]
                grown["_parts"].append(event["part"])
            elif kind.endswith(".done"):
                assert event.get("text", event.get("arguments")) == grown["_text"]
        last = event
    assert last["type"] == f"response.{last['response']['status']}"
    assert last["response"]["output"] == output
    response: dict[str, Any] = last["response"]
    return response
