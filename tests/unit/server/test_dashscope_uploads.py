"""Files that Bailian's clients send up for a request: policies, the sink, oss:// in messages."""

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from qianyan.engine.engine import Engine

PARTS = "/api/v1/services/aigc/multimodal-generation/generation"
OTHER = {"authorization": "Bearer sk-test-9876543210"}
Serve = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def client(serve: Serve, state: Path) -> Iterator[httpx2.Client]:
    with serve(state_folder=state) as one:
        yield one


def png(colour: tuple[int, int, int] = (200, 20, 20)) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (120, 90), colour).save(held, "PNG")
    return held.getvalue()


def permit(client: httpx2.Client, **how: Any) -> dict[str, Any]:
    asked = {"action": "getPolicy", "model": "judge"}
    answer = client.get("/api/v1/uploads", params=asked, **how)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def send(given: dict[str, Any], content: bytes, key: str) -> httpx2.Response:
    """Send a file as the SDK does: to the address that was given, without an API key."""
    fields = {
        "OSSAccessKeyId": given["oss_access_key_id"],
        "Signature": given["signature"],
        "policy": given["policy"],
        "key": key,
        "x-oss-object-acl": given["x_oss_object_acl"],
        "x-oss-forbid-overwrite": given["x_oss_forbid_overwrite"],
        "success_action_status": "200",
        "x-oss-content-type": "image/png",
    }
    return httpx2.post(given["upload_host"], data=fields, files={"file": content}, timeout=60)


def upload(client: httpx2.Client, content: bytes, name: str = "a.png", **how: Any) -> str:
    given = permit(client, **how)
    key = f"{given['upload_dir']}/{name}"
    assert send(given, content, key).status_code == 200
    return f"oss://{key}"


def ask(client: httpx2.Client, part: dict[str, Any], **how: Any) -> httpx2.Response:
    content = [part, {"text": "What is it?"}]
    body = {
        "model": "judge",
        "input": {"messages": [{"role": "user", "content": content}]},
        "parameters": {"max_tokens": 6, "temperature": 0},
    }
    headers = {"content-type": "application/json", **how.pop("headers", {})}
    return client.post(PARTS, content=json.dumps(body), headers=headers, **how)


def text_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["output"]["choices"][0]["message"]["content"][0]["text"]
    return text


def test_a_picture_that_was_sent_up_is_seen_in_both_dialects(client: httpx2.Client) -> None:
    url = upload(client, png(), "现场 1.png")
    inline = "data:image/png;base64," + base64.b64encode(png()).decode()
    seen = ask(client, {"image": url, "max_pixels": 5000})
    same = ask(client, {"image": inline, "max_pixels": 5000})
    assert text_of(seen) == text_of(same)
    counts = [answer.json()["usage"]["input_tokens"] for answer in (seen, same)]
    assert counts[0] == counts[1]
    answers = []
    for source in (url, inline):
        content = [
            {"type": "image_url", "image_url": {"url": source, "min_pixels": 3136}},
            {"type": "text", "text": "What is it?"},
        ]
        body = {"model": "judge", "messages": [{"role": "user", "content": content}]}
        answer = client.post("/v1/chat/completions", json={**body, "max_tokens": 6, "seed": 1})
        assert answer.status_code == 200, answer.text
        answers.append((answer.json()["choices"], answer.json()["usage"]["prompt_tokens"]))
    assert answers[0] == answers[1]


def test_a_task_sees_what_its_owner_sent_up(client: httpx2.Client) -> None:
    url = upload(client, png())
    given = ask(client, {"image": url}, headers={"x-dashscope-async": "enable"}).json()
    end = time.monotonic() + 60
    path = f"/api/v1/tasks/{given['output']['task_id']}"
    while (output := client.get(path).json()["output"])["task_status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < end, output
        time.sleep(0.05)
    text = output["choices"][0]["message"]["content"][0]["text"]
    assert text == text_of(ask(client, {"image": url}))


def test_a_batch_line_sees_what_its_owner_sent_up(client: httpx2.Client) -> None:
    url = upload(client, png())
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "judge", "max_tokens": 4, "messages": [{"role": "user", "content": [part]}]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    sent = client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", json.dumps(line))}
    ).json()
    asked = {"input_file_id": sent["id"], "endpoint": "/v1/chat/completions"}
    batch = client.post("/v1/batches", json=asked).json()
    end = time.monotonic() + 60
    while (now := client.get(f"/v1/batches/{batch['id']}").json())["status"] != "completed":
        assert time.monotonic() < end, now
        time.sleep(0.1)
    assert now["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


def test_an_upload_of_another_key_or_of_nobody_is_not_there(client: httpx2.Client) -> None:
    url = upload(client, png())
    theirs = ask(client, {"image": url}, headers=OTHER)
    folder = url.rsplit("/", 1)[0]
    wrong = [
        f"{folder}/b.png",
        f"{folder}/",
        "oss://../../etc/passwd",
        "oss://",
        "oss:///etc/passwd",
    ]
    answers = [theirs, *(ask(client, {"image": one}) for one in wrong)]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter"), answer.text
        assert "There is no upload" in answer.json()["message"]
    missing = ask(client, {"video": [url, f"{folder}/b.png"]})
    assert "There is no upload" in missing.json()["message"]


def test_only_a_policy_of_this_server_opens_the_sink(client: httpx2.Client) -> None:
    given = permit(client)
    key = f"{given['upload_dir']}/a.png"
    host = httpx2.URL(given["upload_host"])
    said = json.loads(base64.urlsafe_b64decode(given["policy"]))
    forged = base64.urlsafe_b64encode(json.dumps({**said, "owner": "0" * 64}).encode()).decode()
    for policy, signature in (
        (given["policy"], "0" * 64),
        (forged, given["signature"]),
        (given["policy"], "é"),
        ("", ""),
    ):
        address = host.copy_merge_params({"policy": policy, "signature": signature})
        refused = send({**given, "upload_host": str(address)}, png(), key)
        assert (refused.status_code, refused.json()["code"]) == (403, "AccessDenied"), refused.text
    bare = httpx2.post(str(host.copy_with(query=None)), files={"file": png()})
    assert bare.status_code == 400
    assert client.get("/api/v1/uploads", headers={"authorization": ""}).status_code == 401


def test_a_policy_does_not_tell_who_it_was_given_to(client: httpx2.Client) -> None:
    given = [permit(client), permit(client)]
    said = [json.loads(base64.urlsafe_b64decode(one["policy"])) for one in given]
    assert said[0]["owner"] != said[1]["owner"]
    url = upload(client, png())
    owner = owner_of_client(client.app.state.keeping, url)  # type: ignore[attr-defined]
    assert owner not in [one["owner"] for one in said]


@pytest.mark.parametrize("name", ["a b.png", "👨\u200d👩\u200d👧.png", "a\\b.png", " .a.png"])
def test_names_of_real_files_are_taken(client: httpx2.Client, name: str) -> None:
    assert text_of(ask(client, {"image": upload(client, png(), name)}))


def test_a_policy_opens_its_own_folder_only(client: httpx2.Client) -> None:
    given, folder = permit(client), permit(client)["upload_dir"]
    own = given["upload_dir"]
    for key in (
        f"{folder}/a.png",
        f"{own}/../a.png",
        f"{own}/b/a.png",
        f"{own}/",
        f"{own}/..",
        own,
        f"{own}/a\x00.png",
        "../../etc/passwd",
        f"{own}/{'a' * 300}",
    ):
        refused = send(given, png(), key)
        assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter"), key
        assert "expected upload_dir" in refused.json()["message"]


def test_a_name_is_given_to_one_content(client: httpx2.Client) -> None:
    given = permit(client)
    key = f"{given['upload_dir']}/a.png"
    assert [send(given, png(), key).status_code for _ in range(2)] == [200, 200]
    refused = send(given, png((0, 0, 255)), key)
    assert (refused.status_code, refused.json()["code"]) == (409, "Conflict")
    empty = send(given, b"", f"{given['upload_dir']}/empty.png")
    assert empty.status_code == 400


def test_policies_and_uploads_end(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = client.app.state.keeping  # type: ignore[attr-defined]
    given, url = permit(client), upload(client, png())
    later = time.time() + given["expire_in_seconds"] + 1
    with monkeypatch.context() as patch:
        patch.setattr("qianyan.server.uploads.time.time", lambda: later)
        refused = send(given, png(), f"{given['upload_dir']}/a.png")
    assert refused.status_code == 403
    assert "is over" in refused.json()["message"]
    assert text_of(ask(client, {"image": url}))
    stored = kept.uploads.find(owner_of_client(kept, url), url)
    lasts = stored.expires_at - stored.created_at
    assert lasts.total_seconds() == kept.files.limits.request_keep_s == 48 * 3600


def owner_of_client(kept: Any, url: str) -> str:
    from sqlalchemy import select

    from qianyan.server.files import FileRow

    with kept.database.reading() as session:
        chosen = select(FileRow.owner_id).where(FileRow.upload_key == url.removeprefix("oss://"))
        owner: str = session.scalars(chosen).one()
    return owner


def test_uploads_for_requests_are_in_no_list(client: httpx2.Client) -> None:
    before = client.get("/v1/files").json()["data"]
    upload(client, png())
    assert client.get("/v1/files").json()["data"] == before


def test_a_policy_is_given_for_a_model_that_is_there(client: httpx2.Client) -> None:
    for asked, status in (
        ({"action": "getPolicy", "model": "gpt-4o"}, 404),
        ({"action": "delete", "model": "judge"}, 400),
        ({"action": "getPolicy"}, 400),
    ):
        assert client.get("/api/v1/uploads", params=asked).status_code == status, asked


def test_a_document_and_a_video_come_from_uploads(client: httpx2.Client, engine: Engine) -> None:
    url = upload(client, b"The password of the site office is heron-42.", "note.txt")
    part = {"type": "file", "file": {"file_data": url}}
    content = [part, {"type": "text", "text": "What is the password?"}]
    body = {"model": "judge", "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    plain = [{"role": "user", "content": content[1:]}]
    bare = engine.chat(plain, max_tokens=1)
    assert answer.json()["usage"]["prompt_tokens"] > len(bare.prompt_token_ids) + 5
