"""DashScope's tasks on the wire: given, fetched, listed, cancelled, and nobody else's."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from qianyan.engine.engine import Engine

SERVICES = "/api/v1/services/aigc"
TEXT = f"{SERVICES}/text-generation/generation"
PARTS = f"{SERVICES}/multimodal-generation/generation"
LATER = {"x-dashscope-async": "enable"}
OTHER = {"authorization": "Bearer sk-test-9876543210"}
HELLO = [{"role": "user", "content": "hello"}]
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")
Serve = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with serve(state_folder=tmp_path_factory.mktemp("state")) as one:
        yield one


def ask(client: httpx2.Client, path: str = TEXT, **parameters: Any) -> httpx2.Response:
    parameters = {"max_tokens": 6, "temperature": 0, **parameters}
    body = {"model": "judge", "input": {"messages": HELLO}, "parameters": parameters}
    return client.post(path, json=body, headers=LATER)


def submit(client: httpx2.Client, path: str = TEXT, **parameters: Any) -> str:
    answer = ask(client, path, **parameters)
    assert answer.status_code == 200, answer.text
    given = answer.json()
    assert given["request_id"] == answer.headers["x-request-id"]
    assert set(given["output"]) == {"task_id", "task_status"}
    assert given["output"]["task_status"] == "PENDING"
    task_id: str = given["output"]["task_id"]
    return task_id


def fetch(client: httpx2.Client, task_id: str, **how: Any) -> dict[str, Any]:
    answer = client.get(f"/api/v1/tasks/{task_id}", **how)
    assert answer.status_code == 200
    shown: dict[str, Any] = answer.json()
    return shown


def wait(client: httpx2.Client, task_id: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (shown := fetch(client, task_id))["output"]["task_status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < end, shown
        time.sleep(0.05)
    return shown


@pytest.mark.parametrize(("path", "content"), [(TEXT, str), (PARTS, list)])
def test_a_task_holds_what_the_answer_at_once_does(
    client: httpx2.Client, engine: Engine, path: str, content: type
) -> None:
    done = wait(client, submit(client, path, result_format="message"))
    output = done["output"]
    assert output["task_status"] == "SUCCEEDED"
    assert output["task_metrics"] == {"TOTAL": 1, "SUCCEEDED": 1, "FAILED": 0}
    (choice,) = output["choices"]
    said = choice["message"]["content"]
    text = engine.chat(HELLO, max_tokens=6, temperature=0).text
    assert isinstance(said, content)
    assert (said if isinstance(said, str) else said[0]["text"]) == text
    assert done["usage"]["output_tokens"] == 6
    times = [output[name] for name in ("submit_time", "scheduled_time", "end_time")]
    assert all(TIME.fullmatch(one) for one in times)
    assert times == sorted(times)
    beijing = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=8)
    assert abs(datetime.fromisoformat(times[0]) - beijing) < timedelta(minutes=5)


def test_a_request_that_cannot_be_answered_is_refused_at_once(client: httpx2.Client) -> None:
    refused = ask(client, n=99)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")
    body = {"model": "gpt-4o", "input": {"messages": HELLO}}
    missing = client.post(TEXT, json=body, headers=LATER)
    assert (missing.status_code, missing.json()["code"]) == (404, "ModelNotFound")


def test_a_task_that_fails_says_why_with_200(client: httpx2.Client) -> None:
    content = [{"image": "http://127.0.0.1:1/a.png"}, {"text": "?"}]
    body = {"model": "judge", "input": {"messages": [{"role": "user", "content": content}]}}
    given = client.post(PARTS, json=body, headers=LATER).json()
    failed = wait(client, given["output"]["task_id"])
    assert "code" not in failed
    assert failed["output"]["task_status"] == "FAILED"
    assert failed["output"]["code"] == "InvalidURL"
    assert failed["output"]["message"].endswith(".")
    assert failed["output"]["task_metrics"] == {"TOTAL": 1, "SUCCEEDED": 0, "FAILED": 1}


def test_ids_that_nobody_has_and_those_of_others_are_unknown(client: httpx2.Client) -> None:
    task_id = submit(client)
    assert fetch(client, "1111")["output"] == {"task_id": "1111", "task_status": "UNKNOWN"}
    theirs = fetch(client, task_id, headers=OTHER)
    assert theirs["output"] == {"task_id": task_id, "task_status": "UNKNOWN"}
    for headers in ({}, OTHER):
        wait(client, task_id)
        refused = client.post(f"/api/v1/tasks/{task_id}/cancel", headers=headers)
        assert refused.status_code == 400
        error = refused.json()
        assert error["code"] == "UnsupportedOperation"
        assert "please confirm if the task is in PENDING status" in error["message"]
    assert client.get("/api/v1/tasks", headers=OTHER).json()["total"] == 0


def test_a_task_in_line_is_cancelled(client: httpx2.Client) -> None:
    long = {"response_format": {"type": "json_schema", "json_schema": {
        "name": "long", "schema": {"type": "string", "minLength": 5000}}}}  # fmt: skip
    sent = [submit(client, max_tokens=100, **long) for _ in range(6)]
    answer = client.post(f"/api/v1/tasks/{sent[-1]}/cancel")
    assert (answer.status_code, set(answer.json())) == (200, {"request_id"})
    assert fetch(client, sent[-1])["output"]["task_status"] == "CANCELED"
    assert [wait(client, one)["output"]["task_status"] for one in sent[:-1]] == ["SUCCEEDED"] * 5


def test_lists_choose_and_turn_pages(serve: Serve, tmp_path_factory: Any) -> None:
    with serve(state_folder=tmp_path_factory.mktemp("own")) as client:
        sent = [submit(client) for _ in range(3)]
        for one in sent:
            wait(client, one)
        pages = [
            client.get("/api/v1/tasks", params={"page_no": number, "page_size": 2}).json()
            for number in (1, 2)
        ]
        assert [page["total"] for page in pages] == [3, 3]
        assert [page["total_page"] for page in pages] == [2, 2]
        assert [one["task_id"] for page in pages for one in page["data"]] == sent[::-1]
        assert [one["task_id"] for page in pages for one in page["tasks"]] == sent[::-1]
        first = pages[0]["data"][0]
        assert (first["status"], first["model_name"]) == ("SUCCEEDED", "judge")
        assert first["gmt_create"] <= first["start_time"] <= first["end_time"]
        assert first["request_id"]
        for chosen, total in (
            ({"status": "FAILED"}, 0),
            ({"status": "SUCCEEDED", "model_name": "judge"}, 3),
            ({"model_name": "other"}, 0),
            ({"start_time": "20200101000000"}, 3),
            ({"end_time": "20200101000000"}, 0),
        ):
            assert client.get("/api/v1/tasks", params=chosen).json()["total"] == total, chosen
        for wrong in ({"start_time": "yesterday"}, {"status": "DONE"}, {"page_no": 0}):
            refused = client.get("/api/v1/tasks", params=wrong)
            assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")


def test_a_server_without_a_state_folder_says_so(serve: Serve) -> None:
    with serve() as client:
        refused = ask(client)
    assert refused.status_code == 501
    assert "state folder" in refused.json()["message"]
