"""qwen.tiktoken: the rule of lowest rank first, control tokens after it, damaged files refused."""

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qianyan.errors import CheckpointError
from qianyan.inputs.tiktoken_vocabulary import (
    MAX_VOCABULARY_BYTES,
    build_tiktoken,
    load_tiktoken,
    read_tiktoken,
)
from qianyan.inputs.tokenizer import Tokenizer

OFFICIAL_TOKENS = 151_643
# As in the released file: printable characters first, so that a byte's rank is not its value.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [bytes([byte]) for byte in [*PRINTABLE, *(b for b in range(256) if b not in PRINTABLE)]]
TEXTS = (
    "",
    "Hello, world! It's 12:30 and they'RE here; we'll see.",
    "The extinguisher (6 kg) expired 2023-08-01.\n\n\tReplace it…  now \n",
    "灭火器已过期，请于24小时内更换。安全帽未佩戴！",
    "消防通道被占用\r\n\r\n　　请立即清理",
    "煙霧警報器、防火扉、非常口はどこですか?",
    "소화기는 어디에 있습니까? 안전모를 착용하세요.",
    "Где находится огнетушитель? Каска обязательна.",
    "أين مطفأة الحريق؟ يجب ارتداء الخوذة.",
    "आग बुझाने वाला यंत्र कहाँ है?",
    "Wo ist der Feuerlöscher? Größe: 1½ Zoll, 25 °C",
    "Cafe\u0301 — nai\u0308ve — \u212b — ﬁre",  # decomposed and compatibility characters
    "🔥🧯👷🏽‍♀️ 👨‍👩‍👧‍👦 🇨🇳",
    "     five spaces, then\t\ttabs   \n   \n  end   ",
    "1234567890 3.14159 0xFF 10,000,000 ①②③ ٣٤٥",
    "def f(x):\n    return x ** 2  # ====>>>>\n\n\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u200b\u200d\ufeff\x00\x01\x7f",
    "<ref-like> <b>bold</b> <|not_a_token|> </box",
    "https://example.com/a?b=c&d=%E7%81%AB#frag",
)


def write_vocabulary(path: Path, tokens: list[bytes]) -> Path:
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))
    return path


def by_lowest_rank(tokens: list[bytes], word: bytes) -> list[int]:
    """tiktoken's rule, written as it is told: join the neighbours of the lowest rank, leftmost."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if word in ranks:
        return [ranks[word]]
    pieces = [bytes([byte]) for byte in word]
    while True:
        joined = [first + second for first, second in pairwise(pieces)]
        known = [(ranks[token], place) for place, token in enumerate(joined) if token in ranks]
        if not known:
            return [ranks[piece] for piece in pieces]
        _, place = min(known)
        pieces[place : place + 2] = [joined[place]]


@pytest.fixture(scope="module")
def official(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The official vocabulary as the file of the first generation would hold it."""
    source = shared / "tokenizer" / "qwen2-vl" / "tokenizer.json"
    if not source.is_file():
        pytest.skip("no official vocabulary beside this checkout")
    vocabulary = json.loads(source.read_text(encoding="utf-8"))["model"]["vocab"]
    printable = {chr(byte): byte for byte in PRINTABLE}
    others = (byte for byte in range(256) if byte not in PRINTABLE)
    characters = printable | {chr(256 + index): byte for index, byte in enumerate(others)}
    tokens = [b""] * OFFICIAL_TOKENS
    for token, token_id in vocabulary.items():
        tokens[token_id] = bytes(characters[char] for char in token)
    path = write_vocabulary(tmp_path_factory.mktemp("official") / "qwen.tiktoken", tokens)
    return Tokenizer(load_tiktoken(path, has_pictures=True), {})


@pytest.fixture(scope="module")
def qwen2(shared: Path) -> tokenizers.Tokenizer:
    """The second generation's tokenizer, whose words have the same ids."""
    return tokenizers.Tokenizer.from_file(str(shared / "tokenizer" / "qwen2-vl" / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_the_official_words_have_the_ids_of_the_second_generation(
    official: Tokenizer, qwen2: tokenizers.Tokenizer, text: str
) -> None:
    assert official.encode(text) == qwen2.encode(text, add_special_tokens=False).ids


@settings(deadline=None, max_examples=300)
@given(text=st.text())
def test_any_text_has_the_ids_of_the_second_generation(
    official: Tokenizer, qwen2: tokenizers.Tokenizer, text: str
) -> None:
    assert official.encode(text) == qwen2.encode(text, add_special_tokens=False).ids


def test_the_official_control_tokens_have_the_published_ids(official: Tokenizer) -> None:
    published = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|extra_0|>": 151646,
        "<|extra_204|>": 151850,
        "<ref>": 151851,
        "</ref>": 151852,
        "<box>": 151853,
        "</box>": 151854,
        "<quad>": 151855,
        "</quad>": 151856,
        "<img>": 151857,
        "</img>": 151858,
        "<imgpad>": 151859,
    }
    assert {token: official.token_id(token) for token in published} == published
    assert official.vocab_size == 151860
    assert official.encode("<ref>火</ref><box>(1,2),(3,4)</box>")[0] == 151851


# Few letters, so that tokens overlap, repeat themselves and can be made in several ways.
words = st.text(alphabet="ab", min_size=2, max_size=6).map(str.encode)
vocabularies = st.lists(words, unique=True, max_size=20).map(lambda more: BYTES + more)


@settings(deadline=None, max_examples=300)
@given(tokens=vocabularies, text=st.text(alphabet="abc", max_size=30))
def test_words_are_joined_by_lowest_rank_whatever_the_vocabulary(
    tokens: list[bytes], text: str
) -> None:
    backend = build_tiktoken(tokens, has_pictures=False)
    expected = by_lowest_rank(tokens, text.encode()) if text else []
    assert backend.encode(text).ids == expected


@pytest.fixture
def vocabulary(tmp_path: Path) -> Callable[[list[bytes]], Path]:
    return lambda tokens: write_vocabulary(tmp_path / "qwen.tiktoken", tokens)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_texts_come_back_in_normal_form(text: str) -> None:
    import unicodedata

    tokenizer = Tokenizer(build_tiktoken([*BYTES, b"th", b"the"], has_pictures=True), {})
    decoded = tokenizer.decode(tokenizer.encode(text), skip_special=False)
    assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text)


def test_a_text_model_has_no_tokens_for_pictures_and_boxes(
    vocabulary: Callable[[list[bytes]], Path],
) -> None:
    path = vocabulary(BYTES)
    blind = Tokenizer(load_tiktoken(path, has_pictures=False), {})
    sighted = Tokenizer(load_tiktoken(path, has_pictures=True), {})
    assert blind.vocab_size == 256 + 208
    assert sighted.vocab_size == 256 + 208 + 9
    assert blind.token_id("<img>") is None
    assert len(blind.encode("<img>")) == 5
    assert sighted.encode("<img>") == [256 + 208 + 6]


def test_boxes_stay_in_what_a_model_says_and_control_tokens_do_not(
    vocabulary: Callable[[list[bytes]], Path],
) -> None:
    tokenizer = Tokenizer(load_tiktoken(vocabulary(BYTES), has_pictures=True), {})
    said = "<ref>fire</ref><box>(1,2),(3,4)</box><quad></quad>"
    ids = tokenizer.encode(f"{said}<img><imgpad></img><|extra_7|><|im_end|><|endoftext|>")
    assert tokenizer.decode(ids) == said
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == said


def test_it_survives_being_written_as_tokenizer_json(
    vocabulary: Callable[[list[bytes]], Path],
) -> None:
    """Grammars are compiled from that text."""
    tokenizer = Tokenizer(
        load_tiktoken(vocabulary([*BYTES, b"ab", b"abc", b"bc"]), has_pictures=True), {}
    )
    again = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for text in ("abc abcbc it's 12", "<|im_start|>user\nabc<img>"):
        assert again.encode(text).ids == tokenizer.encode(text)


def test_ranks_may_stand_in_any_order_and_lines_may_be_empty(tmp_path: Path) -> None:
    lines = [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(BYTES)]
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"\r\n".join([b"", *reversed(lines), b"", b""]))
    assert read_tiktoken(path) == BYTES


def line(token: bytes, rank: int | str) -> bytes:
    return base64.b64encode(token) + f" {rank}\n".encode()


WHOLE = b"".join(line(token, rank) for rank, token in enumerate(BYTES))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no token for 256 of the 256 bytes"),
        (WHOLE.partition(b"\n")[2], "the rank 1 where 0 is next"),
        (WHOLE + line(b"ab", 300), "the rank 300 where 256 is next"),
        (WHOLE + line(b"ab", 5), "the rank 5 where 6 is next"),
        (WHOLE + line(b"!", 256), "line 257 repeats the token of rank 0"),
        (WHOLE + b"YWI= two\n", "line 257 is 'YWI= two'"),
        (WHOLE + b"YWI= -3\n", "line 257 is 'YWI= -3'"),
        (WHOLE + b"YWI=\n", "line 257 is 'YWI='"),
        (WHOLE + b"YWI= 256 1\n", "line 257 is 'YWI= 256 1'"),
        (WHOLE + b"a*b= 256\n", "line 257 is 'a*b= 256'"),
        (WHOLE + b"YWI 256\n", "line 257 is 'YWI 256'"),  # padding cut off
        (WHOLE + b"YWI= " + b"9" * 5000, "line 257 is 'YWI= 999"),
        (WHOLE + line(b"x" * 257, 256), "expected a token in base64 and its rank"),
        (b"\xff\xfe\x00 1\n", "line 1 is"),
        (b"version https://git-lfs.github.com/spec/v1\n", "line 1 is 'version https://git-lfs"),
        (b"\n" * (MAX_VOCABULARY_BYTES + 1), f"more than {MAX_VOCABULARY_BYTES} bytes"),
    ],
    ids=range(16),
)
def test_damaged_files_are_refused_in_a_sentence(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        read_tiktoken(path)
    assert words in str(raised.value)
    assert str(raised.value).startswith("qwen.tiktoken ")
    assert len(str(raised.value)) < 250


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"qwen\.tiktoken cannot be read"):
        load_tiktoken(tmp_path / "qwen.tiktoken", has_pictures=True)


def test_a_word_that_spells_a_control_token_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"holds '<\|im_end\|>' as a word"):
        build_tiktoken([*BYTES, b"<|im_end|>"], has_pictures=False)
