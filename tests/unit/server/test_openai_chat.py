"""chat/completions on the wire: every key, every order, every refusal."""

import base64
import io
import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image

from qianyan.engine.engine import Engine

DELTA_KEYS = {"content", "function_call", "refusal", "role", "tool_calls"}
CHUNK_KEYS = {
    "id", "choices", "created", "model", "object", "service_tier", "system_fingerprint", "usage"
}  # fmt: skip


def ask(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    body = {"model": "judge", "messages": [{"role": "user", "content": "hello"}], **fields}
    return client.post("/v1/chat/completions", json=body)


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "request_id"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events_of(answer: httpx2.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def red_picture() -> str:
    held = io.BytesIO()
    Image.new("RGB", (120, 90), (200, 20, 20)).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


@pytest.mark.parametrize("prefix", ["/v1", "/compatible-mode/v1"])
def test_an_answer_has_the_notes_keys_and_the_engine_s_words(
    client: httpx2.Client, engine: Engine, prefix: str
) -> None:
    body = {"model": "qwen-plus", "messages": [{"role": "user", "content": "hello"}]}
    answer = client.post(f"{prefix}/chat/completions", json={**body, "max_tokens": 6}).json()
    done = engine.chat(body["messages"], max_tokens=6)  # type: ignore[arg-type]
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": done.text,
        "refusal": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert set(answer) == CHUNK_KEYS
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "qwen-plus"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(done.prompt_token_ids)
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def test_a_stream_has_the_notes_chunks_in_their_order(
    client: httpx2.Client, engine: Engine
) -> None:
    chunks = events_of(ask(client, stream=True, max_tokens=6))
    done = engine.chat([{"role": "user", "content": "hello"}], max_tokens=6)
    assert all(set(chunk) == CHUNK_KEYS for chunk in chunks)
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert all(chunk["usage"] is None for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert all(set(delta) == DELTA_KEYS for delta in deltas)
    assert deltas[0] == {**dict.fromkeys(DELTA_KEYS), "content": "", "role": "assistant"}
    assert all(delta["role"] is None for delta in deltas[1:])
    assert deltas[-1]["content"] == ""
    assert "".join(delta["content"] for delta in deltas) == done.text
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]


def test_usage_comes_last_where_it_was_asked_for(client: httpx2.Client) -> None:
    fields: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events_of(ask(client, max_tokens=3, **fields))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)


def test_a_repeated_prompt_counts_as_cached(client: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "the same long words again and again " * 12}]
    for _ in range(2):
        usage = ask(client, messages=messages, max_tokens=2).json()["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


def test_several_choices_share_the_prompt(client: httpx2.Client) -> None:
    fields: dict[str, Any] = {"n": 3, "seed": 5, "temperature": 2.0, "max_tokens": 12}
    answer = ask(client, **fields).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert answer["usage"]["completion_tokens"] > 12
    streamed = ["", "", ""]
    reasons = ["", "", ""]
    for chunk in events_of(ask(client, stream=True, **fields)):
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["delta"]["content"]
        reasons[choice["index"]] += choice["finish_reason"] or ""
    assert streamed == texts, "the seed makes it the same"
    assert all(reason in ("stop", "length") for reason in reasons)


def test_choices_of_one_request_count_as_one_of_its_key(serve: Callable[..., Any]) -> None:
    with serve(max_open_per_key=1) as client:
        assert len(ask(client, n=3, max_tokens=2).json()["choices"]) == 3


def test_probabilities_are_told_for_every_token_of_the_answer(client: httpx2.Client) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    (choice,) = ask(client, **fields).json()["choices"]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 4
    said = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert said.decode() == choice["message"]["content"]
    for entry in entries:
        top = [one["logprob"] for one in entry["top_logprobs"]]
        assert len(top) == 2
        assert top == sorted(top, reverse=True)
        assert entry["logprob"] == top[0], "greedy"
    chunks = events_of(ask(client, stream=True, **fields))
    streamed = [
        entry
        for chunk in chunks
        if chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in entries]


def test_a_picture_by_data_uri_is_seen(client: httpx2.Client, engine: Engine) -> None:
    part = {"type": "image_url", "image_url": {"url": red_picture()}, "max_pixels": 10**9}
    content = [part, {"type": "text", "text": "What is it?"}]
    answer = ask(client, messages=[{"role": "user", "content": content}], max_tokens=4).json()
    done = engine.chat(
        [{"role": "user", "content": [{"type": "image_url", "image_url": red_picture()},
                                      content[1]]}],
        max_tokens=4,
    )  # fmt: skip
    assert answer["choices"][0]["message"]["content"] == done.text
    assert answer["usage"]["prompt_tokens"] == len(done.prompt_token_ids)


@pytest.mark.parametrize("streams", [False, True])
def test_a_picture_and_a_required_call_go_together(client: httpx2.Client, streams: bool) -> None:
    level = {"type": "string", "enum": ["low", "high"]}
    schema = {
        "type": "object",
        "properties": {"level": level},
        "required": ["level"],
        "additionalProperties": False,
    }
    picture = {"type": "image_url", "image_url": {"url": red_picture()}}
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": [picture, {"type": "text", "text": "Ring?"}]}],
        "tools": [{"type": "function", "function": {"name": "ring", "parameters": schema}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 100,
    }
    if streams:
        options = {"include_usage": True}
        chunks = events_of(ask(client, **asked, stream=True, stream_options=options))
        pieces = [
            piece["function"]
            for chunk in chunks[:-1]
            for piece in chunk["choices"][0]["delta"]["tool_calls"] or ()
        ]
        (name,) = [piece["name"] for piece in pieces if piece.get("name")]
        arguments = "".join(piece["arguments"] for piece in pieces)
        usage = chunks[-1]["usage"]
    else:
        whole = ask(client, **asked).json()
        (call,) = whole["choices"][0]["message"]["tool_calls"]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        usage = whole["usage"]
    assert name == "ring"
    assert json.loads(arguments)["level"] in level["enum"]
    assert usage["prompt_tokens_details"]["image_tokens"] > 0


def test_a_schema_is_kept(client: httpx2.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"fire": {"type": "boolean"}},
        "required": ["fire"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "f", "strict": True, "schema": schema}}
    answer = ask(client, response_format=form, max_tokens=40).json()["choices"][0]
    assert isinstance(json.loads(answer["message"]["content"])["fire"], bool)
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize("begun", ["", '{"fire": ', '{"smoke": [1'])
def test_json_objects_are_kept_whole_and_streamed(
    client: httpx2.Client, engine: Engine, begun: str
) -> None:
    """An answer that is begun shows that the form holds inside of it, too."""
    messages = [{"role": "user", "content": "hello"}]
    if begun:
        messages.append({"role": "assistant", "content": begun, "partial": True})  # type: ignore[dict-item]
    fields: dict[str, Any] = {
        "messages": messages,
        "response_format": {"type": "json_object"},
        "logit_bias": dict.fromkeys(map(str, engine.processor.tokenizer.encode('"]}')), 60),
        "max_tokens": 200,
    }
    (choice,) = ask(client, **fields).json()["choices"]
    text = choice["message"]["content"]
    assert isinstance(json.loads(begun + text), dict)
    assert choice["finish_reason"] == "stop"
    chunks = events_of(ask(client, stream=True, **fields))
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    free = ask(client, **fields | {"response_format": {"type": "text"}}).json()["choices"][0]
    assert free["message"]["content"] != text


@pytest.mark.parametrize("are_lists", [False, True])
def test_an_answer_ends_at_token_ids(
    client: httpx2.Client, engine: Engine, are_lists: bool
) -> None:
    done = engine.chat([{"role": "user", "content": "hello"}], max_tokens=12)
    ids = done.token_ids[4:6] if are_lists else done.token_ids[4:5]
    spelled = engine.processor.tokenizer.decode(ids)
    (choice,) = ask(client, max_tokens=12, stop=[ids] if are_lists else ids).json()["choices"]
    assert choice["message"]["content"] == done.text[: done.text.index(spelled)]
    assert choice["finish_reason"] == "stop"
    assert "all of one kind" in error_of(ask(client, stop=["a", 1]), 400)["message"]


@pytest.mark.parametrize("streams", [False, True])
def test_usage_tells_pictures_from_text(client: httpx2.Client, streams: bool) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": red_picture()}},
        {"type": "text", "text": "fire?"},
    ]
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 3,
        "stream": streams,
        "stream_options": {"include_usage": True} if streams else None,
    }
    answer = ask(client, **fields)
    usage = (events_of(answer)[-1] if streams else answer.json())["usage"]
    told = usage["prompt_tokens_details"]
    assert told["image_tokens"] > 0
    assert told["image_tokens"] + told["text_tokens"] == usage["prompt_tokens"]
    assert "video_tokens" not in told
    assert usage["completion_tokens_details"]["text_tokens"] == 3
    alone = ask(client, max_tokens=3).json()["usage"]
    assert set(alone["prompt_tokens_details"]) == {"audio_tokens", "cached_tokens"}, (
        "the notes' own"
    )


def test_stop_and_text_format_and_null_fields_are_taken(client: httpx2.Client) -> None:
    fields: dict[str, Any] = {"response_format": {"type": "text"}, "seed": None, "stop": ["n"]}
    (choice,) = ask(client, max_tokens=20, **fields).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert "n" not in choice["message"]["content"]


def test_unknown_fields_are_named_and_do_no_harm(client: httpx2.Client) -> None:
    answer = ask(client, max_tokens=1, user="me", best_of=3, **{"bad\r\nname": 1})
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "?, best_of"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "Cherry", "format": "wav"}}, "modalities"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    client: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    error = error_of(ask(client, **fields), 400)
    assert error["param"] == param
    assert error["code"] == "unsupported_value"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages.0"),
        ({"model": None}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"tools": {}}, "tools"),
    ],
)
def test_a_field_of_another_type_is_named(
    client: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    error = error_of(ask(client, **fields), 400)
    assert error["code"] == "invalid_value"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"seed": -1}, "seed"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": 7}, "stop"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "telepathy"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}},
            None,
        ),
    ],
)
def test_a_value_out_of_range_is_explained_by_the_engine_and_its_place_named(
    client: httpx2.Client, fields: dict[str, Any], param: str | None
) -> None:
    error = error_of(ask(client, **fields), 400)
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")
    assert error["param"] == param


def test_an_empty_list_is_told_in_plain_words(client: httpx2.Client) -> None:
    message = error_of(ask(client, messages=[]), 400)["message"]
    assert message == "'messages': should have at least 1 item."


def test_a_prompt_that_is_too_long_has_openai_s_code(client: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "word " * 20_000}]
    for stream in (False, True):
        error = error_of(ask(client, messages=messages, stream=stream), 400)
        assert error["code"] == "context_length_exceeded"


def test_another_model_is_not_found(client: httpx2.Client) -> None:
    assert error_of(ask(client, model="gpt-4o"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_request_is_400(client: httpx2.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(client.post("/v1/chat/completions", content=body, headers=headers), 400)


def test_a_body_that_is_too_large_is_413(serve: Callable[..., Any]) -> None:
    messages = [{"role": "user", "content": "word " * 1000}]
    with serve(max_body_bytes=1000) as client:
        assert error_of(ask(client, messages=messages), 413)["code"] == "request_too_large"
        pieces = client.post(
            "/v1/chat/completions",
            content=iter([json.dumps({"model": "judge", "messages": messages}).encode()]),
            headers={"content-type": "application/json"},
        )
        assert error_of(pieces, 413)["code"] == "request_too_large"
        assert ask(client, max_tokens=1).status_code == 200


def running(client: httpx2.Client) -> int:
    (line,) = [
        one
        for one in client.get("/metrics").text.splitlines()
        if one.startswith("qianyan_requests_running")
    ]
    return int(float(line.split()[1]))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_request(
    serve: Callable[..., Any], engine: Engine, stream: bool
) -> None:
    """Its seat and its blocks are free again before the answer could have been finished."""
    pool = engine._scheduler.pool
    with serve() as client:
        body = json.dumps(
            {
                "model": "judge",
                "messages": [{"role": "user", "content": "a story"}],
                "stream": stream,
                "max_tokens": 1500,
                "logit_bias": {str(token): -100 for token in engine._defaults.stop_token_ids},
            }
        ).encode()
        address = urlsplit(str(client.base_url))
        with socket.create_connection((address.hostname, address.port)) as raw:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                f"authorization: {client.headers['authorization']}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            raw.sendall(head.encode() + body)
            wait_until(lambda: pool.num_available < pool.num_blocks)
            assert running(client) == 1
        started = time.monotonic()
        wait_until(lambda: running(client) == 0 and pool.num_available == pool.num_blocks)
        assert time.monotonic() - started < 3, "it went on without a reader"


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came true")


def test_models_are_listed_by_all_their_names(client: httpx2.Client) -> None:
    for prefix in ("/v1", "/compatible-mode/v1"):
        listed = client.get(f"{prefix}/models").json()
        assert [one["id"] for one in listed["data"]] == ["judge", "qwen-plus"]
        assert client.get(f"{prefix}/models/qwen-plus").json() == listed["data"][1]
        assert error_of(client.get(f"{prefix}/models/a/b"), 404)["code"] == "model_not_found"


def test_a_body_that_is_no_object_is_told_what_is_missing(client: httpx2.Client) -> None:
    body = b'{"model": "judge", "messages": [{"role": "user", "content": "hello"}]}'
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d sends unasked
    for headers in ({}, form):
        error = error_of(client.post("/v1/chat/completions", content=body, headers=headers), 400)
        assert error["code"] == "invalid_json"
        assert "Content-Type: application/json" in error["message"]
    error = error_of(client.post("/v1/chat/completions", json=[1]), 400)
    assert error["message"] == "The body is JSON, but no object; expected an object in braces."
