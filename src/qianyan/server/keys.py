"""API keys: made, hashed, and kept under the state folder as hashes only.

What is kept or compared of a key is its SHA-256: a key has so many random bits that nothing slower
is needed. The file of keys has one a line, as the key itself or as `sha256:` and its hash in
hexadecimal; what the server makes by itself it writes as hashes.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from qianyan.errors import ConfigError, quote

NOBODY = hashlib.sha256(b"").hexdigest()
"""The owner of everything where no keys are set."""
HASHED = "sha256:"
MADE_KEYS = "api-keys"
"""The file of the keys that the server made, under its state folder."""
KEY_BYTES = 24
LEAST_CHARACTERS = 8
_HASH = re.compile(r"[0-9a-f]{64}")


def hash_key(key: str) -> str:
    """Hash a key that a client sent; what looks like a hash is hashed as well."""
    return hashlib.sha256(key.encode()).hexdigest()


def digest_of(setting: str) -> str:
    """Give the hash of a key that opens the server, set in either form."""
    is_hashed = setting.startswith(HASHED)
    return setting.removeprefix(HASHED) if is_hashed else hash_key(setting)


def check_key(key: str) -> None:
    """Raise ConfigError for a key that no header carries, or a hash that is none."""
    if key.startswith(HASHED):
        if not _HASH.fullmatch(key.removeprefix(HASHED)):
            raise ConfigError(
                "A hashed API key is no SHA-256; expected sha256: and 64 digits of 0-9 and a-f."
            )
    elif not key.isascii() or not key.isprintable() or " " in key or len(key) < LEAST_CHARACTERS:
        raise ConfigError(
            f"An API key has fewer than {LEAST_CHARACTERS} characters, or blanks or other "
            "characters that no header carries; expected something like sk-3b1f8c2e77d94a06."
        )


def make_key() -> str:
    """Make a key that nobody can guess."""
    return f"sk-{secrets.token_hex(KEY_BYTES)}"


def read_keys(path: Path) -> list[str]:
    """Read a file of keys, one a line; lines that begin with # are remarks."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The file of API keys {quote(path)} cannot be read; expected a text file of keys."
        ) from error
    keys = [key for line in lines if not line.startswith("#") for key in line.split()]
    if not keys:
        raise ConfigError(f"The file of API keys {quote(path)} holds no key; expected one a line.")
    return keys


def find_made_keys(state_folder: Path) -> Sequence[str]:
    """Give the hashes of the keys that were made for a state folder before; none at first."""
    path = state_folder / MADE_KEYS
    return read_keys(path) if path.exists() else ()


def keep_key(state_folder: Path, key: str) -> Path:
    """Write the hash of the first key that is made for a state folder; give the file.

    Only this user can read it. Raises ConfigError when it cannot be written.
    """
    path = state_folder / MADE_KEYS
    text = (
        "# Hashes of the keys that open qianyan serve. Delete this file and start the server\n"
        f"# again to have a new key made.\n{HASHED}{digest_of(key)}\n"
    )
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"The file of API keys {quote(path)} cannot be written ({error.strerror}). Name "
            "another folder with --state-dir, or give a key with QIANYAN_API_KEYS."
        ) from error
    return path
