"""The first generation's vocabulary file, `qwen.tiktoken`, as a byte-level BPE tokenizer.

A line is a token's bytes in base64 and its rank; ranks are ids. tiktoken has no list of merges: it
joins whichever neighbours make the token of the lowest rank. The same rule as merges is every split
of a token into two others, in the order of the tokens they make. Control tokens are not in the
file: they follow it, in the order of the released code.
"""

import base64
import contextlib
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from qianyan.errors import CheckpointError, quote

VOCABULARY_NAME = "qwen.tiktoken"
MAX_VOCABULARY_BYTES = 8 * 2**20  # the released file has 2.5 MB
MAX_TOKEN_BYTES = 256  # the longest released token has 128; splits cost its square

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{index}|>" for index in range(205)),
)
GROUNDING_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
PICTURE_TOKENS = ("<img>", "</img>", "<imgpad>")


def load_tiktoken(path: Path | str, *, has_pictures: bool) -> tokenizers.Tokenizer:
    """Make a tokenizer from a `qwen.tiktoken` file.

    With `has_pictures` it knows Qwen-VL's tokens for pictures and boxes. Those of boxes are no
    control tokens: they belong to what the model says. Raises CheckpointError for a file that is
    damaged or no such vocabulary.
    """
    return build_tiktoken(read_tiktoken(path), has_pictures=has_pictures)


def read_tiktoken(path: Path | str) -> list[bytes]:
    """Read the tokens of a vocabulary file, each at the place of its rank.

    Raises CheckpointError unless ranks run from 0 without gaps, every token is there once, and
    every single byte is one of them.
    """
    path = Path(path)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_vocabulary_text(path).splitlines(), start=1):
        if not line:
            continue
        token, rank = _parse_line(line, f"{path.name} line {number}")
        if token in ranks:
            raise CheckpointError(
                f"{path.name} line {number} repeats the token of rank {ranks[token]}; expected "
                "every token once. Download the file again."
            )
        ranks[token] = rank
    ordered = sorted(ranks, key=ranks.__getitem__)
    for place, token in enumerate(ordered):
        if ranks[token] != place:
            raise CheckpointError(
                f"{path.name} has the rank {ranks[token]} where {place} is next; expected ranks "
                "from 0 without gaps. Download the file again."
            )
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing:
        raise CheckpointError(
            f"{path.name} has no token for {missing} of the 256 bytes; expected one for each. "
            "Download the file again."
        )
    return ordered


def _vocabulary_text(path: Path) -> bytes:
    """Read the file, within its limit."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_VOCABULARY_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error.strerror}); copy it from the model's repository."
        ) from error
    if len(text) > MAX_VOCABULARY_BYTES:
        raise CheckpointError(
            f"{path.name} has more than {MAX_VOCABULARY_BYTES} bytes; expected about 2.5 MB. "
            "Copy it from the model's repository."
        )
    return text


def _parse_line(line: bytes, where: str) -> tuple[bytes, int]:
    """Take a token and its rank from one line."""
    token, rank = b"", -1
    with contextlib.suppress(ValueError):  # of base64 and of int, too
        encoded, digits = line.split()
        token, rank = base64.b64decode(encoded, validate=True), int(digits)
    if rank < 0 or not 0 < len(token) <= MAX_TOKEN_BYTES:
        raise CheckpointError(
            f"{where} is {quote(line.decode('utf-8', errors='replace'))}; expected a token in "
            "base64 and its rank. Download the file again."
        )
    return token, rank


def build_tiktoken(tokens: list[bytes], *, has_pictures: bool) -> tokenizers.Tokenizer:
    """Make a tokenizer from all tokens in the order of their ranks."""
    characters = _byte_characters()
    names = ["".join(characters[byte] for byte in token) for token in tokens]
    vocabulary = {name: rank for rank, name in enumerate(names)}
    # Joining stops at the pieces between splits; a piece that is a token is taken whole first.
    bpe = models.BPE(vocab=vocabulary, merges=_find_merges(names, vocabulary), ignore_merges=True)
    backend = tokenizers.Tokenizer(bpe)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, CONTROL_TOKENS, special=True)
    if has_pictures:
        _add_tokens(backend, GROUNDING_TOKENS, special=False)
        _add_tokens(backend, PICTURE_TOKENS, special=True)
    return backend


def _find_merges(names: list[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """List every split of a token into two tokens, in the order of the tokens they make."""
    return [
        (name[:place], name[place:])
        for name in names
        for place in range(1, len(name))
        if name[:place] in vocabulary and name[place:] in vocabulary
    ]


def _add_tokens(backend: tokenizers.Tokenizer, tokens: tuple[str, ...], *, special: bool) -> None:
    """Append tokens that texts are cut at before anything else."""
    first = backend.get_vocab_size(with_added_tokens=True)
    backend.add_tokens(
        [tokenizers.AddedToken(token, normalized=False, special=special) for token in tokens]
    )
    for token_id, token in enumerate(tokens, start=first):
        if backend.token_to_id(token) != token_id:
            raise CheckpointError(
                f"The vocabulary holds {quote(token)} as a word; expected it to be free for the "
                "control token of that name. Download the file again."
            )


def _byte_characters() -> list[str]:
    """Give the printable stand-in of each byte in byte-level BPE (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
