"""Keys: guessed by nobody, kept as hashes."""

import hashlib
from pathlib import Path

import pytest

from qianyan.errors import ConfigError
from qianyan.server.keys import digest_of, find_made_keys, hash_key, keep_key, make_key, read_keys


def test_a_made_key_is_kept_as_its_hash_for_this_user_only(tmp_path: Path) -> None:
    assert find_made_keys(tmp_path) == ()
    key = make_key()
    path = keep_key(tmp_path, key)
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    (kept,) = find_made_keys(tmp_path)
    assert digest_of(kept) == hash_key(key) == hashlib.sha256(key.encode()).hexdigest()
    with pytest.raises(ConfigError, match="cannot be written"):
        keep_key(tmp_path, make_key())


def test_no_two_keys_are_alike() -> None:
    assert len({make_key() for _ in range(100)}) == 100


def test_a_file_may_hold_keys_hashes_and_remarks(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    hashed = "sha256:" + "a" * 64
    path.write_text(f"# ours\nsk-0123456789\n\n{hashed}\n")
    assert read_keys(path) == ["sk-0123456789", hashed]
    path.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(path)
