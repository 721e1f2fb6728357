"""What `qianyan serve` keeps for Bailian's SDK: tasks, files and uploads, also after kill -9."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from tests.served import serving

dashscope = pytest.importorskip("dashscope", reason="Bailian's SDK is not installed")
from dashscope.api_entities.http_request import close_shared_sync_session  # noqa: E402
from dashscope.client.base_api import BaseAsyncApi  # noqa: E402
from dashscope.utils.oss_utils import OssUtils  # noqa: E402
from dashscope.v2.errors import NotFoundError  # noqa: E402
from dashscope.v2.resources._jobs import Jobs  # noqa: E402

KEY, OTHER_KEY = "sk-e2e-0123456789", "sk-e2e-9876543210"
HELLO = [{"role": "user", "content": "hello"}]
HOW: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
LATER = {"X-DashScope-Async": "enable"}
LONG = {
    "type": "json_schema",
    "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 5000}},
}

pytestmark = pytest.mark.filterwarnings("default")  # the SDK's own are not ours to end tests with


@contextmanager
def serving_two_keys(state: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, with its address."""
    keys = {"QIANYAN_API_KEYS": f"{KEY} {OTHER_KEY}"}
    with serving(state, "--served-name", "qwen-plus", *options, **keys) as both:
        try:
            yield both
        finally:
            close_shared_sync_session()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_two_keys(tmp_path_factory.mktemp("state")) as (_, address):
        yield f"{address}/api/v1"


@pytest.fixture
def use(api: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lead the calls of 1.x to an API, at first to the one that all tests share."""

    def lead(to: str) -> None:
        monkeypatch.setattr(dashscope, "base_http_api_url", to)
        monkeypatch.setattr(dashscope, "api_key", KEY)

    lead(api)
    return lead


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "现场 1.png"
    Image.new("RGB", (120, 90), (200, 20, 20)).save(path)
    return path


def submit(**how: Any) -> Any:
    given = dashscope.Generation.call("qwen-plus", messages=HELLO, headers=LATER, **{**HOW, **how})
    assert given.status_code == 200, given
    assert given.output["task_status"] == "PENDING"
    return given.output["task_id"]


@pytest.mark.usefixtures("use")
def test_a_task_of_1_x_is_waited_for_listed_and_not_cancelled_after_its_end() -> None:
    at_once = dashscope.Generation.call("qwen-plus", messages=HELLO, result_format="message", **HOW)
    task_id = submit(result_format="message")
    done = BaseAsyncApi.wait(task_id)
    assert (done.status_code, done.output["task_status"]) == (200, "SUCCEEDED")
    assert done.output["choices"] == at_once.output["choices"]
    assert done.usage["output_tokens"] == at_once.usage.output_tokens
    assert BaseAsyncApi.fetch(task_id).output == done.output
    listed = BaseAsyncApi.list(status="SUCCEEDED", model_name="qwen-plus", page_size=50)
    assert task_id in [one["task_id"] for one in listed.output["data"]]
    over = BaseAsyncApi.cancel(task_id)
    assert (over.status_code, over.code) == (400, "UnsupportedOperation")
    stranger = BaseAsyncApi.fetch(task_id, api_key=OTHER_KEY)
    assert (stranger.status_code, stranger.output["task_status"]) == (200, "UNKNOWN")


def test_a_job_of_2_0_is_created_waited_for_and_listed(api: str) -> None:
    with dashscope.Client(api_key=KEY, base_url=api) as client:
        jobs = Jobs(client, "aigc/text-generation/generation")
        job = jobs.create(model="qwen-plus", input={"messages": HELLO}, parameters=HOW)
        assert job.status == "PENDING"
        done = jobs.wait(job, poll_interval=0.1)
        assert done.succeeded
        assert done.output["text"]
        assert done.submitted_at <= done.finished_at
        page = jobs.list(page_size=5)
        assert job.task_id in [one.task_id for one in page.tasks]
        assert page.total >= 1
        assert jobs.fetch("no-such-task").status == "UNKNOWN"


def look(*sources: str) -> Any:
    content = [*({"image": one} for one in sources), {"text": "What is it?"}]
    answer = dashscope.MultiModalConversation.call(
        "qwen-plus", messages=[{"role": "user", "content": content}], **HOW
    )
    assert answer.status_code == 200, answer
    assert answer.output.choices[0].message.content
    return answer


@pytest.mark.usefixtures("use")
def test_local_pictures_of_1_x_are_sent_up_and_seen(photo: Path) -> None:
    one = look(f"file://{photo}")
    two = look(f"file://{photo}", f"file://{photo}")
    assert two.usage.image_tokens == 2 * one.usage.image_tokens > 0


def test_a_local_picture_of_2_0_is_sent_up_and_seen(api: str, photo: Path) -> None:
    with dashscope.Client(api_key=KEY, base_url=api, protocol="native") as client:
        parts = [{"type": "image", "url": f"file://{photo}"}, {"type": "text", "text": "What?"}]
        messages = [{"role": "user", "content": parts}]
        seen = client.multimodal.chat.create(model="qwen-plus", messages=messages, **HOW)
        assert seen.usage.input_tokens > 10


@pytest.mark.usefixtures("use")
def test_files_of_1_x_go_up_are_listed_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "rules.jsonl"
    path.write_text('{"rule": "helmets"}\n')
    sent = dashscope.Files.upload(str(path), description="house rules")
    assert sent.status_code == 200, sent
    file_id = sent.output["uploaded_files"][0]["file_id"]
    shown = dashscope.Files.get(file_id)
    assert (shown.output["name"], shown.output["description"]) == ("rules.jsonl", "house rules")
    listed = dashscope.Files.list(page_size=50)
    assert file_id in [one["file_id"] for one in listed.output["files"]]
    assert dashscope.Files.delete(file_id).status_code == 200
    assert dashscope.Files.get(file_id).status_code == 400


def test_files_tokens_and_models_of_2_0(api: str, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("heron-42")
    with dashscope.Client(api_key=KEY, base_url=api) as client:
        sent = client.files.upload(file_path=str(path), purpose="file-extract")
        shown = client.files.get(sent.file_id)
        assert (shown.name, shown.size, shown.purpose) == ("note.txt", 8, "file-extract")
        assert sent.file_id in [one.file_id for one in client.files.list().files]
        assert client.files.delete(sent.file_id).deleted
        with pytest.raises(NotFoundError):
            client.files.get(sent.file_id)
        counted = client.tokenization.count(model="qwen-plus", prompt="hello")
        assert counted.input_tokens == len(counted.token_ids or ()) > 0
        listed = client.models.list()
        assert [one.model for one in listed.models] == ["bundled", "qwen-plus"]
        assert listed.total_count == 2
        assert client.models.get("qwen-plus").model == "qwen-plus"


def test_after_kill_9_tasks_batches_files_and_uploads_go_on(
    use: Callable[[str], None], tmp_path: Path, photo: Path
) -> None:
    body = {"model": "qwen-plus", "messages": HELLO, "max_tokens": 60, "response_format": LONG}
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n in range(6)
    ]
    headers = {"authorization": f"Bearer {KEY}"}
    with serving_two_keys(tmp_path / "state") as (server, address):
        use(f"{address}/api/v1")
        client = httpx2.Client(base_url=address, headers=headers, timeout=60)
        text = "\n".join(map(json.dumps, lines))
        sent = client.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", text)}
        ).json()
        tasks = [submit(max_tokens=150, response_format=LONG) for _ in range(6)]
        asked = {"input_file_id": sent["id"], "endpoint": "/v1/chat/completions"}
        batch = client.post("/v1/batches", json=asked).json()
        picture, _ = OssUtils.upload("qwen-plus", str(photo), KEY)
        while not any(state_of(one) == "RUNNING" for one in tasks):
            time.sleep(0.02)
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        client.close()
    with serving_two_keys(tmp_path / "state", "--max-files", "3") as (_, address):
        use(f"{address}/api/v1")
        for task_id in tasks:
            done = BaseAsyncApi.wait(task_id)
            assert done.output["task_status"] == "SUCCEEDED", done
            assert done.usage["output_tokens"] == 150
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
            end = time.monotonic() + 100
            while (now := client.get(f"/v1/batches/{batch['id']}").json())["status"] != "completed":
                assert time.monotonic() < end, now
                time.sleep(0.1)
            assert now["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
            output = client.get(f"/v1/files/{now['output_file_id']}/content").text
            written = [json.loads(line)["custom_id"] for line in output.splitlines()]
            assert written == [line["custom_id"] for line in lines]
            assert client.get(f"/v1/files/{sent['id']}/content").text == text
        assert look(picture).usage.image_tokens > 0
        full = dashscope.Files.upload(str(photo), purpose="file-extract").output
        assert full["failed_uploads"][0]["code"] == "RequestTooLarge"
        assert "keeps 3 files; expected at most 3" in full["failed_uploads"][0]["message"]


def state_of(task_id: str) -> str:
    state: str = BaseAsyncApi.fetch(task_id).output["task_status"]
    return state
