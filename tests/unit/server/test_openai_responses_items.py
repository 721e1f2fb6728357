"""Items are checked with the place that is wrong, and become the messages that chat would send."""

from typing import Any

import pytest

from qianyan.server.errors import RefusedError
from qianyan.server.openai_responses_items import Conversation, read_items

RESPONSE = "resp_" + "0" * 32
URL = "https://example.com/a.png"


def messages_of(sent: Any) -> list[dict[str, Any]]:
    conversation = Conversation()
    for at, item in enumerate(read_items(sent, RESPONSE)):
        conversation.add(item, f"input[{at}]")
    assert len(conversation.places) == len(conversation.messages)
    return conversation.messages


def said(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def test_a_text_is_a_users_message() -> None:
    (item,) = read_items("hi", RESPONSE)
    assert item == {
        "id": f"msg_{'0' * 32}i0",
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "hi"}],
    }
    assert messages_of("hi") == [said("hi")]


def test_roles_and_plain_contents_stay() -> None:
    sent = [said("be brief", "developer"), said("hi"), said("hello", "assistant"), said("why")]
    assert messages_of(sent) == sent
    assert read_items(sent, RESPONSE)[2]["content"] == [
        {"type": "output_text", "text": "hello", "annotations": []}
    ]


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages_of([{"role": "user", "content": parts}]) == [said("ab")]


def test_pictures_videos_and_documents_are_chats_parts() -> None:
    parts = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": URL, "detail": "high", "max_pixels": 5},
        {"type": "input_video", "video_url": URL, "fps": 1},
        {"type": "input_file", "file_data": "data:,x", "filename": "x.txt"},
        {"type": "input_file", "file_url": URL},
        {"type": "input_file", "file_id": "file-1"},
    ]  # fmt: skip
    (message,) = messages_of([{"type": "message", "role": "user", "content": parts}])
    assert message["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": URL, "detail": "high"}, "max_pixels": 5},
        {"type": "video_url", "video_url": {"url": URL}, "fps": 1},
        {"type": "file", "file": {"filename": "x.txt", "file_data": "data:,x"}},
        {"type": "file", "file": {"file_data": URL}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
GIVEN = {"type": "function_call_output", "call_id": "c1", "output": "5"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_what_one_answer_was_made_of_is_one_message() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    other = {**CALL, "call_id": "c2"}
    sent = [said("x"), thought, said("so", "assistant"), CALL, other, GIVEN]
    assert messages_of(sent) == [
        said("x"),
        {
            "role": "assistant",
            "content": "so",
            "reasoning_content": "hm",
            "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
    ]


def test_a_call_that_was_cut_is_left_out() -> None:
    cut = {**CALL, "arguments": '{"a', "status": "incomplete"}
    assert messages_of([said("so", "assistant"), cut]) == [said("so", "assistant")]


def test_two_answers_after_each_other_stay_two() -> None:
    sent = [said("a", "assistant"), said("b", "assistant"), CALL, said("c", "assistant")]
    first, second, third = messages_of(sent)
    assert first == said("a", "assistant")
    assert second == {**said("b", "assistant"), "tool_calls": [CHAT_CALL]}
    assert third == said("c", "assistant")


def test_thoughts_are_their_text_before_their_summary() -> None:
    both = {
        "type": "reasoning",
        "content": [{"type": "reasoning_text", "text": "long"}],
        "summary": [{"type": "summary_text", "text": "short"}],
    }
    assert messages_of([both]) == [{**said("", "assistant"), "reasoning_content": "long"}]
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": "xyz"}
    assert messages_of([sealed, said("x")]) == [said("x")]


def test_the_oldest_turns_are_left_out_and_places_stay_right() -> None:
    sent = [said("rules", "system"), said("a"), said("A", "assistant"), said("b"), CALL, said("c")]
    conversation = Conversation()
    for at, item in enumerate(read_items(sent, RESPONSE)):
        conversation.add(item, f"input[{at}]")
    assert conversation.num_turns == 3
    kept = conversation.without_oldest(1)
    assert [message["content"] for message in kept.messages] == ["rules", "b", "", "c"]
    assert kept.places == ["input[0]", "input[3]", "input[4]", "input[5]"]
    assert conversation.without_oldest(0) == conversation


def test_what_a_call_gave_may_be_a_picture() -> None:
    output = [{"type": "input_image", "image_url": URL}]
    (message,) = messages_of([{**GIVEN, "output": output}])
    assert message["content"] == [{"type": "image_url", "image_url": {"url": URL}}]


def test_what_comes_back_of_a_response_is_taken_as_it_was() -> None:
    sent = {
        "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "x", "annotations": [], "logprobs": []}],
    }  # fmt: skip
    (item,) = read_items([sent], RESPONSE)
    assert item["id"] == "msg_1"
    assert messages_of([sent]) == [said("x", "assistant")]


@pytest.mark.parametrize(
    ("sent", "place"),
    [
        ([5], "input[0]"),
        ([said("x"), {"type": "magic"}], "input[1].type"),
        ([{"type": ["message"]}], "input[0].type"),
        ([said("x", "robot")], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": [5]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{"role": "user", "content": "x", "id": 5}], "input[0].id"),
        (5, "input"),
        ([{"type": "function_call", "call_id": "c"}], "input[0].name"),
        ([{**CALL, "arguments": "{"}], "input[0].arguments"),
        ([{"type": "function_call_output", "call_id": "c"}], "input[0].output"),
        ([{"type": "function_call_output", "output": "x"}], "input[0].call_id"),
        ([{"type": "reasoning", "summary": "x"}], "input[0].summary"),
        ([{"type": "reasoning", "summary": [{"text": "x"}]}], "input[0].summary[0].type"),
        ([{"type": "item_reference"}], "input[0].id"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(sent: Any, place: str) -> None:
    with pytest.raises(RefusedError) as refused:
        messages_of(sent)
    assert refused.value.param == place
    assert str(refused.value).startswith(f"{place} is ")
    assert (refused.value.status, refused.value.code) == (400, "invalid_value")


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"type": "input_image"}, "image_url"),
        ({"type": "input_image", "image_url": {"url": URL}}, "image_url"),
        ({"type": "input_file", "filename": "x"}, "file_data"),
        ({"type": "input_video"}, "video_url"),
    ],
)
def test_a_part_without_its_source_is_named(part: dict[str, Any], place: str) -> None:
    parts = [{"type": "input_text", "text": "x"}, part]
    with pytest.raises(RefusedError) as refused:
        messages_of([{"role": "user", "content": parts}])
    assert refused.value.param == f"input[0].content[1].{place}"
