"""Conversations with a model at another server, which behaves well or as others do."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import dashscope
import httpx2
import pytest
from openai import OpenAI
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.server.upstream_settings import UpstreamLimits, UpstreamSettings

from .conftest import KEY as OUR_KEY
from .conftest import Served, ServedClient
from .upstream_server import KEY, MODEL, UpstreamServer, upstream_server

NAME = "team/remote"
CHAT = "/v1/chat/completions"
SAID = [{"role": "user", "content": "Hello?"}]
TEXT = "/api/v1/services/aigc/text-generation/generation"
PARTS = "/api/v1/services/aigc/multimodal-generation/generation"
SSE = {"x-dashscope-sse": "enable"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with upstream_server() as one:
        yield one


@pytest.fixture(autouse=True)
def behaves(upstream: UpstreamServer) -> None:
    upstream.way = "good"
    upstream.bodies.clear()


@pytest.fixture(scope="module")
def client(
    serve: Served, upstream: UpstreamServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedClient]:
    limits = UpstreamLimits(timeout_s=2, max_connections=2)
    named = UpstreamSettings(
        name=NAME, base_url=upstream.address, model=MODEL, api_key=KEY, limits=limits
    )
    gone = UpstreamSettings(name="gone", base_url="http://127.0.0.1:9/v1", model="m")
    folder = tmp_path_factory.mktemp("state")
    with serve(upstreams=(named, gone), state_folder=folder, max_waiting=1) as one:
        yield one


def ask(client: httpx2.Client, **more: Any) -> httpx2.Response:
    return client.post(CHAT, json={"model": NAME, "messages": SAID, **more})


def chunks(response: httpx2.Response) -> list[Any]:
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def test_a_whole_answer_has_our_form_and_name(
    client: httpx2.Client, upstream: UpstreamServer
) -> None:
    answer = ask(client, top_k=5, chat_template_kwargs={"x": 1}, unheard_of={"a": None}).json()
    assert answer["model"] == NAME
    assert answer["id"].startswith("chatcmpl-")
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hello", "hm")
    assert answer["usage"]["total_tokens"] == 10
    assert upstream.body["model"] == MODEL
    assert upstream.body["unheard_of"] == {"a": None}
    assert (upstream.body["top_k"], upstream.body["chat_template_kwargs"]) == (5, {"x": 1})
    assert upstream.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert OUR_KEY not in str(upstream.headers[-1])


@pytest.mark.parametrize("way", ["good", "whole", "no mark"])
def test_a_stream_is_put_into_our_form(
    client: httpx2.Client, upstream: UpstreamServer, way: str
) -> None:
    upstream.way = way
    *said, counted, done = chunks(ask(client, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert {(one["id"], one["created"], one["model"]) for one in said} == {
        (counted["id"], counted["created"], NAME)
    }
    deltas = [one["choices"][0]["delta"] for one in said]
    assert [one["role"] for one in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(one["content"] or "" for one in deltas) == "Hello"
    reasons = [one["choices"][0]["finish_reason"] for one in said]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert counted["choices"] == []
    assert counted["usage"]["completion_tokens"] == (0 if way == "no mark" else 3)


def test_calls_have_their_id_and_name_once(client: httpx2.Client, upstream: UpstreamServer) -> None:
    upstream.way = "tools"
    openai = OpenAI(base_url=str(client.base_url.join("/v1")), api_key=OUR_KEY)
    with openai.chat.completions.stream(model=NAME, messages=SAID) as stream:  # type: ignore[arg-type]
        done = stream.get_final_completion()
    calls = done.choices[0].message.tool_calls or []
    assert [(one.id, one.function.name, one.function.arguments) for one in calls] == [
        ("c1", "look", '{"a": 1}'),
        ("c2", "find", "{}"),
    ]
    assert done.choices[0].finish_reason == "tool_calls"
    assert done.model == NAME
    whole = ask(client).json()["choices"][0]
    assert whole["message"]["tool_calls"][0]["id"] == "c1"
    assert whole["message"]["content"] is None


@pytest.mark.parametrize(
    ("way", "status", "code", "words"),
    [
        ("busy", 429, "limit_requests", "slow down"),
        ("starting", 503, "server_busy", "loading"),
        ("too long", 400, "context_length_exceeded", "too long"),
        ("wrong", 400, "upstream_refused", "top_k must be a number"),
        ("no key", 502, "upstream_failed", "does not accept this server's key"),
        ("no model", 502, "upstream_failed", "no such model"),
        ("broken", 502, "upstream_failed", "CUDA error"),
        ("moved", 502, "upstream_failed", "status 307"),
        ("garbage", 502, "upstream_failed", "no JSON"),
        ("silent", 504, "upstream_timeout", "did not answer in time"),
    ],
)
def test_errors_are_told_in_the_callers_dialect(
    client: httpx2.Client, upstream: UpstreamServer, way: str, status: int, code: str, words: str
) -> None:
    upstream.way = way
    answer = ask(client)
    native = client.post(TEXT, json={"model": NAME, "input": {"messages": SAID}})
    assert answer.status_code == native.status_code == status
    assert answer.json()["error"]["code"] == code
    assert "request_id" in native.json()
    for said in (answer.json()["error"], native.json()):
        assert words in said["message"]
    assert KEY not in answer.text + native.text
    if way == "busy":
        assert answer.headers["retry-after"] == native.headers["retry-after"] == "17"


def test_another_servers_failure_is_one_line_of_the_log_without_its_words(
    client: httpx2.Client, upstream: UpstreamServer, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.way = "broken"
    assert ask(client).status_code == HTTPStatus.BAD_GATEWAY
    assert client.post(CHAT, json={"model": "gone", "messages": SAID}).status_code == 502
    ours = [record for record in caplog.records if record.name.startswith("qianyan")]
    told = [record for record in ours if record.levelname != "INFO"]
    assert [(one.levelname, one.exc_info) for one in told] == [("WARNING", None)] * 2
    failed, gone = (record.getMessage() for record in told)
    assert failed.endswith("fails (status 500)")
    assert gone.endswith("cannot be reached. Try again later.")


@pytest.mark.parametrize("way", ["dies", "stops", "broken json", "error"])
def test_an_answer_that_breaks_off_ends_with_an_error_event(
    client: httpx2.Client, upstream: UpstreamServer, way: str
) -> None:
    upstream.way = way
    answer = ask(client, stream=True)
    assert answer.status_code == HTTPStatus.OK
    *_, said, last = chunks(answer)
    assert said["choices"][0]["delta"]["content"] == "Hel"
    assert last["error"]["code"] == "upstream_failed"
    assert last["request_id"] == answer.headers["x-request-id"]
    assert KEY not in answer.text
    native = client.post(PARTS, json={"model": NAME, "input": {"messages": SAID}}, headers=SSE)
    assert "event:error\nstatus:502" in native.text


def test_a_server_that_is_gone_is_told_as_502(client: httpx2.Client) -> None:
    answer = client.post(CHAT, json={"model": "gone", "messages": SAID})
    assert answer.status_code == HTTPStatus.BAD_GATEWAY
    assert answer.json()["error"]["code"] == "upstream_unreachable"
    assert "127.0.0.1" not in answer.text


def test_a_reader_who_leaves_ends_the_answer_there(
    client: httpx2.Client, upstream: UpstreamServer
) -> None:
    upstream.way = "endless"
    body = {"model": NAME, "messages": SAID, "stream": True}
    with client.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        assert upstream.num_streaming == 1
    deadline = time.monotonic() + 30
    while upstream.num_streaming and time.monotonic() < deadline:
        time.sleep(0.01)
    assert upstream.num_streaming == 0


def test_a_reader_who_leaves_before_the_answer_ends_the_request_there(
    serve: Served, upstream: UpstreamServer
) -> None:
    upstream.way, before = "silent", upstream.num_left
    patient = UpstreamLimits(timeout_s=300)  # so that no limit of silence ends it
    named = UpstreamSettings(name=NAME, base_url=upstream.address, model=MODEL, limits=patient)
    with serve(upstreams=(named,)) as client:
        with pytest.raises(httpx2.ReadTimeout):
            client.post(CHAT, json={"model": NAME, "messages": SAID}, timeout=2)
        deadline = time.monotonic() + 20
        while upstream.num_left == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert upstream.num_left == before + 1


def test_the_line_is_bounded_and_seats_come_back(
    client: httpx2.Client, upstream: UpstreamServer
) -> None:
    upstream.way = "endless"
    body = {"model": NAME, "messages": SAID, "stream": True}
    with client.stream("POST", CHAT, json=body), client.stream("POST", CHAT, json=body):
        waiting = threading.Thread(target=lambda: ask(client))
        waiting.start()
        time.sleep(0.3)
        refused = ask(client)
        assert refused.status_code == HTTPStatus.TOO_MANY_REQUESTS
        assert refused.headers["retry-after"]
        counts = client.get("/metrics").text
        assert "qianyan_upstream_requests_running 2.0" in counts
        assert "qianyan_upstream_requests_waiting 1.0" in counts
        upstream.way = "good"
    waiting.join()
    assert "qianyan_upstream_requests_running 0.0" in client.get("/metrics").text
    assert ask(client).status_code == HTTPStatus.OK


def test_an_answer_is_cut_when_its_time_is_over(serve: Served, upstream: UpstreamServer) -> None:
    upstream.way = "endless"
    named = UpstreamSettings(name=NAME, base_url=upstream.address, model=MODEL)
    with serve(upstreams=(named,), max_answer_s=1.0) as client:
        *_, last, done = chunks(ask(client, stream=True))
        assert done == "[DONE]"
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["choices"][0]["stop_reason"] == "time_limit"


@pytest.mark.parametrize("path", [TEXT, PARTS])
@pytest.mark.parametrize("is_incremental", [True, False])
def test_dashscope_streams_say_the_same(
    client: httpx2.Client, path: str, is_incremental: bool
) -> None:
    parameters = {"incremental_output": is_incremental, "result_format": "message"}
    body = {"model": NAME, "input": {"messages": SAID}, "parameters": parameters}
    answer = client.post(path, json=body, headers=SSE)
    packets = [json.loads(line[5:]) for line in answer.text.splitlines() if line[:5] == "data:"]
    choices = [one["output"]["choices"][0] for one in packets]
    assert [one["finish_reason"] for one in choices] == ["null"] * (len(choices) - 1) + ["stop"]
    contents = [one["message"]["content"] for one in choices]
    texts = [one if path == TEXT else "".join(part["text"] for part in one) for one in contents]
    assert ("".join(texts) if is_incremental else texts[-1]) == "Hello"
    assert choices[0]["message"]["reasoning_content"] == "hm"
    assert packets[-1]["usage"]["input_tokens"] == 7
    assert packets[-1]["request_id"] == answer.headers["x-request-id"]


def test_dashscope_answers_whole_and_calls(client: httpx2.Client, upstream: UpstreamServer) -> None:
    body: dict[str, Any] = {"model": NAME, "input": {"prompt": "Hello?"}}
    whole = client.post(TEXT, json=body).json()
    assert whole["output"]["text"] == "Hello"
    assert whole["usage"] == {
        "input_tokens": 7,
        "output_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    upstream.way = "tools"
    tools = [{"type": "function", "function": {"name": "look"}}]
    body["parameters"] = {"tools": tools, "incremental_output": True}
    answer = client.post(TEXT, json=body, headers=SSE).text
    assert answer.count('"name":"look"') == answer.count('"id":"c1"') == 1
    assert answer.count('"name":"find"') == 1
    assert client.post(TEXT, json=body).json()["output"]["choices"][0]["message"]["tool_calls"]


@pytest.mark.parametrize("path", [TEXT, PARTS])
def test_dashscope_answers_keep_their_sound(
    client: httpx2.Client, upstream: UpstreamServer, path: str
) -> None:
    upstream.way = "spoken"
    spoken = {"modalities": ["text", "audio"], "result_format": "message"}
    body = {
        "model": NAME,
        "input": {"messages": SAID},
        "parameters": {**spoken, "incremental_output": True},
    }
    whole = client.post(path, json=body).json()["output"]
    assert whole["audio"] == {"data": "AAECAw==", "id": "audio_1", "expires_at": 1_700_000_000}
    assert "Hello" in str(whole["choices"][0]["message"]["content"])
    answer = client.post(path, json=body, headers=SSE)
    outputs = [
        json.loads(line[5:])["output"] for line in answer.text.splitlines() if line[:5] == "data:"
    ]
    sounds = [one["audio"].get("data") for one in outputs if "audio" in one]
    assert sounds == [None, "AAECAw==", None]
    contents = [one["choices"][0]["message"]["content"] for one in outputs]
    texts = [one if path == TEXT else "".join(part["text"] for part in one) for one in contents]
    assert "".join(texts) == "Hello"


def test_tasks_and_batches_name_it_too(client: httpx2.Client) -> None:
    body = {"model": NAME, "input": {"messages": SAID}, "parameters": {"result_format": "message"}}
    task = client.post(TEXT, json=body, headers={"x-dashscope-async": "enable"}).json()["output"]
    openai = OpenAI(base_url=str(client.base_url.join("/v1")), api_key=OUR_KEY)
    lines = {"custom_id": "1", "method": "POST", "url": CHAT}
    line = json.dumps({**lines, "body": {"model": NAME, "messages": SAID}})
    file = openai.files.create(file=("in.jsonl", line.encode()), purpose="batch")
    batch = openai.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    deadline = time.monotonic() + 20
    while batch.status != "completed" and time.monotonic() < deadline:
        time.sleep(0.1)
        batch = openai.batches.retrieve(batch.id)
    assert batch.output_file_id
    done = json.loads(openai.files.content(batch.output_file_id).text)
    assert done["response"]["body"]["model"] == NAME
    found = client.get(f"/api/v1/tasks/{task['task_id']}").json()["output"]
    assert found["task_status"] == "SUCCEEDED", found
    assert found["choices"][0]["message"]["content"] == "Hello"


def picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": "http://127.0.0.1:9/x.png"},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "video", "video": ["http://10.0.0.1/1.jpg", "http://10.0.0.1/2.jpg"]},
        {"type": "input_audio", "input_audio": {"data": "http://localhost/a.wav"}},
        {"type": "unheard_of", "unheard_of": {"deep": [{"where": "http://127.0.0.1/"}]}},
        {"type": "unheard_of", "where": "oss://bucket/key"},
        {"type": "file", "file": {"file_id": "file-abc"}},
        {"type": "image_url", "image_url": None, "uuid": "somebody's"},
    ],
)
def test_nothing_is_named_there_by_address(
    client: httpx2.Client, upstream: UpstreamServer, part: dict[str, Any]
) -> None:
    answer = ask(client, messages=[{"role": "user", "content": [part]}])
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert upstream.bodies == []


def test_files_of_the_operators_account_are_not_named(
    client: httpx2.Client, upstream: UpstreamServer
) -> None:
    said = [{"role": "system", "content": "fileid://file-fe-1"}, *SAID]
    assert ask(client, messages=said).status_code == HTTPStatus.BAD_REQUEST
    assert upstream.bodies == []


def test_data_and_texts_pass_as_they_are(client: httpx2.Client, upstream: UpstreamServer) -> None:
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}, "max_pixels": 5000},
        {"type": "text", "text": "See http://127.0.0.1/ there?"},
    ]
    assert ask(client, messages=[{"role": "user", "content": parts}]).status_code == HTTPStatus.OK
    assert upstream.body["messages"][0]["content"] == parts


def test_a_local_picture_of_bailians_client_is_sent_on_as_data(
    client: httpx2.Client,
    upstream: UpstreamServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "site.png"
    path.write_bytes(picture())
    monkeypatch.setattr(dashscope, "base_http_api_url", str(client.base_url.join("/api/v1")))
    content = [{"image": f"file://{path}"}, {"text": "What is red?"}]
    answer = dashscope.MultiModalConversation.call(
        NAME, messages=[{"role": "user", "content": content}], api_key=OUR_KEY
    )
    assert answer.status_code == HTTPStatus.OK, answer
    assert answer.output.choices[0].message.content[0]["text"] == "Hello"
    seen, asked = upstream.body["messages"][0]["content"]
    assert seen["type"] == "image_url"
    kind, _, data = seen["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == picture()
    assert asked == {"text": "What is red?", "type": "text"}


def test_pictures_by_url_are_fetched_here(
    serve: Served, upstream: UpstreamServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_picture() as (host, url):
        limits = engine.processor.limits
        allowed = replace(limits.fetch, allow_private=frozenset({host}))
        monkeypatch.setattr(engine.processor, "limits", replace(limits, fetch=allowed))
        limited = UpstreamLimits(max_media_bytes=len(picture()))
        named = UpstreamSettings(name=NAME, base_url=upstream.address, model=MODEL, limits=limited)
        part = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
        with serve(upstreams=(named,)) as client:
            answer = ask(client, messages=[{"role": "user", "content": [part]}])
            assert answer.status_code == HTTPStatus.OK, answer.text
            sent = upstream.body["messages"][0]["content"][0]["image_url"]
            assert sent["detail"] == "high"
            assert base64.b64decode(sent["url"].partition(",")[2]) == picture()
            many = ask(client, messages=[{"role": "user", "content": [part, part]}])
            assert many.status_code == HTTPStatus.BAD_REQUEST
            assert many.json()["error"]["code"] == "too_large"


@contextmanager
def serving_picture() -> Iterator[tuple[str, str]]:
    """Serve a picture on loopback; give host and port, and its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "image/png")
            self.send_header("content-length", str(len(picture())))
            self.end_headers()
            self.wfile.write(picture())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host = f"127.0.0.1:{server.server_port}"
    try:
        yield host, f"http://{host}/site.png"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_names_are_listed_and_found_by_both_dialects(client: httpx2.Client) -> None:
    listed = {one["id"]: one["owned_by"] for one in client.get("/v1/models").json()["data"]}
    assert listed[NAME] == "upstream"
    assert listed["judge"] == "qianyan"
    assert client.get(f"/v1/models/{NAME}").json()["id"] == NAME
    missing = client.post(CHAT, json={"model": "nobody", "messages": SAID})
    assert missing.status_code == HTTPStatus.NOT_FOUND
    assert NAME in missing.json()["error"]["message"]
    names = [one["model"] for one in client.get("/api/v1/models").json()["output"]["models"]]
    assert NAME in names
    body = {"model": NAME, "input": {"prompt": "Hello?"}}
    told = client.post("/api/v1/tokenizer", json=body)
    assert told.status_code == HTTPStatus.BAD_REQUEST
    assert "at another server" in told.json()["message"]


def test_tokens_are_counted_and_paid_for(serve: Served, upstream: UpstreamServer) -> None:
    named = UpstreamSettings(name=NAME, base_url=upstream.address, model=MODEL)
    with serve(upstreams=(named,), tokens_per_minute=15) as client:
        assert ask(client, stream=True).status_code == HTTPStatus.OK
        assert ask(client).status_code == HTTPStatus.OK
        assert ask(client).status_code == HTTPStatus.TOO_MANY_REQUESTS
        text = client.get("/metrics").text
        assert f'qianyan_tokens_total{{kind="completion",model="{NAME}"}} 6.0' in text


def test_a_real_second_server_is_as_good_as_any(serve: Served, tmp_path: Path) -> None:
    with serve() as second:
        address = str(second.base_url.join("/v1"))
        named = UpstreamSettings(name=NAME, base_url=address, model="judge", api_key=OUR_KEY)
        with serve(upstreams=(named,)) as first:
            asked = {"messages": SAID, "max_tokens": 8, "temperature": 0}
            far = first.post(CHAT, json={"model": NAME, **asked}).json()
            near = first.post(CHAT, json={"model": "judge", **asked}).json()
            assert far["choices"] == near["choices"]
            assert far["usage"]["completion_tokens"] == near["usage"]["completion_tokens"]
