"""DashScope's generation paths on the wire: bodies, packets, refusals."""

import base64
import io
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from PIL import Image

from qianyan.engine.engine import Engine

SERVICES = "/api/v1/services/aigc"
TEXT = f"{SERVICES}/text-generation/generation"
PARTS = f"{SERVICES}/multimodal-generation/generation"
STREAM = {"x-dashscope-sse": "enable"}
HELLO = [{"role": "user", "content": "hello"}]


def ask(
    client: httpx2.Client,
    path: str = TEXT,
    *,
    headers: dict[str, str] | None = None,
    sent: dict[str, Any] | None = None,
    **parameters: Any,
) -> httpx2.Response:
    """Ask with an input (`sent`) and parameters."""
    body = {"model": "judge", "input": sent or {"messages": HELLO}, "parameters": parameters}
    return client.post(path, json=body, headers=headers or {})


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()
    assert set(error) == {"code", "message", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["message"].endswith(".")
    return error


def packets_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Read a stream of results, its framing to the letter."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end = answer.text.split("\n\n")
    assert end == ""
    packets = []
    for number, event in enumerate(events, 1):
        head = f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:"
        assert event.startswith(head), event
        packets.append(json.loads(event.removeprefix(head)))
    assert {packet["request_id"] for packet in packets} == {answer.headers["x-request-id"]}
    return packets


def choice_of(packet: dict[str, Any]) -> dict[str, Any]:
    (choice,) = packet["output"]["choices"]
    found: dict[str, Any] = choice
    return found


def red_picture() -> str:
    held = io.BytesIO()
    Image.new("RGB", (120, 90), (200, 20, 20)).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def test_a_prompt_is_answered_with_text(client: httpx2.Client, engine: Engine) -> None:
    answer = ask(client, sent={"prompt": "hello"}, max_tokens=6)
    done = engine.chat(HELLO, max_tokens=6)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["output"] == {"finish_reason": "length", "text": done.text}
    assert body["request_id"] == answer.headers["x-request-id"]
    usage = body["usage"]
    assert usage["input_tokens"] == len(done.prompt_token_ids)
    assert usage["output_tokens"] == 6
    assert usage["total_tokens"] == usage["input_tokens"] + 6
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert set(body) == {"output", "usage", "request_id"}


def test_messages_can_be_answered_with_a_message(client: httpx2.Client, engine: Engine) -> None:
    answer = ask(client, result_format="message", max_tokens=6).json()
    text = engine.chat(HELLO, max_tokens=6).text
    assert answer["output"] == {
        "choices": [
            {
                "finish_reason": "length",
                "index": 0,
                "message": {"role": "assistant", "content": text},
            }
        ]
    }


def test_turns_before_a_prompt_are_read(client: httpx2.Client, engine: Engine) -> None:
    sent = {"prompt": "why", "history": [{"user": "hello", "bot": "yes"}]}
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "why"},
    ]
    answer = ask(client, sent=sent, max_tokens=3).json()
    done = engine.chat(messages, max_tokens=3)
    assert answer["output"]["text"] == done.text
    assert answer["usage"]["input_tokens"] == len(done.prompt_token_ids)


def test_the_parameters_reach_the_engine(client: httpx2.Client, engine: Engine) -> None:
    how: dict[str, Any] = {
        "temperature": 1.9,
        "top_p": 0.9,
        "top_k": 30,
        "seed": 2**40 + 7,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "max_tokens": 12,
        "stop": ["q"],
    }
    answer = ask(client, **how).json()
    assert answer["output"]["text"] == engine.chat(HELLO, **how).text
    plain = engine.chat(HELLO, max_tokens=12).text
    assert answer["output"]["text"] != plain


def test_parts_are_answered_with_parts_and_pictures_counted(
    client: httpx2.Client, engine: Engine
) -> None:
    content = [{"image": red_picture()}, {"text": "What is it?"}]
    sent = {"messages": [{"role": "user", "content": content}]}
    answer = ask(client, PARTS, sent=sent, max_tokens=4, vl_enable_image_hw_output=True).json()
    done = engine.chat(
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": red_picture()},
                            {"type": "text", "text": "What is it?"}],
            }
        ],
        max_tokens=4,
    )  # fmt: skip
    width, height = done.images[0].seen_wh
    assert choice_of(answer)["message"] == {
        "role": "assistant",
        "content": [{"text": done.text}, {"image_hw": [height, width], "original_hw": [90, 120]}],
    }
    usage, num_tokens = answer["usage"], width * height // 28**2
    assert usage["image_tokens"] == num_tokens
    assert usage["input_tokens"] == len(done.prompt_token_ids)
    assert usage["input_tokens_details"] == {
        "image_tokens": num_tokens,
        "text_tokens": usage["input_tokens"] - num_tokens,
    }
    assert usage["output_tokens_details"] == {"text_tokens": 4}
    assert "video_tokens" not in usage


def test_a_video_of_frames_is_seen_and_counted(client: httpx2.Client) -> None:
    content = [{"video": [red_picture()] * 4, "fps": 2}, {"text": "What moves?"}]
    sent = {"messages": [{"role": "user", "content": content}]}
    usage = ask(client, PARTS, sent=sent, max_tokens=2).json()["usage"]
    assert usage["video_tokens"] > 0
    assert "image_tokens" not in usage
    assert usage["input_tokens_details"]["video_tokens"] == usage["video_tokens"]


@pytest.mark.parametrize("header", [STREAM, {"accept": "text/event-stream"}])
def test_a_stream_has_numbered_packets_that_hold_all_so_far(
    client: httpx2.Client, engine: Engine, header: dict[str, str]
) -> None:
    packets = packets_of(ask(client, headers=header, max_tokens=8))
    done = engine.chat(HELLO, max_tokens=8)
    texts = [packet["output"]["text"] for packet in packets]
    assert len(texts) > 2
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert texts[-1] == done.text
    reasons = [packet["output"]["finish_reason"] for packet in packets]
    assert reasons == ["null"] * (len(packets) - 1) + ["length"]
    counts = [packet["usage"]["output_tokens"] for packet in packets]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert {packet["usage"]["input_tokens"] for packet in packets} == {len(done.prompt_token_ids)}


@pytest.mark.parametrize("path", [TEXT, PARTS])
def test_incremental_packets_hold_what_is_new(
    client: httpx2.Client, engine: Engine, path: str
) -> None:
    how: dict[str, Any] = {"result_format": "message", "max_tokens": 8}
    packets = packets_of(ask(client, path, headers=STREAM, incremental_output=True, **how))
    text = engine.chat(HELLO, max_tokens=8).text
    contents = [choice_of(packet)["message"]["content"] for packet in packets]
    if path == PARTS:
        assert contents[-1] == []
        contents = ["".join(part["text"] for part in content) for content in contents]
    assert contents[-1] == ""
    assert "".join(contents) == text
    cumulative = packets_of(ask(client, path, headers=STREAM, **how))
    whole = choice_of(cumulative[-1])["message"]["content"]
    assert whole == ([{"text": text}] if path == PARTS else text)


def test_several_choices_come_whole_and_in_packets(client: httpx2.Client) -> None:
    how: dict[str, Any] = {"n": 3, "seed": 5, "temperature": 2.0, "max_tokens": 12}
    answer = ask(client, **how).json()
    choices = answer["output"]["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    streamed, totals = ["", "", ""], [0]
    for packet in packets_of(ask(client, headers=STREAM, incremental_output=True, **how)):
        choice = choice_of(packet)
        streamed[choice["index"]] += choice["message"]["content"]
        totals.append(packet["usage"]["output_tokens"])
    assert streamed == texts
    assert totals == sorted(totals)
    assert totals[-1] == answer["usage"]["output_tokens"]


def test_probabilities_are_told(client: httpx2.Client) -> None:
    how: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    choice = choice_of(ask(client, **how).json())
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in entries).decode() == choice["message"]["content"]
    assert all(len(one["top_logprobs"]) == 2 for one in entries)
    last = packets_of(ask(client, headers=STREAM, **how))[-1]
    streamed = choice_of(last)["logprobs"]["content"]
    assert [one["token"] for one in streamed] == [one["token"] for one in entries]


def test_a_schema_is_kept(client: httpx2.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"fire": {"type": "boolean"}},
        "required": ["fire"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "f", "strict": True, "schema": schema}}
    answer = ask(client, response_format=form, max_tokens=40).json()
    assert isinstance(json.loads(answer["output"]["text"])["fire"], bool)


def test_parameters_without_meaning_here_are_named(client: httpx2.Client) -> None:
    answer = ask(client, max_tokens=1, best_of=3, stream=True, result_format="text")
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "best_of"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": {"prompt": "x"}}, 400, "BadRequest.EmptyModel"),
        ({"model": "", "input": {"prompt": "x"}}, 400, "BadRequest.EmptyModel"),
        ({"model": "judge"}, 400, "BadRequest.EmptyInput"),
        ({"model": "judge", "input": {}}, 400, "BadRequest.EmptyInput"),
        ({"model": "judge", "input": {"messages": []}}, 400, "BadRequest.EmptyInput"),
        (
            {"model": "judge", "input": {"prompt": "x", "messages": HELLO}},
            400,
            "BadRequest.EmptyInput",
        ),
        ({"model": "gpt-4o", "input": {"prompt": "x"}}, 404, "ModelNotFound"),
        ({"model": "judge", "input": "x"}, 400, "InvalidParameter"),
        ([], 400, "InvalidParameter"),
    ],
)
@pytest.mark.parametrize("path", [TEXT, PARTS])
def test_a_body_without_what_is_needed_is_refused(
    client: httpx2.Client, path: str, body: Any, status: int, code: str
) -> None:
    assert error_of(client.post(path, json=body), status)["code"] == code


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"temperature": "hot"}, "'parameters.temperature'"),
        ({"temperature": 3}, "temperature is 3"),
        ({"top_p": 0}, "top_p is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"result_format": "xml"}, "'parameters.result_format'"),
        ({"incremental_output": "yes"}, "'parameters.incremental_output'"),
        ({"n": 9}, "n is 9"),
        ({"result_format": "text", "n": 2}, "result_format is text"),
        ({"ocr_options": {"task": "read it"}}, "ocr_options.task is"),
        ({"translation_options": {"target_lang": "English"}}, "translation_options is given"),
    ],
)
@pytest.mark.parametrize("headers", [{}, STREAM])
def test_a_parameter_that_is_wrong_is_explained(
    client: httpx2.Client, parameters: dict[str, Any], words: str, headers: dict[str, str]
) -> None:
    error = error_of(ask(client, headers=headers, **parameters), 400)
    assert error["code"] == "InvalidParameter"
    assert words in error["message"]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"image": "file:///etc/passwd"}, "InvalidParameter"),
        ({"image": "/etc/passwd"}, "InvalidParameter"),
        ({"video": ["/etc/passwd"] * 4}, "InvalidParameter"),
        ({"file": "/etc/passwd"}, "InvalidParameter"),
        ({"image": "oss://dashscope-instant/x.png"}, "InvalidURL"),
        ({"audio": "https://a.example/a.wav"}, "InvalidParameter"),
        ({"image": "http://127.0.0.1:9/a.png"}, "InvalidURL"),
        ({"image": "data:image/png;base64,eA=="}, "InvalidParameter"),
    ],
)
def test_sources_of_this_machine_and_broken_ones_are_refused(
    client: httpx2.Client, part: dict[str, Any], code: str
) -> None:
    sent = {"messages": [{"role": "user", "content": [part, {"text": "x"}]}]}
    assert error_of(ask(client, PARTS, sent=sent), 400)["code"] == code


def test_refusals_of_the_edge_have_this_dialect_s_body(serve: Callable[..., Any]) -> None:
    with serve(max_body_bytes=1000) as client:
        wrong = ask(client, headers={"authorization": "Bearer sk-wrong-key"})
        assert error_of(wrong, 401)["code"] == "InvalidApiKey"
        long = ask(client, sent={"prompt": "x" * 2000})
        assert error_of(long, 413)["code"] == "RequestTooLarge"
        assert error_of(client.get(TEXT), 405)["code"] == "MethodNotAllowed"
        assert error_of(client.post("/api/v1/nothing"), 404)["code"] == "NotFound"


def test_a_model_that_breaks_ends_the_stream_with_an_error_event(
    serve: Callable[..., Any], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bailian's SDK compares the event's name to the letter and reads the status from a line."""

    def broken() -> Any:
        raise RuntimeError("bad kernel at 0xdeadbeef")

    parameters = {
        "max_tokens": 1500,
        "incremental_output": True,
        "logit_bias": {str(token): -100 for token in engine._defaults.stop_token_ids},
    }
    body = {"model": "judge", "input": {"messages": HELLO}, "parameters": parameters}
    with serve() as client:
        lines: list[str] = []
        with client.stream("POST", TEXT, json=body, headers=STREAM) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if line == "id:3":
                    monkeypatch.setattr(engine, "step", broken)
        refused = error_of(ask(client), 503)
    *_, number, name, status, comment, data, end = lines
    assert number == f"id:{sum(line.startswith('id:') for line in lines)}"
    assert (name, status, comment, end) == ("event:error", "status:500", ":HTTP_STATUS/500", "")
    error = json.loads(data.removeprefix("data:"))
    assert error["code"] == "InternalError"
    assert error["request_id"] == answer.headers["x-request-id"]
    assert "0xdeadbeef" not in data
    assert refused["code"] == "ModelUnavailable"


def test_a_call_that_is_asked_for_comes_whole_and_in_pieces(client: httpx2.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "tally", "parameters": schema}}
    how: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "max_tokens": 200}
    choice = choice_of(ask(client, **how).json())
    assert choice["finish_reason"] == "tool_calls"
    whole = choice["message"]["tool_calls"][0]["function"]
    assert whole["name"] == "tally"
    assert 0 <= json.loads(whole["arguments"])["n"] <= 99
    packets = packets_of(ask(client, headers=STREAM, incremental_output=True, **how))
    messages = [choice_of(packet)["message"] for packet in packets]
    pieces = [one for message in messages for one in message.get("tool_calls", [])]
    first, *rest = [one for one in pieces if one["index"] == 0]
    assert first["function"]["name"] == "tally"
    assert all(one["id"] == "" and "name" not in one["function"] for one in rest)
    assert "".join(one["function"]["arguments"] for one in [first, *rest]) == whole["arguments"]
    text = error_of(ask(client, result_format="text", **how), 400)
    assert "result_format is text" in text["message"]
