"""`qianyan serve` from the outside: wrong settings, and a signal to stop."""

import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

MARK = "Zebrafink-4711"
SAID = [{"role": "user", "content": f"say {MARK} again"}]
COMMAND = [sys.executable, "-m", "qianyan", "serve"]


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0", "--no-auth"], "expected an API key"),  # noqa: S104
        (["--no-auth", "--api-key", "sk-0123456789"], "only one of them"),
        (["--port", "70000"], "port is 70000"),
        (["--api-key", "short"], "fewer than 8 characters"),
        (["--api-keys-file", "no-such-file"], "cannot be read"),
        (["--host", "192.0.2.1", "--api-key", "sk-0123456789"], "Nothing can listen"),
        (["--max-waiting", "-1"], "greater than or equal to 0. See qianyan --help."),
        (["--search-provider", "searxng"], "has no address"),
        (["--search-provider", "searxng", "--search-url", "ftp://x"], "expected an http(s) URL"),
        (["--search-provider", "tavily"], "has no API key"),
        (["--search-provider", "bing"], "searxng"),
        (["--search-url", "http://127.0.0.1:9"], "without --search-provider"),
    ],
)
def test_wrong_settings_end_with_a_sentence_and_2(options: list[str], words: str) -> None:
    done = run(*options)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "Nothing can listen" in done.stderr


def test_a_model_that_is_not_there_ends_with_3_and_spends_no_key(tmp_path: Path) -> None:
    asked = ["--port", "0", "--model", "./no-such-folder", "--state-dir", str(tmp_path)]
    done = run(*asked, QIANYAN_API_KEYS="")
    assert done.returncode == 3
    assert "no-such-folder" in done.stderr
    assert "sk-" not in done.stdout
    assert not (tmp_path / "api-keys").exists()


def start(*options: str, **environment: str) -> tuple[subprocess.Popen[str], str, str]:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *options],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    said = ""
    while not (found := re.search(r"at (http://\S+)/v1", said)):
        line = process.stdout.readline()
        assert line, said
        said += line
    return process, found[1], said


def test_a_signal_lets_a_running_answer_end_and_refuses_new_ones(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-file-0123456789\n")
    process, address, _ = start(
        "--api-keys-file", str(keys), "--state-dir", str(tmp_path / "state")
    )
    headers = {"authorization": "Bearer sk-file-0123456789"}
    body: dict[str, Any] = {
        "model": "bundled",
        "messages": [{"role": "user", "content": "a story"}],
        "stream": True,
        "max_tokens": 150,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 5000}},
        },
    }
    with httpx2.stream(
        "POST", f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert process.wait(60) == -signal.SIGTERM
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{address}/health")
    _, errors = process.communicate()
    assert "Traceback" not in errors
    assert "stopping; 1 connections are open, whose answers have 30 s" in errors
    assert errors.rstrip().endswith("stopped")


def test_without_auth_it_says_in_both_languages_that_anyone_here_may_ask(tmp_path: Path) -> None:
    state = ["--no-auth", "--state-dir", str(tmp_path)]
    names = ["--served-name", "qwen-plus", "--served-name", "bundled"]
    process, address, said = start(*names, *state, QIANYAN_API_KEYS="")
    try:
        assert f"千眼已启动，模型 bundled, qwen-plus，地址 {address}/v1" in said
        paths = re.findall(r"DashScope: (http://[^\s)]+)\)", said)
        assert paths == [f"{address}/api/v1"] * 2
        asked = {"model": "qwen-plus", "input": {"prompt": "hi"}}
        place = f"{paths[0]}/services/aigc/text-generation/generation"
        assert httpx2.post(place, json=asked, timeout=60).json()["output"]["text"]
        listed = httpx2.get(f"{address}/v1/models", timeout=30).json()
        assert [one["id"] for one in listed["data"]] == ["bundled", "qwen-plus"]
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "已用 --no-auth 关闭 API 密钥" in errors
    assert "--no-auth is set" in errors


def test_a_database_of_a_newer_version_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "server.sqlite3")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
        database.commit()
    done = run("--port", "0", "--state-dir", str(tmp_path), "--model", "./no-such-folder")
    assert done.returncode == 2, done.stderr
    assert "written by a newer qianyan" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_servers_do_not_share_a_state_folder(tmp_path: Path) -> None:
    process, _, _ = start("--no-auth", "--state-dir", str(tmp_path), QIANYAN_API_KEYS="")
    try:
        done = run("--port", "0", "--state-dir", str(tmp_path), QIANYAN_API_KEYS="")
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert "Another qianyan serve works in the state folder" in done.stderr
    assert "--state-dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_the_first_start_makes_a_key_shows_it_once_and_keeps_its_hash(tmp_path: Path) -> None:
    """The second one knows it, and its log holds neither it nor a word of what is asked."""
    state = tmp_path / "state"
    process, address, made = start("--state-dir", str(state), QIANYAN_API_KEYS="")
    try:
        (key,) = re.findall(r"keeps its hash\): (sk-\w{40,})", made)
        models = f"{address}/v1/models"
        held = (state / "api-keys").read_text()
        digest = hashlib.sha256(key.encode()).hexdigest()
        for wrong in ("", f"Bearer {key[:-1]}", f"Bearer sha256:{digest}", f"Bearer {digest}"):
            assert httpx2.get(models, headers={"authorization": wrong}).status_code == 401
        right = {"authorization": f"Bearer {key}"}
        assert httpx2.get(models, headers=right, timeout=30).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert digest in held
    assert key not in held
    assert (state / "api-keys").stat().st_mode & 0o777 == 0o600
    logged = ["--log-format", "json", "--log-level", "debug"]
    process, address, said = start("--state-dir", str(state), *logged, QIANYAN_API_KEYS="")
    try:
        assert "sk-" not in said
        assert f"made at the first start (its hash is in {state / 'api-keys'}" in said
        assert httpx2.get(f"{address}/v1/models", headers=right, timeout=30).is_success
        for fields in (
            {},
            {"stream": True},
            {"temperature": MARK},
            {"messages": [{"role": MARK, "content": "x"}]},
            {"stop": [MARK], "n": 9},
            {MARK: 1, "model": MARK},
        ):
            body = {"model": "bundled", "messages": SAID, "max_tokens": 3, **fields}
            asked = httpx2.post(
                f"{address}/v1/chat/completions?{MARK}=1", json=body, headers=right, timeout=60
            )
            assert asked.headers["x-request-id"]
        httpx2.get(f"{address}/v1/files/{MARK}", headers=right)
    finally:
        process.terminate()
        out, errors = process.communicate(timeout=60)
    lines = [json.loads(line) for line in errors.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == 8
    assert all(
        {"request_id", "status", "duration_s", "route", "key"} <= set(one) for one in requests
    )
    assert {one["key"] for one in requests} == {digest[:8]}
    answered = [one for one in requests if one["completion_tokens"]]
    assert [one["completion_tokens"] for one in answered] == [3, 3]
    for secret in (MARK, key, key[3:], digest):
        assert secret not in errors + out
