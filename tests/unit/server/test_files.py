"""Files of keys: limits, scope, order, expiry, and what names and ids cannot do."""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qianyan.errors import InputError
from qianyan.server.database import NotFoundError, QuotaError, open_database
from qianyan.server.files import (
    FileLimits,
    FilePurpose,
    FileQuery,
    Files,
    shown_name,
)
from qianyan.server.owned import PageQuery
from qianyan.server.store import ContentStore, read_chunks

ALICE, BOB = "owner-alice", "owner-bob"


def open_files(folder: Path, **limits: int) -> Files:
    return Files(open_database(folder), ContentStore(folder / "files"), FileLimits(**limits))


def content(files: Files, file_id: str) -> bytes:
    with files.open(ALICE, file_id) as file:
        return b"".join(read_chunks(file))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return open_files(tmp_path)


def test_a_file_comes_back_as_it_was_sent(files: Files) -> None:
    pages = os.urandom(3_000_000)
    sent = files.upload(ALICE, "站点.pdf", "file-extract", [pages[:7], pages[7:]])
    assert sent.id.startswith("file-fe-")
    assert sent.filename == "站点.pdf"
    assert sent.size_bytes == len(pages)
    assert sent.sha256 == hashlib.sha256(pages).hexdigest()
    assert sent.expires_at is None
    assert sent.created_at.tzinfo is not None
    assert files.find(ALICE, sent.id) == sent
    assert content(files, sent.id) == pages


def test_files_outlive_the_process(tmp_path: Path) -> None:
    sent = open_files(tmp_path).upload(ALICE, "a.jsonl", "batch", [b"{}"])
    again = open_files(tmp_path)
    assert again.find(ALICE, sent.id) == sent
    assert content(again, sent.id) == b"{}"


def test_another_key_neither_sees_nor_deletes_a_file(files: Files) -> None:
    sent = files.upload(ALICE, "a.png", "vision", [b"x"])
    for call in (files.find, files.open, files.delete):
        with pytest.raises(NotFoundError, match="There is no file"):
            call(BOB, sent.id)
    assert files.list_page(BOB, FileQuery(), PageQuery()).items == ()
    with pytest.raises(NotFoundError):
        files.list_page(BOB, FileQuery(), PageQuery(after=sent.id))
    assert files.find(ALICE, sent.id) == sent


def test_a_deleted_file_is_gone_from_disk(files: Files, tmp_path: Path) -> None:
    sent = files.upload(ALICE, "a.png", "vision", [b"x"])
    assert files.store.path(sent.id).is_file()
    files.delete(ALICE, sent.id)
    assert not files.store.path(sent.id).exists()
    with pytest.raises(NotFoundError):
        files.delete(ALICE, sent.id)


@pytest.mark.parametrize("purpose", ["", "fine-tune", "batch_output", "Batch"])
def test_a_purpose_that_is_not_taken_is_refused(files: Files, purpose: str) -> None:
    with pytest.raises(InputError, match="expected one of file-extract, batch, vision"):
        files.upload(ALICE, "a", purpose, [b"x"])


def test_an_upload_is_read_no_further_than_its_limit(tmp_path: Path) -> None:
    files, read = open_files(tmp_path, max_picture_bytes=10), []

    def chunks() -> Iterator[bytes]:
        for number in range(1000):
            read.append(number)
            yield b"12345678"

    with pytest.raises(QuotaError, match="longer than 10 bytes"):
        files.upload(ALICE, "a.png", "vision", chunks())
    assert read == [0, 1]
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []
    assert files.upload(ALICE, "a.png", "vision", [b"0123456789"]).size_bytes == 10


@pytest.mark.parametrize("first", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM"])
def test_a_picture_that_is_to_be_read_has_a_limit_of_its_own(tmp_path: Path, first: bytes) -> None:
    files = open_files(tmp_path, max_picture_bytes=10)
    with pytest.raises(QuotaError, match="longer than 10 bytes"):
        files.upload(ALICE, "a.pdf", "file-extract", [first, b"x" * 10])
    assert files.upload(ALICE, "a.png", "file-extract", [first]).size_bytes == len(first)
    assert files.upload(ALICE, "a.png", "file-extract", [b"%PDF", b"x" * 10]).size_bytes == 14
    assert files.upload(ALICE, "a.jsonl", "batch", [first, b"x" * 10]).size_bytes > 10


def test_an_empty_file_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        files.upload(ALICE, "a.png", "vision", [])
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


def test_an_upload_that_breaks_off_leaves_nothing(files: Files, tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise TimeoutError("the sender went away")

    with pytest.raises(TimeoutError, match="went away"):
        files.upload(ALICE, "a.png", "vision", chunks())
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []
    assert files.list_page(ALICE, FileQuery(), PageQuery()).items == ()


def test_each_key_has_its_own_room(tmp_path: Path) -> None:
    files = open_files(tmp_path, max_files=2, max_total_bytes=100)
    first = files.upload(ALICE, "a", "vision", [b"x" * 60])
    with pytest.raises(QuotaError, match="would take 120 bytes"):
        files.upload(ALICE, "b", "vision", [b"x" * 60])
    files.upload(ALICE, "c", "vision", [b"x"])
    with pytest.raises(QuotaError, match="keeps 2 files"):
        files.upload(ALICE, "d", "vision", [b"x"])
    files.upload(BOB, "e", "vision", [b"x" * 60])
    files.delete(ALICE, first.id)
    files.upload(ALICE, "f", "vision", [b"x" * 60])
    assert len(list((tmp_path / "files").glob("file-*"))) == 3


def test_listing_goes_through_all_files_in_order(files: Files) -> None:
    sent = [files.upload(ALICE, f"{number}", "vision", [b"x"]).id for number in range(5)]
    other = files.upload(ALICE, "o", "batch", [b"x"]).id
    seen: list[str] = []
    while True:
        page = files.list_page(
            ALICE, FileQuery(), PageQuery(after=seen[-1] if seen else None, limit=2)
        )
        seen += [file.id for file in page.items]
        if not page.has_more:
            break
    assert seen == [other, *reversed(sent)]
    oldest = files.list_page(ALICE, FileQuery(), PageQuery(after=sent[2], is_oldest_first=True))
    assert [file.id for file in oldest.items] == [*sent[3:], other]
    batch = files.list_page(ALICE, FileQuery(purpose=FilePurpose.BATCH), PageQuery())
    assert [file.id for file in batch.items] == [other]
    middle = files.find(ALICE, sent[2]).created_at
    chosen = FileQuery(created_from=middle, purpose=FilePurpose.VISION)
    late = files.list_page(ALICE, chosen, PageQuery())
    assert [file.id for file in late.items] == [*reversed(sent[2:])]
    early = files.list_page(ALICE, FileQuery(created_until=middle), PageQuery())
    assert [file.id for file in early.items] == [*reversed(sent[:3])]


def test_a_file_that_has_expired_is_not_found_and_then_swept(tmp_path: Path) -> None:
    files = open_files(tmp_path, batch_keep_s=0)
    kept = files.upload(ALICE, "a.png", "vision", [b"x"])
    gone = files.upload(ALICE, "a.jsonl", "batch", [b"x"])
    with pytest.raises(NotFoundError):
        files.find(ALICE, gone.id)
    assert files.store.path(gone.id).exists()
    assert files.sweep() == 1
    assert not files.store.path(gone.id).exists()
    assert files.ids() == {kept.id}


def test_an_upload_may_ask_for_a_shorter_life(files: Files) -> None:
    sent = files.upload(ALICE, "a.png", "vision", [b"x"], keep_s=7200)
    assert sent.expires_at is not None
    assert (sent.expires_at - sent.created_at).total_seconds() == pytest.approx(7200)
    for seconds in (-1, 10, 10**9):
        with pytest.raises(InputError, match="expires_after"):
            files.upload(ALICE, "a.png", "vision", [b"x"], keep_s=seconds)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\a\\图.png", "图.png"),
        ("a\x00b\nc.png", "abc.png"),
        ("", "file"),
        ("..", ".."),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
    ],
)
def test_names_are_kept_to_be_shown(files: Files, tmp_path: Path, sent: str, shown: str) -> None:
    assert shown_name(sent) == shown
    stored = files.upload(ALICE, sent, "vision", [b"x"])
    assert stored.filename == shown
    assert files.store.path(stored.id).parent == tmp_path / "files"


@pytest.mark.parametrize(
    "file_id", ["../server.sqlite3", "", "a/b", "file-\x00", "file-" + "x" * 99]
)
def test_an_id_that_was_never_made_is_not_found(files: Files, file_id: str) -> None:
    with pytest.raises(NotFoundError):
        files.find(ALICE, file_id)
    with pytest.raises(NotFoundError):
        files.store.path(file_id)


def test_what_a_killed_upload_left_is_swept_when_it_is_old(files: Files, tmp_path: Path) -> None:
    kept = files.upload(ALICE, "a.png", "vision", [b"x"])
    orphan, half = tmp_path / "files" / "file-fe-orphan00", tmp_path / "files/incoming/file-fe-half"
    orphan.write_bytes(b"x")
    half.write_bytes(b"x")
    assert files.store.sweep(files.ids()) == 0
    os.utime(orphan, (0, time.time() - 2 * 86_400))
    os.utime(half, (0, time.time() - 2 * 86_400))
    os.utime(files.store.path(kept.id), (0, 0))
    assert files.store.sweep(files.ids()) == 2
    assert content(files, kept.id) == b"x"


def test_a_linked_content_outlives_the_first(files: Files) -> None:
    sent = files.upload(ALICE, "a.png", "batch", [b"lines"])
    files.store.link(sent.id, "batch_0123456789")
    files.delete(ALICE, sent.id)
    with files.store.open("batch_0123456789") as file:
        assert file.read() == b"lines"
    with pytest.raises(NotFoundError):
        files.store.link(sent.id, "batch_9876543210")
