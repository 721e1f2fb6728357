"""Batches over HTTP: what a wrong line is told is what its request alone would have been told."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATH = "/v1/chat/completions"


def test_a_line_is_refused_with_the_sentence_of_its_request_alone(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    said = [{"role": "user", "content": "hello"}]
    bodies: list[dict[str, Any]] = [
        {"model": "judge", "messages": said, "max_tokens": "3"},
        {"model": "judge", "messages": []},
        {"model": "judge"},
        {"model": "judge", "messages": said, "temperature": 9},
    ]
    lines = [
        json.dumps({"custom_id": str(at), "method": "POST", "url": PATH, "body": body})
        for at, body in enumerate(bodies)
    ]
    with serve(state_folder=tmp_path) as client:
        alone = [client.post(PATH, json=body).json()["error"] for body in bodies]
        sent = client.post(
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": ("in.jsonl", "\n".join(lines).encode())},
        ).json()
        asked = {"input_file_id": sent["id"], "endpoint": PATH}
        batch = client.post("/v1/batches", json=asked).json()
        end = time.monotonic() + 60
        while batch["status"] != "completed":
            assert time.monotonic() < end, batch
            time.sleep(0.05)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
        errors = client.get(f"/v1/files/{batch['error_file_id']}/content").text
    told = [json.loads(line)["error"] for line in errors.splitlines()]
    assert told == [{name: one[name] for name in ("code", "message")} for one in alone]
