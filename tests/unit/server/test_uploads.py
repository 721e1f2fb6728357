"""Uploads for requests: room, time, and what stands in messages in place of their URLs."""

import time
from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import MediaError
from qianyan.server.asking import Asked, asking
from qianyan.server.database import QuotaError, open_database
from qianyan.server.errors import RefusedError
from qianyan.server.files import FileLimits, Files
from qianyan.server.store import ContentStore
from qianyan.server.uploads import UploadLimits, Uploads

ALICE, BOB = "a1" * 32, "b0" * 32


def open_uploads(folder: Path, *, policy_s: int = 300, **limits: int) -> Uploads:
    database = open_database(folder)
    files = Files(database, ContentStore(folder / "files"), FileLimits(**limits))
    return Uploads(database, files, UploadLimits(policy_s=policy_s))


def keep(uploads: Uploads, content: bytes = b"x", name: str = "a.png", owner: str = ALICE) -> str:
    policy = uploads.permit(owner)
    assert uploads.check(policy.text, policy.signature) == (owner, policy.folder)
    key = f"{policy.folder}/{name}"
    uploads.keep(owner, key, policy.folder, [content])
    return f"oss://{key}"


def contents(folder: Path) -> list[Path]:
    return [one for one in (folder / "files").iterdir() if one.is_file()]


def test_an_upload_has_room_or_leaves_nothing(tmp_path: Path) -> None:
    uploads = open_uploads(tmp_path, max_request_bytes=10, max_total_bytes=12)
    keep(uploads, b"x" * 8)
    for content, words in ((b"x" * 11, "longer than 10 bytes"), (b"x" * 5, "at most 12")):
        with pytest.raises(QuotaError, match=words):
            keep(uploads, content)
    assert len(contents(tmp_path)) == 1
    keep(uploads, b"x" * 8, owner=BOB)


def test_the_same_file_again_is_kept_once(tmp_path: Path) -> None:
    uploads = open_uploads(tmp_path)
    policy = uploads.permit(ALICE)
    key = f"{policy.folder}/a.png"
    first, again = (uploads.keep(ALICE, key, policy.folder, [b"x"]) for _ in range(2))
    assert first == again
    with pytest.raises(RefusedError, match="Another file") as caught:
        uploads.keep(ALICE, key, policy.folder, [b"y"])
    assert caught.value.status == 409
    assert len(contents(tmp_path)) == 1


def test_uploads_and_policies_end(tmp_path: Path) -> None:
    uploads = open_uploads(tmp_path, policy_s=-1, request_keep_s=1)
    policy = uploads.permit(ALICE)
    with pytest.raises(RefusedError, match="is over"):
        uploads.check(policy.text, policy.signature)
    uploads.keep(ALICE, f"{policy.folder}/a.png", policy.folder, [b"x"])
    url = f"oss://{policy.folder}/a.png"
    assert uploads.find(ALICE, url).size_bytes == 1
    time.sleep(1.05)
    with pytest.raises(MediaError, match="There is no upload"):
        uploads.find(ALICE, url)
    assert uploads._files.sweep() == 1
    assert contents(tmp_path) == []


def test_a_policy_of_another_process_opens_nothing(tmp_path: Path) -> None:
    policy = open_uploads(tmp_path).permit(ALICE)
    with pytest.raises(RefusedError, match="not one of this server") as caught:
        open_uploads(tmp_path).check(policy.text, policy.signature)
    assert caught.value.status == 403


def attached(uploads: Uploads, part: Any, owner: str = ALICE) -> Any:
    with asking(Asked(owner_id=owner)):
        (message,) = uploads.attach([{"role": "user", "content": [part]}])
    return message["content"][0]


def test_files_stand_in_place_of_their_urls(tmp_path: Path) -> None:
    uploads = open_uploads(tmp_path)
    url = keep(uploads, name="规程.pdf")
    path = uploads._files.store.path(uploads.find(ALICE, url).id)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (
            {"type": "image_url", "image_url": {"url": url, "detail": "high"}, "max_pixels": 9},
            {"type": "image", "image": path, "max_pixels": 9},
        ),
        ({"type": "image_url", "image_url": url}, {"type": "image", "image": path}),
        ({"type": "image", "image": url}, {"type": "image", "image": path}),
        (
            {"type": "video_url", "video_url": {"url": url}, "fps": 2},
            {"type": "video", "video": path, "fps": 2},
        ),
        (
            {"type": "video", "video": [url, "https://example.com/b.png"]},
            {"type": "video", "video": [path, "https://example.com/b.png"]},
        ),
        (
            {"type": "file", "file": {"file_data": url, "pages": "1"}},
            {"type": "file", "file": {"file_data": path, "pages": "1", "filename": "规程.pdf"}},
        ),
        (
            {"type": "file", "file": url},
            {"type": "file", "file": {"file_data": path, "filename": "规程.pdf"}},
        ),
    ]
    for part, expected in cases:
        assert attached(uploads, part) == expected
        assert attached(uploads, expected) == expected
        with pytest.raises(MediaError):
            attached(uploads, part, BOB)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "oss://a/b"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image", "image": None},
        {"type": "file", "file": {"file_id": "file-fe-1"}},
        "oss://a/b",
        None,
    ],
)
def test_everything_else_stays_as_it_is(tmp_path: Path, part: Any) -> None:
    assert attached(open_uploads(tmp_path), part) == part
    plain = {"role": "user", "content": "oss://a/b"}
    assert open_uploads(tmp_path).attach([plain]) == [plain]
