"""Files, tokens and models in DashScope's words, on the wire."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from qianyan.engine.engine import Engine

OTHER = {"authorization": "Bearer sk-test-9876543210"}
FILES = "/api/v1/files"
Serve = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with serve(state_folder=tmp_path_factory.mktemp("state")) as one:
        yield one


def upload(client: httpx2.Client, *contents: tuple[str, bytes], **fields: Any) -> dict[str, Any]:
    files = [("files", one) for one in contents]
    answer = client.post(FILES, files=files, data=fields)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def test_files_go_up_are_shown_read_and_deleted(client: httpx2.Client) -> None:
    data = upload(
        client, ("../规程.txt", b"heron-42"), ("b.txt", b"bb"), descriptions=["rules", "more"]
    )
    assert data["failed_uploads"] == []
    assert [one["name"] for one in data["uploaded_files"]] == ["规程.txt", "b.txt"]
    first, second = (one["file_id"] for one in data["uploaded_files"])
    shown = client.get(f"{FILES}/{first}").json()["data"]
    assert (shown["name"], shown["description"], shown["size"]) == ("规程.txt", "rules", 8)
    assert shown["purpose"] == "file-extract"
    digest = hashlib.md5(b"heron-42", usedforsecurity=False).digest()
    assert base64.b64decode(shown["md5"]) == digest
    assert client.get(shown["url"]).content == b"heron-42"
    assert client.get(f"/v1/files/{first}").json()["filename"] == "规程.txt"
    gone = client.delete(f"{FILES}/{first}")
    assert (gone.status_code, set(gone.json())) == (200, {"request_id"})
    assert client.get(f"{FILES}/{first}").status_code == 400
    assert client.get(f"{FILES}/{second}").status_code == 200


def test_what_cannot_be_kept_is_named_beside_the_others(client: httpx2.Client) -> None:
    data = upload(client, ("good.txt", b"good"), ("empty.txt", b""))
    assert [one["name"] for one in data["uploaded_files"]] == ["good.txt"]
    (failed,) = data["failed_uploads"]
    assert (failed["name"], failed["code"]) == ("empty.txt", "InvalidParameter")
    assert "empty" in failed["message"]
    for sent in ({"json": {}}, {"files": {"other": b"x"}}):
        refused = client.post(FILES, **sent)  # type: ignore[arg-type]
        assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")
    many = client.post(FILES, files=[("files", ("a.txt", b"x"))] * 11)
    bare = client.post(FILES, content=b"x", headers={"content-type": "multipart/form-data"})
    for refused in (many, bare):
        assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")
        assert "at most 10 files and at most 32 other fields" in refused.json()["message"]
    wrong = client.post(FILES, files={"files": b"x"}, data={"purpose": "steal"})
    assert wrong.status_code == 400


def test_lists_turn_pages_and_show_own_files_only(serve: Serve, tmp_path_factory: Any) -> None:
    with serve(state_folder=tmp_path_factory.mktemp("own")) as client:
        for number in range(3):
            upload(client, (f"{number}.txt", b"x"))
        pages = [
            client.get(FILES, params={"page_no": number, "page_size": 2}).json()["data"]
            for number in (1, 2)
        ]
        names = [[one["name"] for one in page["files"]] for page in pages]
        assert names == [["2.txt", "1.txt"], ["0.txt"]]
        assert [page["total"] for page in pages] == [3, 3]
        assert client.get(FILES, headers=OTHER).json()["data"]["files"] == []
        assert client.get(FILES, params={"page_size": 0}).status_code == 400


def test_another_key_s_file_is_not_found(client: httpx2.Client) -> None:
    data = upload(client, ("a.txt", b"x"))
    file_id = data["uploaded_files"][0]["file_id"]
    for ask in (client.get, client.delete):
        refused = ask(f"{FILES}/{file_id}", headers=OTHER)
        assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")
        assert refused.json()["message"].startswith("File not found")
    assert client.get(f"{FILES}/{file_id}/content", headers=OTHER).status_code == 400


def count(client: httpx2.Client, sent: dict[str, Any]) -> httpx2.Response:
    return client.post("/api/v1/tokenizer", json={"model": "judge", "input": sent})


def test_a_prompt_is_taken_apart_as_it_is(client: httpx2.Client, engine: Engine) -> None:
    answer = count(client, {"prompt": "安全帽 helmet"}).json()
    tokenizer = engine.processor.tokenizer
    assert answer["output"]["token_ids"] == tokenizer.encode("安全帽 helmet")
    assert len(answer["output"]["tokens"]) == answer["usage"]["input_tokens"]
    assert answer["request_id"]


def test_messages_are_counted_as_the_model_reads_them(
    client: httpx2.Client, engine: Engine
) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = count(client, {"messages": messages}).json()
    assert answer["output"]["token_ids"] == engine.chat(messages, max_tokens=1).prompt_token_ids
    parts = [{"role": "user", "content": [{"text": "hello"}]}]
    assert count(client, {"messages": parts}).json()["output"] == answer["output"]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({}, 400, "BadRequest.EmptyInput"),
        ({"messages": [{"role": "user", "content": [{"image": "x"}]}]}, 400, "InvalidParameter"),
        ({"prompt": "x" * 1_000_001}, 413, "RequestTooLarge"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "InvalidParameter"),
        ({"messages": [{"content": None}]}, 400, "InvalidParameter"),
    ],
)
def test_what_is_no_text_is_refused(
    client: httpx2.Client, sent: dict[str, Any], status: int, code: str
) -> None:
    refused = count(client, sent)
    assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text


def test_models_are_listed_page_by_page_and_chosen_by_name(client: httpx2.Client) -> None:
    def listed(**asked: Any) -> dict[str, Any]:
        output: dict[str, Any] = client.get("/api/v1/models", params=asked).json()["output"]
        return output

    assert [one["model"] for one in listed()["models"]] == ["judge", "qwen-plus"]
    second = listed(page_no=2, page_size=1)
    assert ([one["model"] for one in second["models"]], second["total"]) == (["qwen-plus"], 2)
    assert (second["page_no"], second["page_size"]) == (2, 1)
    assert [one["model"] for one in listed(model="judge")["models"]] == ["judge"]
    assert listed(model="gpt-4o")["models"] == []
