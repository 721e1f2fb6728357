"""Ids, bytes and streams of a byte-level tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qianyan.errors import CheckpointError, ConfigError, InputError
from qianyan.inputs.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(make_folder: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.from_folder(make_folder())


def test_control_words_become_single_tokens_and_nothing_is_added(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>fire<|im_end|>")
    assert [tokenizer.token_text(id_) for id_ in ids] == ["<|im_start|>", "fire", "<|im_end|>"]
    assert tokenizer.encode("") == []


def test_half_a_character_is_refused_with_a_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="half of a surrogate pair"):
        tokenizer.encode("a\ud800")


def test_special_tokens_can_be_left_out_and_added_plain_ones_stay(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|><tool_call>火<|im_end|>")
    assert tokenizer.decode(ids) == "<tool_call>火"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|><tool_call>火<|im_end|>"


def test_named_tokens_are_found_in_either_written_form(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token_id == tokenizer.token_id("<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.token_id("<|endoftext|>")
    assert tokenizer.token_id("<|no_such_token|>") is None


def test_bytes_of_all_single_byte_tokens_are_all_bytes(tokenizer: Tokenizer) -> None:
    plain = (tokenizer.token_bytes(id_) for id_ in range(256))
    assert {piece for piece in plain if len(piece) == 1} == {bytes([n]) for n in range(256)}


def test_ids_of_a_padded_matrix_have_no_text(tokenizer: Tokenizer) -> None:
    padded = [tokenizer.vocab_size, tokenizer.vocab_size + 500]
    assert tokenizer.token_bytes(padded[0]) == b""
    assert tokenizer.decode([*tokenizer.encode("a"), *padded]) == "a"


def test_a_stream_holds_back_halves_of_characters(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(id_) for id_ in tokenizer.encode("火")]
    assert pieces == ["", "", "火"]
    assert stream.push(tokenizer.encode("灾")[0]) == ""
    assert stream.finish() == "\ufffd"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text())
def test_streams_and_decoding_give_the_normalised_text_back(
    tokenizer: Tokenizer, text: str
) -> None:
    import unicodedata

    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids, skip_special=False)
    assert decoded == unicodedata.normalize("NFC", text)
    stream = tokenizer.stream(skip_special=False)
    assert "".join(map(stream.push, ids)) + stream.finish() == decoded


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "Unigram"}}', "{}"])
def test_damaged_or_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_tokens_that_only_the_settings_declare_are_added(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    next_id = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    declared = {str(next_id): {"content": "<think>", "special": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("<think>") == [next_id]
    assert tokenizer.decode([next_id]) == "<think>"


def test_settings_of_another_checkpoint_are_refused(make_folder: Callable[..., Path]) -> None:
    declared = {"3": {"content": "<|im_end|>", "special": True}}
    folder = make_folder(settings={"added_tokens_decoder": declared})
    with pytest.raises(ConfigError, match="not of one checkpoint"):
        Tokenizer.from_folder(folder)
