"""What a conversation keeps, what its commands mean, and what it is saved as."""

import contextlib
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qianyan.cli.chat_words import WORDS
from qianyan.cli.conversation import (
    Answer,
    Attachment,
    Command,
    Conversation,
    Verb,
    read_command,
    save_text,
    write_conversation,
)
from qianyan.errors import InputError
from qianyan.inputs.chat import ChatTemplate

PICTURE = Image.new("RGB", (40, 30))
PHOTO = Attachment(kind="image", name="site.jpg", parts=({"type": "image", "image": PICTURE},))
PAPER = Attachment(kind="file", name="rules.pdf", parts=({"type": "text", "text": "Rule 1"},))
# As Qwen3's template has it: thinking of earlier turns is left out.
THINKING_TEMPLATE = ChatTemplate(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture
def talk() -> Conversation:
    """Two turns, the first about a picture."""
    conversation = Conversation(system="Be brief.", attached=[PHOTO, PAPER])
    conversation.settle("What burns?", Answer(text="A pallet.", reasoning="I see a flame."))
    conversation.settle("Since when?", Answer(text="Since", is_cut=True))
    return conversation


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("What burns?", "What burns?"),
        ("  spaced  ", "spaced"),
        ("/image a b.jpg", Command(verb="image", argument="a b.jpg")),
        ("/IMAGE  'a b.jpg' ", Command(verb="image", argument="a b.jpg")),
        ("/video https://host/v.mp4?x=1", Command(verb="video", argument="https://host/v.mp4?x=1")),
        ("/reset", Command(verb="reset")),
        ("/?", Command(verb="help")),
        ("/exit", Command(verb="quit")),
        ("/system", Command(verb="system")),
        ('/system ""', Command(verb="system", argument="")),
        ("/system Answer in\none word.", Command(verb="system", argument="Answer in\none word.")),
        ("/etc/hosts is a file", "/etc/hosts is a file"),
        ("//image is a command", "/image is a command"),
        ("and/or", "and/or"),
    ],
)
def test_a_line_is_a_message_or_a_command(line: str, meant: Command | str) -> None:
    assert read_command(line) == meant


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/imge a.jpg", "'/imge' is not a command; did you mean /image?"),
        ("/xyzzy", "/help lists the commands."),
        ("/image", "/image names no file; expected one after it."),
        ("/save ''", "/save names no file"),
        ("/", "'/' is not a command"),
    ],
)
def test_a_wrong_command_says_what_was_meant(line: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read_command(line)
    assert sentence in str(caught.value)


@given(st.text(max_size=80))
def test_every_line_is_a_message_a_command_or_refused(line: str) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(read_command(line), str | Command)


def test_every_command_is_in_the_help_of_both_languages() -> None:
    for verb in get_args(Verb):
        for lang in ("zh", "en"):
            assert f"/{verb}" in WORDS[lang]["help"]
    assert WORDS["zh"].keys() == WORDS["en"].keys()


def test_attachments_come_before_the_words_of_the_message_that_they_were_attached_to(
    talk: Conversation,
) -> None:
    system, first, answer, second, _, third = talk.messages("And now?")
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in first["content"]] == ["image", "text", "text"]
    assert first["content"][0]["image"] is PICTURE
    assert first["content"][-1] == {"type": "text", "text": "What burns?"}
    assert answer["content"] == "A pallet."
    assert second == {"role": "user", "content": "Since when?"}
    assert third == {"role": "user", "content": "And now?"}


def test_earlier_thinking_is_kept_for_the_template_to_strip(talk: Conversation) -> None:
    messages = talk.messages("And now?")
    assert messages[2]["reasoning_content"] == "I see a flame."
    plain = [{**one, "content": str(one["content"])} for one in messages]
    assert "flame" not in THINKING_TEMPLATE.render(plain)


def test_asking_changes_nothing_until_there_is_an_answer(talk: Conversation) -> None:
    talk.attached.append(PHOTO)
    before = (list(talk.turns), list(talk.attached))
    talk.messages("What is this?")
    assert (talk.turns, talk.attached) == before
    talk.settle("What is this?", Answer(text="A crane."))
    assert talk.attached == []
    assert talk.turns[-1].attachments == (PHOTO,)


def test_a_picture_alone_is_a_message_and_nothing_at_all_is_none() -> None:
    conversation = Conversation(attached=[PHOTO])
    assert conversation.messages("")[0]["content"] == list(PHOTO.parts)
    conversation.reset()
    with pytest.raises(InputError, match="The message is empty"):
        conversation.messages(" \n")


def test_reset_forgets_all_but_the_system_prompt(talk: Conversation) -> None:
    talk.attached.append(PHOTO)
    talk.reset()
    assert talk.messages("Hi") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_json_has_roles_texts_and_attachments_by_name(talk: Conversation) -> None:
    saved: dict[str, Any] = json.loads(save_text(talk, Path("c.JSON"), model="qwen", lang="zh"))
    assert (saved["schema"], saved["model"]) == ("qianyan.conversation/1", "qwen")
    assert saved["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": "What burns?",
            "attachments": [
                {"kind": "image", "name": "site.jpg"},
                {"kind": "file", "name": "rules.pdf"},
            ],
        },
        {"role": "assistant", "content": "A pallet.", "reasoning_content": "I see a flame."},
        {"role": "user", "content": "Since when?"},
        {"role": "assistant", "content": "Since", "is_cut": True},
    ]


def test_markdown_is_for_people(talk: Conversation) -> None:
    assert save_text(talk, Path("c.md"), model="qwen", lang="en") == (
        "# Conversation with qwen\n\n## System\n\nBe brief.\n\n"
        "## User\n\n- Picture: site.jpg\n- File: rules.pdf\n\nWhat burns?\n\n"
        "## Assistant\n\n> **thinking**\n>\n> I see a flame.\n\nA pallet.\n\n"
        "## User\n\nSince when?\n\n## Assistant\n\nSince\n\n*(The answer is not complete.)*\n"
    )
    assert "## 用户\n\n- 图片: site.jpg" in save_text(talk, Path("c.md"), model="q", lang="zh")


def test_other_suffixes_and_empty_conversations_are_not_saved(talk: Conversation) -> None:
    with pytest.raises(InputError, match=r"expected a name ending in \.md or \.json"):
        save_text(talk, Path("c.docx"), model="qwen", lang="en")
    with pytest.raises(InputError, match="nothing to save yet"):
        save_text(Conversation(), Path("c.md"), model="qwen", lang="en")


def test_a_file_is_replaced_only_when_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "c.md"
    write_conversation(path, "one")
    with pytest.raises(FileExistsError):
        write_conversation(path, "two")
    assert path.read_text() == "one"
    write_conversation(path, "two", may_replace=True)
    assert path.read_text() == "two"
