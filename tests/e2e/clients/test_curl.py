"""curl, as documents and bug reports use it, against `qianyan serve` over TCP."""

import json
import shutil
import subprocess
from typing import Any

import pytest

KEY = "sk-e2e-0123456789"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(url: str, body: Any, *options: str) -> str:
    done = subprocess.run(
        [
            *("curl", "-sS", "--max-time", "60", url),
            *("-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"),
            *options,
            *("-d", body if isinstance(body, str) else json.dumps(body)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_whole_answer_and_a_stream_of_lines(house: Any, hello: str) -> None:
    url = f"{house.base_url}/chat/completions"
    asked = {"model": "qwen-plus", "max_tokens": 16, **HELLO}
    assert json.loads(curl(url, asked))["choices"][0]["message"]["content"] == hello
    *events, last, end = curl(url, {**asked, "stream": True}, "-N").split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == hello


def test_dashscopes_packets_and_their_framing(house: Any, hello: str) -> None:
    url = f"{house.address}/api/v1/services/aigc/text-generation/generation"
    asked = {
        "model": "qwen-plus",
        "input": HELLO,
        "parameters": {"result_format": "message", "incremental_output": True, "max_tokens": 16},
    }
    *packets, end = curl(url, asked, "-N", "-H", "X-DashScope-SSE: enable").split("\n\n")
    assert end == ""
    lines = [packet.split("\n") for packet in packets]
    assert [one[0] for one in lines] == [f"id:{number + 1}" for number in range(len(lines))]
    assert {tuple(one[1:3]) for one in lines} == {("event:result", ":HTTP_STATUS/200")}
    data = [json.loads(one[3].removeprefix("data:")) for one in lines]
    choices = [one["output"]["choices"][0] for one in data]
    assert "".join(choice["message"]["content"] for choice in choices) == hello
    assert {choice["finish_reason"] for choice in choices[:-1]} == {"null"}


@pytest.mark.parametrize("body", ["{", "[]", '"text"', "null", '{"model": 1}', "\x01", "{}" * 9])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/compatible-mode/v1/chat/completions",
        "/api/v1/services/aigc/text-generation/generation",
        "/api/v1/services/aigc/multimodal-generation/generation",
    ],
)
def test_broken_bodies_are_refused_in_each_dialect(house: Any, path: str, body: str) -> None:
    said, status = curl(f"{house.address}{path}", body, "-w", "\n%{http_code}").rsplit("\n", 1)
    assert status == "400"
    error = json.loads(said)
    if path.startswith("/api/"):
        assert set(error) == {"code", "message", "request_id"}
        assert error["code"].split(".")[0] in ("InvalidParameter", "BadRequest")
    else:
        assert set(error["error"]) == {"message", "type", "param", "code"}
