"""Messages of clients become the engine's, and none of them names a file of this machine."""

from typing import Any

import pytest

from qianyan.errors import InputError
from qianyan.server.openai_messages import to_messages

URL = "https://example.com/a.jpg"
PNG = "data:image/png;base64,iVBORw0KGgo="


def part_of(part: dict[str, Any], **options: Any) -> dict[str, Any]:
    message = {"role": "user", "content": [part]}
    (rebuilt,) = to_messages([message], max_pixels=1000, **options)
    found: dict[str, Any] = rebuilt["content"][0]
    return found


def test_what_a_client_sends_back_of_a_reply_is_taken() -> None:
    reply = {"role": "assistant", "content": "yes", "refusal": None, "annotations": []}
    assert to_messages([reply], max_pixels=None) == [{"role": "assistant", "content": "yes"}]


def test_a_developer_is_the_system() -> None:
    assert to_messages([{"role": "developer", "content": "x"}], max_pixels=None) == [
        {"role": "system", "content": "x"}
    ]


def test_hints_stand_beside_the_picture_or_inside() -> None:
    inside = {"type": "image_url", "image_url": {"url": URL, "detail": "high", "max_pixels": 500}}
    beside = {"type": "image_url", "image_url": {"url": URL, "detail": "high"}, "max_pixels": 500}
    assert part_of(inside) == part_of(beside) == beside


def test_hints_beyond_the_limit_mean_the_limit() -> None:
    part = {"type": "image_url", "image_url": URL, "max_pixels": 10**9, "min_pixels": 10**8}
    assert part_of(part) == {
        "type": "image_url", "image_url": URL, "max_pixels": 1000, "min_pixels": 1000
    }  # fmt: skip


def test_high_resolution_sets_aside_what_a_picture_asks_for() -> None:
    part = {"type": "image_url", "image_url": URL, "max_pixels": 500}
    assert "max_pixels" not in part_of(part, keeps_detail=True)


def test_cache_marks_and_rotation_are_taken_off() -> None:
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    assert part_of(part) == {"type": "text", "text": "x"}
    turned = {"type": "image_url", "image_url": URL, "enable_rotate": True}
    assert part_of(turned) == {"type": "image_url", "image_url": URL}


def test_hints_of_a_video_stand_inside_too() -> None:
    part = {"type": "video_url", "video_url": {"url": URL, "fps": 1, "total_pixels": 9}}
    assert part_of(part) == {
        "type": "video_url", "video_url": {"url": URL}, "fps": 1, "total_pixels": 9
    }  # fmt: skip


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "photo.jpg", "../a.png", "~/a.png",
     "C:\\a.png", "\\\\host\\a.png", "ftp://example.com/a.png", " /etc/passwd",
     "http:/etc/passwd", "httpx://example.com", "gopher://127.0.0.1:70/"],
)  # fmt: skip
@pytest.mark.parametrize(
    "shape",
    [
        lambda path: {"type": "image_url", "image_url": {"url": path}},
        lambda path: {"type": "image_url", "image_url": path},
        lambda path: {"type": "image", "image": path},
        lambda path: {"type": "video_url", "video_url": {"url": path}},
        lambda path: {"type": "video", "video": path},
        lambda path: {"type": "video", "video": [URL, path]},
        lambda path: {"type": "file", "file": {"file_data": path}},
        lambda path: {"type": "file", "file": path},
    ],
)
def test_no_source_is_a_local_path(shape: Any, path: str) -> None:
    with pytest.raises(InputError, match="expected an http or https URL or a data: URI"):
        part_of(shape(path))


@pytest.mark.parametrize("source", [URL, PNG, "HTTPS://EXAMPLE.COM/a.jpg"])
def test_urls_and_data_are_passed_on(source: str) -> None:
    part = {"type": "video", "video": [source, source]}
    assert part_of(part) == part


def test_a_document_s_empty_fields_are_taken_off_and_it_has_one_source() -> None:
    document = {"type": "file", "file": {"file_data": PNG, "filename": "a.png", "file_id": None}}
    assert part_of(document)["file"] == {"file_data": PNG, "filename": "a.png"}
    assert part_of({"type": "file", "file": {"file_id": "file-fe-1"}})["file"] == {
        "file_id": "file-fe-1"
    }
    with pytest.raises(InputError, match="file_id and file_data"):
        part_of({"type": "file", "file": {"file_id": "file-fe-1", "file_data": PNG}})
    for wrong in ({"pages": 3}, {"pages": "1", "is_text": True}):
        with pytest.raises(InputError):
            part_of({"type": "file", "file": {"file_id": "file-fe-1", **wrong}})


def named(*ids: str) -> dict[str, Any]:
    return {"role": "system", "content": ",".join(f"fileid://{one}" for one in ids)}


def test_documents_that_system_messages_name_stand_before_the_users_first_words() -> None:
    asked = [
        {"role": "system", "content": "Be brief."},
        named("file-fe-a", "file-fe-b", "file-fe-a"),
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "Why?"},
    ]
    role, first, *rest = to_messages(asked, max_pixels=None)
    assert role == asked[0]
    assert first == {
        "role": "user",
        "content": [
            {"type": "file", "file": {"file_id": "file-fe-a"}},
            {"type": "file", "file": {"file_id": "file-fe-b"}},
            {"type": "text", "text": "What?"},
        ],
    }
    assert rest == asked[3:]


def test_what_a_user_writes_names_no_document() -> None:
    asked = [{"role": "user", "content": "fileid://file-fe-a"}]
    assert to_messages(asked, max_pixels=None) == asked
