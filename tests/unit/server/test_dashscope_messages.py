"""Content parts without types get OpenAI's; conversations in the older form become messages."""

from typing import Any

import pytest

from qianyan.errors import InputError
from qianyan.server.dashscope_messages import history_messages, to_openai_messages


def test_parts_get_the_type_that_their_key_says() -> None:
    content: list[dict[str, Any]] = [
        {"image": "https://a.example/1.png", "max_pixels": 1000},
        {"video": ["https://a.example/1.jpg", "https://a.example/2.jpg"], "fps": 2},
        {"file": "https://a.example/a.pdf"},
        {"text": "What is it?", "image": None},
    ]
    (message,) = to_openai_messages([{"role": "user", "content": content}])
    assert [part["type"] for part in message["content"]] == ["image", "video", "file", "text"]
    assert message["content"][0] == {"type": "image", **content[0]}
    assert message["content"][1]["fps"] == 2
    assert message["role"] == "user"


def test_parts_in_openai_s_form_and_plain_text_stay() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "https://a.example/1.png"}}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A roof.", "reasoning_content": "Tiles."},
    ]
    assert to_openai_messages(messages) == messages


def test_a_type_that_only_repeats_the_key_does_no_harm() -> None:
    part = {"type": "image", "image": "https://a.example/1.png"}
    assert to_openai_messages([{"role": "user", "content": [part]}])[0]["content"] == [part]


def test_an_answer_that_only_called_has_no_content() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": [], "tool_calls": [call]}
    assert to_openai_messages([message]) == [{**message, "content": None}]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"picture": "https://a.example/1.png"}, "holds nothing that is known here"),
        ({}, "holds nothing that is known here"),
        ({"text": "a", "image": "https://a.example/1.png"}, "holds both text and image"),
    ],
)
def test_a_part_that_says_nothing_or_two_things_is_refused(
    part: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=rf"messages\[0\].content\[1\] {words}"):
        to_openai_messages([{"role": "user", "content": [{"text": "a"}, part]}])


def test_turns_and_a_prompt_become_messages() -> None:
    history = [{"user": "Is it hot?", "bot": "Yes."}]
    assert history_messages(history, "Why?") == [
        {"role": "user", "content": "Is it hot?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    with pytest.raises(InputError, match=r"history\[0\] is no turn"):
        history_messages([{"user": "Is it hot?"}], "Why?")
