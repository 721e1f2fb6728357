"""Uploads against a key's room: refused before they are read, or while they come in."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest

from qianyan.server.files import FileLimits
from qianyan.server.forms import FORM_BYTES
from qianyan.server.settings import KeepingLimits

from .conftest import KEY, Served

ROOM = 5_000
PATHS = ("/v1/files", "/api/v1/files")
FIELDS = {"/v1/files": "file", "/api/v1/files": "files"}
PURPOSE = {"purpose": "file-extract"}


@pytest.fixture(scope="module")
def client(serve: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client whose key may keep few bytes."""
    keeping = KeepingLimits(files=FileLimits(max_total_bytes=ROOM, max_files=3))
    with serve(state_folder=tmp_path_factory.mktemp("state"), keeping=keeping) as one:
        yield one


def form(field: str, num_bytes: int, name: str = "a.txt") -> dict[str, tuple[str, bytes]]:
    return {field: (name, b"a" * num_bytes)}


def total_bytes(client: httpx2.Client) -> int:
    return sum(one["bytes"] for one in client.get("/v1/files").json()["data"])


def empty(client: httpx2.Client) -> None:
    for one in client.get("/v1/files").json()["data"]:
        assert client.delete(f"/v1/files/{one['id']}").status_code == 200


def answer_to(client: httpx2.Client, path: str, length: str, body: bytes) -> bytes:
    """Send the head of an upload and what is given of its body, and wait for an answer."""
    where = urlsplit(str(client.base_url))
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nhost: {where.netloc}\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: multipart/form-data; boundary=b\r\n{length}\r\n\r\n".encode()
        )
        connection.sendall(body)
        answer = b""
        while b"}" not in answer and (piece := connection.recv(65_536)):  # head and body may part
            answer += piece
        return answer


@pytest.mark.parametrize("path", PATHS)
def test_a_file_beyond_the_room_is_refused_by_its_stated_length(
    path: str, client: httpx2.Client
) -> None:
    """The answer comes although not one byte of the body was sent."""
    answer = answer_to(client, path, f"content-length: {ROOM + FORM_BYTES + 1}", b"")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert f"{ROOM} bytes that this key may still keep".encode() in answer


@pytest.mark.parametrize("path", PATHS)
def test_a_file_of_no_stated_length_is_refused_while_it_comes_in(
    path: str, client: httpx2.Client
) -> None:
    """The answer comes although the body has not ended."""
    field = f'content-disposition: form-data; name="{FIELDS[path]}"; filename="a.txt"'
    part = f"--b\r\n{field}\r\n\r\n".encode() + b"a" * (ROOM + FORM_BYTES)
    chunk = f"{len(part):x}\r\n".encode() + part + b"\r\n"
    answer = answer_to(client, path, "transfer-encoding: chunked", chunk)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"quota_exceeded" in answer or b"may still keep" in answer
    assert total_bytes(client) == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_file_within_the_room_is_kept_and_the_next_one_is_not(
    path: str, client: httpx2.Client
) -> None:
    try:
        assert client.post(path, files=form(FIELDS[path], ROOM), data=PURPOSE).is_success
        full = client.post(path, files=form(FIELDS[path], 1), data=PURPOSE)
        if path == "/v1/files":
            assert full.status_code == 413
        else:  # which names what it cannot keep
            assert full.json()["data"]["uploaded_files"] == []
        assert "would take 5001 bytes" in full.text
        assert total_bytes(client) == ROOM
    finally:
        empty(client)


def test_an_upload_for_a_request_is_refused_by_its_length_too(client: httpx2.Client) -> None:
    asked = client.get("/api/v1/uploads", params={"action": "getPolicy", "model": "judge"})
    policy = asked.json()["data"]
    fields = {"key": f"{policy['upload_dir']}/a.txt"}
    large = form("file", ROOM + FORM_BYTES + 1)
    sink = policy["upload_host"]
    with httpx2.Client(timeout=60) as stranger:
        refused = stranger.post(sink, data=fields, files=large)
        assert refused.status_code == 413
        assert "may still keep" in refused.text
        assert stranger.post(sink, data=fields, files=form("file", 10)).is_success
