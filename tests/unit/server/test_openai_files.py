"""/files and /batches with OpenAI's own client against a real server."""

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from qianyan.engine.engine import Engine

KEY, OTHER_KEY = "sk-test-0123456789", "sk-test-9876543210"
Serve = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture(scope="module")
def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("state")
    with serve(state_folder=folder, max_body_bytes=10_000) as client:
        yield client


@pytest.fixture
def client(served: httpx2.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=KEY, max_retries=0) as one:
        yield one


@pytest.fixture
def other(served: httpx2.Client) -> Iterator[openai.OpenAI]:
    url = f"{served.base_url}/compatible-mode/v1"
    with openai.OpenAI(base_url=url, api_key=OTHER_KEY, max_retries=0) as one:
        yield one


def request(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    whole = {"model": "judge", "messages": [{"role": "user", "content": text}], **body}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": whole,
    }


def upload(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    text = "\n".join(json.dumps(line) for line in lines)
    return client.files.create(file=("in.jsonl", text.encode()), purpose="batch").id


def wait(client: openai.OpenAI, batch_id: str) -> Any:
    end = time.monotonic() + 100
    unfinished = ("validating", "in_progress", "finalizing")
    while (batch := client.batches.retrieve(batch_id)).status in unfinished:
        assert time.monotonic() < end, batch
        time.sleep(0.1)
    return batch


def read_lines(client: openai.OpenAI, file_id: str) -> list[Any]:
    return [json.loads(line) for line in client.files.content(file_id).text.split("\n")[:-1]]


def test_a_file_goes_up_and_comes_down(client: openai.OpenAI) -> None:
    content = bytes(range(256)) * 400  # larger than other bodies may be here
    sent = client.files.create(
        file=("../现场.png", content),
        purpose="vision",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (sent.object, sent.bytes, sent.filename) == ("file", len(content), "现场.png")
    assert (sent.purpose, sent.status) == ("vision", "processed")
    assert sent.expires_at is not None
    assert 3599 <= sent.expires_at - sent.created_at <= 3601
    assert client.files.retrieve(sent.id) == sent
    assert sent.id in [file.id for file in client.files.list(purpose="vision")]
    down = client.files.content(sent.id)
    assert down.content == content
    assert down.response.headers["content-type"] == "application/octet-stream"
    assert client.files.delete(sent.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(sent.id)


def test_the_client_goes_through_all_pages(client: openai.OpenAI) -> None:
    sent = [client.files.create(file=io.BytesIO(b"x"), purpose="vision").id for _ in range(3)]
    listed = client.files.list(purpose="vision", limit=1, order="asc")
    assert [file.id for file in listed][-3:] == sent


def test_another_key_finds_none_of_it(client: openai.OpenAI, other: openai.OpenAI) -> None:
    sent = client.files.create(file=b"x", purpose="vision")
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(sent.id)
        assert caught.value.code == "not_found"
    assert client.files.retrieve(sent.id).id == sent.id


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"data": {"purpose": "vision"}}, 400),
        ({"data": {"purpose": "vision"}, "files": {"other": b"x"}}, 400),
        ({"data": {"purpose": "nothing"}, "files": {"file": b"x"}}, 400),
        ({"files": {"file": b"x"}}, 400),
        ({"data": {"purpose": "vision"}, "files": {"file": b""}}, 400),
        ({"json": {"purpose": "vision"}}, 400),
        (
            {
                "content": b"--x\r\nbroken",
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            400,
        ),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        (
            {
                "data": {"purpose": "vision", "expires_after[seconds]": "-1"},
                "files": {"file": b"x"},
            },
            400,
        ),
    ],
)
def test_a_form_that_is_none_is_refused(
    served: httpx2.Client, sent: dict[str, Any], status: int
) -> None:
    answer = served.post("/v1/files", **sent)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/files/x/content"])
def test_without_a_key_nothing_is_answered(served: httpx2.Client, path: str) -> None:
    assert httpx2.get(f"{served.base_url}{path}").status_code == 401


def test_a_server_that_keeps_nothing_says_so(serve: Serve) -> None:
    with serve() as client:
        answer = client.get("/v1/files")
    assert answer.status_code == 501
    assert answer.json()["error"]["code"] == "nothing_kept"


def test_a_batch_is_answered_by_the_model(client: openai.OpenAI, engine: Engine) -> None:
    lines = [
        request("a", "hello", max_tokens=4),
        request("b", "fire", max_tokens=3),
        request("c", "hello", temperature=7),
        request("d", "hello", messages="none"),
    ]
    batch = client.batches.create(
        input_file_id=upload(client, lines),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"ds_name": "夜班"},
    )
    assert (batch.object, batch.status) == ("batch", "validating")
    done = wait(client, batch.id)
    assert done.status == "completed", done
    assert done.metadata == {"ds_name": "夜班"}
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)
    good = [
        json.loads(line) for line in client.files.content(done.output_file_id).text.split("\n")[:-1]
    ]
    texts = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
        for line in good
    }
    for custom_id, text, tokens in (("a", "hello", 4), ("b", "fire", 3)):
        alone = engine.chat([{"role": "user", "content": text}], max_tokens=tokens)
        assert texts.pop(custom_id) == alone.text
    assert texts == {}
    bad = read_lines(client, done.error_file_id)
    errors = {line["custom_id"]: line["error"] for line in bad}
    assert set(errors) == {"c", "d"}
    assert all(error["code"] and error["message"] for error in errors.values())
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"


def test_a_batch_with_a_bad_line_fails_with_its_number(client: openai.OpenAI) -> None:
    file_id = upload(client, [request("a", "x"), request("a", "y")])
    batch = client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    failed = wait(client, batch.id)
    assert failed.status == "failed"
    assert [(error.code, error.line) for error in failed.errors.data] == [
        ("duplicate_custom_id", 2)
    ]


def test_a_batch_is_cancelled_listed_and_hidden(
    client: openai.OpenAI, other: openai.OpenAI
) -> None:
    file_id = upload(client, [request(f"{n}", "hello", max_tokens=40) for n in range(40)])
    batch = client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    assert batch.id in [one.id for one in client.batches.list(limit=1)]
    with pytest.raises(openai.NotFoundError):
        other.batches.retrieve(batch.id)
    with pytest.raises(openai.NotFoundError):
        other.batches.cancel(batch.id)
    assert batch.id not in [one.id for one in other.batches.list()]
    end = time.monotonic() + 100
    while (done := client.batches.retrieve(batch.id)).status == "cancelling":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert done.status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        client.batches.cancel(batch.id)


def test_files_outlive_the_server(serve: Serve, tmp_path: Path) -> None:
    with serve(state_folder=tmp_path) as client:
        form = {"data": {"purpose": "vision"}, "files": {"file": ("a.png", b"pixels")}}
        file_id = client.post("/v1/files", **form).json()["id"]
    with serve(state_folder=tmp_path) as client:
        assert client.get(f"/v1/files/{file_id}/content").content == b"pixels"
