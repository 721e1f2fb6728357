"""A conversation's items: put in, taken out, cut, forgotten, and read by the model."""

from dataclasses import replace
from typing import Any

import pytest

from qianyan.inputs.media import MediaLimits
from qianyan.server.errors import RefusedError
from qianyan.server.realtime.items import Conversation, Item, Part, read_item
from qianyan.server.settings import RealtimeLimits

LIMITS = RealtimeLimits()


def heard(seconds: float = 1.0, kind: str = "audio") -> Item:
    what: Any = {"url": "data:,1"} if kind == "image_url" else ["frame"]
    told = {"type": kind, kind: what}
    return Item(role="user", parts=[Part(kind="audio", told=told, seconds=seconds)])


def said(text: str, seconds: float = 1.0) -> Item:
    return Item(role="assistant", parts=[Part(kind="audio", text=text, seconds=seconds)])


def conversation(*items: Item, limits: RealtimeLimits = LIMITS, **media: Any) -> Conversation:
    made = Conversation(limits, replace(MediaLimits(), **media))
    for item in items:
        made.add(item)
    return made


def read(**data: Any) -> Item:
    def make_sound(data: str) -> Part:
        return Part(kind="audio", told={"type": "audio", "audio": data}, seconds=1.0)

    return read_item({"type": "message", **data}, LIMITS, make_sound)


def test_items_stand_where_they_are_put() -> None:
    first, last, between, before = heard(), heard(), heard(), heard()
    made = conversation(first, last)
    assert made.add(between, first.item_id) == first.item_id
    assert made.add(before, "root") is None
    assert made.items == [before, first, between, last]
    with pytest.raises(RefusedError, match="that of another item"):
        made.add(first)
    with pytest.raises(RefusedError, match="no item with this id"):
        made.add(heard(), "unknown")
    made.delete(first.item_id)
    assert made.items == [before, between, last]


def test_the_model_reads_sounds_of_the_user_and_texts_of_its_own() -> None:
    made = conversation(heard(), said("Hello"), said(""), heard())
    roles = [message["role"] for message in made.messages("Be brief.")]
    assert roles == ["system", "user", "assistant", "user"]
    assert made.messages("")[1] == {"role": "assistant", "content": "Hello"}
    assert made.messages("", [said("Alone")]) == [{"role": "assistant", "content": "Alone"}]


def test_of_an_answer_stays_what_was_heard() -> None:
    answer = said("0123456789", seconds=2.0)
    made = conversation(heard(), answer)
    made.truncate(answer.item_id, 0, 500)
    assert answer.parts[0].text == "012"[:2]
    assert answer.parts[0].seconds == 0.5
    for place, words in (
        ((answer.item_id, 0, 501), "beyond the 500 ms"),
        ((answer.item_id, 1, 0), "content_index"),
        ((made.items[0].item_id, 0, 0), "not that of an answer"),
    ):
        with pytest.raises(RefusedError, match=words):
            made.truncate(*place)
    made.truncate(answer.item_id, 0, 0)
    assert made.messages("") == [{"role": "user", "content": [heard().parts[0].told]}]


@pytest.mark.parametrize(
    ("limits", "media", "kind", "num_left"),
    [
        ({"max_items": 3}, {}, "audio", 3),
        ({"max_heard_s": 2.5}, {}, "audio", 2),
        ({}, {"max_audios": 4}, "audio", 4),
        ({}, {"max_videos": 1}, "video", 1),
        ({}, {"max_images": 2}, "image_url", 2),
        ({"max_seen_frames": 3}, {}, "video", 3),
        ({"max_picture_bytes": 14}, {}, "image_url", 2),
        ({"max_heard_s": 0.5}, {}, "audio", 1),
    ],
)
def test_the_oldest_go_beyond_each_limit(
    limits: dict[str, Any], media: dict[str, Any], kind: str, num_left: int
) -> None:
    items = [heard(kind=kind) for _ in range(6)]
    made = conversation(*items, limits=replace(LIMITS, **limits), **media)
    assert made.forget() == [item.item_id for item in items[: 6 - num_left]]
    assert made.items == items[6 - num_left :]
    assert made.forget() == []


def test_a_quarter_goes_where_the_model_has_no_room_but_never_the_last_turn() -> None:
    turns = [item for _ in range(6) for item in (heard(), said("Yes"))]
    last = heard()
    made = conversation(*turns, last)
    assert len(made.forget_oldest()) == 3
    while made.forget_oldest():
        pass
    assert made.items == [last]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"type": "function_call"}, "no message"),
        ({"role": "tool"}, "item.role"),
        ({"role": "user"}, "item.content"),
        ({"role": "user", "content": []}, "item.content"),
        ({"role": "user", "content": ["text"]}, r"item.content\[0\].type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "has no text"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "has no audio"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "/x"}]}, "data: URI"),
        ({"role": "assistant", "content": [{"type": "input_audio", "audio": ""}]}, "a text"),
        ({"role": "user", "content": [{"type": "input_text", "text": "x" * 100_001}]}, "100000"),
        ({"role": "user", "id": "x" * 65, "content": [{"type": "text", "text": "x"}]}, "item.id"),
    ],
)
def test_items_that_are_none_are_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        read(**data)


def test_items_of_every_kind_are_read() -> None:
    content = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_audio", "audio": "AAAA"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    ]
    item = read(role="user", id="mine", content=content)
    assert item.item_id == "mine"
    message = item.to_message()
    assert message is not None
    assert [part["type"] for part in message["content"]] == ["text", "audio", "image_url"]
    spoken = read(role="assistant", content=[{"type": "output_audio", "transcript": "Yes"}])
    assert spoken.to_message() == {"role": "assistant", "content": "Yes"}
    rule = read(role="system", content=[{"type": "input_text", "text": "Be brief."}])
    assert rule.to_message() == {"role": "system", "content": "Be brief."}
