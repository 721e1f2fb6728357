"""Prompts of the first generation: ChatML with numbered pictures, plain text, bytes of paths."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.errors import ConfigError, InputError
from qianyan.inputs.chat import ChatTemplate
from qianyan.inputs.first_generation import (
    ChatFormat,
    encode_first_generation,
    find_references,
    read_chat_format,
    stop_token_ids,
    template_source,
)
from qianyan.inputs.tiktoken_vocabulary import build_tiktoken
from qianyan.inputs.tokenizer import Tokenizer

# As in the released file: printable characters first, so that a byte's rank is not its value.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [bytes([byte]) for byte in [*PRINTABLE, *(b for b in range(256) if b not in PRINTABLE)]]
TOKENS = [*BYTES, b"us", b"er", b"user", b"\n\n", b"fi", b"re", b"fire"]

chatml = ChatTemplate(template_source("chatml"))
raw = ChatTemplate(template_source("raw"))
IMAGE = {"type": "image"}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(build_tiktoken(TOKENS, has_pictures=True), {})


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def test_a_question_stands_in_chatml_under_the_usual_system_message() -> None:
    assert chatml.render([message("user", "Is there fire?")]) == (
        f"{SYSTEM}<|im_start|>user\nIs there fire?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_message_of_ones_own_replaces_it() -> None:
    messages = [message("system", "You inspect."), message("user", " hi \n")]
    assert chatml.render(messages, add_generation_prompt=False) == (
        "<|im_start|>system\nYou inspect.<|im_end|>\n<|im_start|>user\n hi \n<|im_end|>\n"
    )


def test_pictures_are_numbered_over_the_whole_conversation() -> None:
    messages = [
        message("user", [IMAGE, text("What is it?")]),
        message("assistant", "<ref>A cat</ref><box>(1,2),(3,4)</box>"),
        message("user", [text("And these?"), IMAGE, IMAGE]),
    ]
    assert chatml.render(messages) == (
        f"{SYSTEM}<|im_start|>user\nPicture 1: <img><imgpad></img>\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\n<ref>A cat</ref><box>(1,2),(3,4)</box><|im_end|>\n"
        "<|im_start|>user\nAnd these?Picture 2: <img><imgpad></img>\n"
        "Picture 3: <img><imgpad></img>\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_pictures_that_texts_name_are_counted_too() -> None:
    messages = [
        message("user", "Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nLook."),
        message("user", [IMAGE]),
    ]
    assert "Picture 3: <img><imgpad></img>\n" in chatml.render(messages)


def test_a_base_model_is_given_the_contents_one_after_another() -> None:
    caption = [message("user", [IMAGE, text("Describe the image in English:")])]
    assert raw.render(caption) == "<img><imgpad></img>Describe the image in English:"
    shots = [
        message("user", [IMAGE, text("What is it? Answer:")]),
        message("assistant", " a cat\n"),
        message("user", [IMAGE, text("<ref>the dog</ref><box>")]),
    ]
    assert raw.render(shots) == (
        "<img><imgpad></img>What is it? Answer: a cat\n<img><imgpad></img><ref>the dog</ref><box>"
    )


@pytest.mark.parametrize("template", [chatml, raw])
@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([message("user", "hi")], [{"type": "function", "function": {"name": "f"}}]),
        ([message("user", "hi"), message("tool", "7")], None),
        ([message("user", "hi"), message("assistant", "") | {"tool_calls": [{}]}], None),
        ([message("user", [{"type": "video"}])], None),
    ],
    ids=["tools", "their results", "their calls", "videos"],
)
def test_what_the_model_was_never_shown_is_refused(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    with pytest.raises(InputError, match=r"this model (calls no tools|reads text and pictures)"):
        template.render(messages, tools=tools)


@pytest.mark.parametrize("template", [chatml, raw])
def test_text_parts_read_as_the_same_text_given_plainly(template: ChatTemplate) -> None:
    assert template.takes_parts


@pytest.mark.parametrize("chat_format", ["chatml", "raw"])
def test_generation_config_says_which_prompts(tmp_path: Path, chat_format: ChatFormat) -> None:
    settings_json = {"chat_format": chat_format, "eos_token_id": 151643, "top_k": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings_json))
    assert read_chat_format(tmp_path) == chat_format


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "has no chat_format"), ({}, "has no chat_format"), ({"chat_format": "vicuna"}, "'vic")],
)
def test_prompts_are_never_guessed(
    tmp_path: Path, content: dict[str, str] | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        read_chat_format(tmp_path)


def test_an_answer_ends_where_the_format_ends_it(tokenizer: Tokenizer) -> None:
    end, start, last = (
        tokenizer.token_id(token) for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
    )
    assert stop_token_ids(tokenizer, "chatml") == {end, start}
    assert stop_token_ids(tokenizer, "raw") == {last}


def test_a_path_is_its_bytes_then_padding(tokenizer: Tokenizer) -> None:
    """The byte is the id: "a" is 97 here, though the word "a" has another id."""
    start, end, pad = (tokenizer.token_id(token) for token in ("<img>", "</img>", "<imgpad>"))
    ids = encode_first_generation(tokenizer, "fire<img>a火</img>fire", 16)
    word = tokenizer.token_id("fire")
    assert ids == [word, start, 97, *"火".encode(), *[pad] * 12, end, word]
    assert tokenizer.encode("a") != [97]


def test_a_picture_part_is_padding_alone(tokenizer: Tokenizer) -> None:
    pad = tokenizer.token_id("<imgpad>")
    ids = encode_first_generation(tokenizer, chatml.render([message("user", [IMAGE, IMAGE])]), 256)
    assert ids.count(pad) == 512
    start = ids.index(tokenizer.token_id("<img>"))
    assert ids[start + 1 : start + 257] == [pad] * 256
    assert ids[start + 257] == tokenizer.token_id("</img>")


@pytest.mark.parametrize(("length", "is_allowed"), [(255, True), (256, False), (5000, False)])
def test_one_slot_stays_free_after_a_path(
    tokenizer: Tokenizer, length: int, is_allowed: bool
) -> None:
    prompt = f"<img>{'p' * length}</img>"
    if is_allowed:
        ids = encode_first_generation(tokenizer, prompt, 256)
        assert ids[1:257] == [ord("p")] * 255 + [tokenizer.token_id("<imgpad>")]
        return
    with pytest.raises(InputError, match=f"named by {length} bytes; expected at most 255"):
        encode_first_generation(tokenizer, prompt, 256)


def test_a_path_counts_in_bytes_not_in_characters(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="named by 258 bytes"):
        encode_first_generation(tokenizer, f"<img>{'火' * 86}</img>", 256)


def test_a_line_break_after_a_role_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    """The released code encodes role, line break and content one by one."""
    prompt = "<|im_start|>user\n\n\nfire<|im_end|>"
    start, end = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
    user, fire = tokenizer.token_id("user"), tokenizer.token_id("fire")
    break_, two = (tokenizer.encode(piece)[0] for piece in ("\n", "\n\n"))
    assert encode_first_generation(tokenizer, prompt, 256) == [start, user, break_, two, fire, end]
    assert tokenizer.encode(prompt) != encode_first_generation(tokenizer, prompt, 256)


def test_names_of_files_are_normalised_as_the_released_code_does(tokenizer: Tokenizer) -> None:
    decomposed = "cafe\u0301.png"
    ids = encode_first_generation(tokenizer, f"<img>{decomposed}</img>", 16)
    assert bytes(ids[1:10]) == "café.png".encode()
    assert find_references(f"<img>{decomposed}</img>") == [decomposed]  # the file's own name


def test_references_are_listed_in_order() -> None:
    prompt = "a<img>x/y z.png</img>b<img><imgpad></img><img>https://h/i?j=1</img>"
    assert find_references(prompt) == ["x/y z.png", "<imgpad>", "https://h/i?j=1"]
    assert find_references("no pictures, <image> neither") == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a <img> b", "do not pair"),
        ("a </img> b", "do not pair"),
        ("<img>a<img>b</img>", "do not pair"),
        ("</img><img>", "do not pair"),
        ("<img>a</img></img>", "do not pair"),
        ("see <img></img>", "nothing between"),
    ],
)
def test_tags_without_a_partner_or_a_name_are_refused(
    tokenizer: Tokenizer, prompt: str, words: str
) -> None:
    for read in (find_references, lambda given: encode_first_generation(tokenizer, given, 256)):
        with pytest.raises(InputError, match=words):
            read(prompt)


def test_a_text_model_reads_tags_as_words() -> None:
    blind = Tokenizer(build_tiktoken(TOKENS, has_pictures=False), {})
    prompt = "<img>a</img> <img>"
    assert encode_first_generation(blind, prompt, 256) == blind.encode(prompt)


names = st.text(min_size=1, max_size=20).filter(lambda name: "<" not in name)
pieces = st.one_of(
    st.text(max_size=12).filter(lambda piece: "<" not in piece).map(lambda piece: (piece, None)),
    names.map(lambda name: (f"<img>{name}</img>", name)),
)


@settings(deadline=None, max_examples=200)
@given(parts=st.lists(pieces, max_size=6))
def test_every_picture_takes_its_slots_and_its_bytes_can_be_read_back(
    tokenizer: Tokenizer, parts: list[tuple[str, str | None]]
) -> None:
    prompt = "".join(piece for piece, _ in parts)
    named = [name for _, name in parts if name is not None]
    ids = encode_first_generation(tokenizer, prompt, 100)
    start, end, pad = (tokenizer.token_id(token) for token in ("<img>", "</img>", "<imgpad>"))
    read = []
    for place, token_id in enumerate(ids):
        if token_id == start:
            slots = ids[place + 1 : place + 101]
            assert ids[place + 101] == end
            read.append(bytes(slots[: slots.index(pad)]).decode())
    assert read == [unicodedata.normalize("NFC", name) for name in named]
    assert find_references(prompt) == named
