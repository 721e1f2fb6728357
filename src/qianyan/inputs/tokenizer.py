"""Byte-level BPE tokenizers, read from a checkpoint's tokenizer.json.

Ids are those of the checkpoint; nothing is added before or after (Qwen has no start token).
Control tokens written out in a text become control tokens, as with the official tools.
"""

import codecs
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tokenizers

from qianyan.errors import CheckpointError, ConfigError, InputError, quote
from qianyan.inputs.tiktoken_vocabulary import VOCABULARY_NAME, load_tiktoken


def _byte_alphabet() -> dict[str, int]:
    """Map the printable stand-ins of byte-level BPE to the bytes they stand for (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_BYTES = _byte_alphabet()


class Tokenizer:
    """Text to token ids and back; safe to share between threads."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        settings: dict[str, Any],
        *,
        is_first_generation: bool = False,
    ) -> None:
        """Take a loaded tokenizer and the contents of its tokenizer_config.json."""
        self._backend = backend
        self.is_first_generation = is_first_generation
        self.special_tokens = _named_tokens(settings)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self._added_text = {id_: token.content for id_, token in added.items()}

    @classmethod
    def from_folder(cls, folder: Path | str) -> Self:
        """Load tokenizer.json, or qwen.tiktoken, and tokenizer_config.json where there is one."""
        path = Path(folder) / "tokenizer.json"
        tiktoken = path.with_name(VOCABULARY_NAME)
        if not path.is_file() and tiktoken.is_file():
            has_pictures = bool(read_json(path.with_name("config.json")).get("visual"))
            return cls(
                load_tiktoken(tiktoken, has_pictures=has_pictures),
                {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
                is_first_generation=True,
            )
        if not path.is_file():
            raise CheckpointError(
                f"{path.parent.name}/ has no tokenizer.json, nor {VOCABULARY_NAME} as the first "
                "generation has; copy it from the model's repository."
            )
        _check_kind(read_json(path))
        backend = tokenizers.Tokenizer.from_file(str(path))
        settings = read_json(path.with_name("tokenizer_config.json"))
        _add_missing_tokens(backend, settings)
        return cls(backend, settings)

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids; adds nothing at either end.

        Raises InputError for a text that holds half of a character.
        """
        return self._encode(text, adds_ends=False)

    def encode_whole(self, text: str) -> list[int]:
        """Turn a text that stands alone into token ids, with what the checkpoint puts at its ends.

        Raises what `encode` does.
        """
        return self._encode(text, adds_ends=True)

    def _encode(self, text: str, *, adds_ends: bool) -> list[int]:
        try:
            return list(self._backend.encode(text, add_special_tokens=adds_ends).ids)
        except TypeError as error:  # what it says of a str that is no UTF-8
            raise InputError(
                "The text holds half of a surrogate pair, which is no character; expected whole "
                "characters."
            ) from error

    def decode(self, token_ids: list[int], *, skip_special: bool = True) -> str:
        """Turn token ids into text; bytes that are no UTF-8 become U+FFFD."""
        kept = (id_ for id_ in token_ids if not (skip_special and id_ in self.special_ids))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")

    def stream(self, *, skip_special: bool = True) -> "TextStream":
        """Start decoding one reply token by token."""
        return TextStream(self, skip_special=skip_special)

    def token_id(self, token: str) -> int | None:
        """Find the id of a token given as the vocabulary writes it."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str:
        """Show one token alone; half a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Look up the bytes a token stands for.

        Ids without a token (a checkpoint's matrices are padded beyond its vocabulary) are empty.
        """
        added = self._added_text.get(token_id)
        if added is not None:
            return added.encode()
        token = self._backend.id_to_token(token_id)
        return bytes(_BYTES[char] for char in token) if token else b""

    @cached_property
    def control_words(self) -> tuple[str, ...]:
        """List the words that a text may not spell without becoming one token, longest first."""
        return tuple(sorted(self._added_text.values(), key=len, reverse=True))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id; the model's matrices may be larger."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a turn, where tokenizer_config.json names it."""
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """The token for padding, where tokenizer_config.json names it."""
        return self._named_id("pad_token")

    def to_json(self) -> str:
        """Give the tokenizer as the text of a tokenizer.json, for grammar compilers."""
        text: str = self._backend.to_str()
        return text

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)


@dataclass
class TextStream:
    """Text of a growing reply; holds back bytes until they make whole characters."""

    tokenizer: Tokenizer
    skip_special: bool = True
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def push(self, token_id: int) -> str:
        """Add a token and return the text that it completes, which may be empty."""
        if self.skip_special and token_id in self.tokenizer.special_ids:
            return ""
        return self._decoder.decode(self.tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return what is still held back; a character cut in half shows as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint; a missing file reads as an empty one."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path.name} is not valid JSON; copy the file again.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} holds {type(data).__name__}; expected a JSON object.")
    return data


def _check_kind(data: dict[str, Any]) -> None:
    """Refuse a tokenizer.json of another kind before the library sees it."""
    kind = (data.get("model") or {}).get("type")
    if kind != "BPE" or "ByteLevel" not in json.dumps(data.get("decoder")):
        raise ConfigError(
            f"tokenizer.json is of kind {quote(kind)}; expected a byte-level BPE, as Qwen has."
        )


def _named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Collect eos_token, pad_token, ... from tokenizer_config.json, written in either form."""
    named = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = settings.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            named[name] = token
    return named


def _add_missing_tokens(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """Add the tokens that only tokenizer_config.json knows, at the ids it gives them."""
    declared = settings.get("added_tokens_decoder") or {}
    for key, token in sorted(declared.items(), key=lambda item: int(item[0])):
        content = token["content"]
        if backend.token_to_id(content) is None:
            flags = {k: token[k] for k in _TOKEN_FLAGS if k in token}
            backend.add_tokens([tokenizers.AddedToken(content, **flags)])
        if backend.token_to_id(content) != int(key):
            raise ConfigError(
                f"tokenizer_config.json gives {quote(content)} the id {key}, tokenizer.json the "
                f"id {backend.token_to_id(content)}; the two files are not of one checkpoint."
            )


_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
