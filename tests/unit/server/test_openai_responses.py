"""/responses on the wire: whole and streamed, kept and gone on from, refused with the place."""

import base64
import io
import json
import runpy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from PIL import Image
from pydantic import TypeAdapter

from qianyan.engine.engine import Engine
from qianyan.server.errors import ModelFailedError

OTHER = {"authorization": "Bearer sk-test-9876543210"}
LAST = [{"role": "user", "content": "What is it?"}]
LONG = {"type": "json_schema", "name": "long", "schema": {"type": "string", "minLength": 5000}}
CLIENT = runpy.run_path(str(Path(__file__).with_name("folded_response.py")))
fold: Callable[..., dict[str, Any]] = CLIENT["fold"]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def kept(
    serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A client of a server that keeps responses."""
    with serve(state_folder=tmp_path_factory.mktemp("state")) as one:
        yield one


def post(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    return client.post("/v1/responses", json={"model": "judge", "input": "hello", **fields})


def ask(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = post(client, **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert Response.model_validate(body).id == body["id"]
    return body


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *blocks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        events.append(event)
    return events


def text_of(response: dict[str, Any]) -> str:
    return Response.model_validate(response).output_text


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "request_id"}
    error: dict[str, Any] = answer.json()["error"]
    return error


def until_over(client: httpx2.Client, response_id: str) -> dict[str, Any]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        response: dict[str, Any] = client.get(f"/v1/responses/{response_id}").json()
        if response["status"] not in ("queued", "in_progress"):
            return response
        time.sleep(0.05)
    raise AssertionError("the response is never over")


def red_picture() -> str:
    held = io.BytesIO()
    Image.new("RGB", (120, 90), (200, 20, 20)).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


@pytest.mark.parametrize("prefix", ["/v1", "/compatible-mode/v1"])
def test_a_response_has_the_engines_words_and_says_what_was_set(
    kept: httpx2.Client, engine: Engine, prefix: str
) -> None:
    body = {
        "model": "qwen-plus", "input": "hello", "instructions": "Be brief.", "metadata": {"a": "b"},
        "temperature": 0.0, "max_output_tokens": 400,
    }  # fmt: skip
    response = kept.post(f"{prefix}/responses", json=body).json()
    done = engine.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    )
    assert text_of(response) == done.text
    assert response["status"] == "completed"
    assert response["completed_at"] >= response["created_at"] > 1_700_000_000
    assert response["usage"] == {
        "input_tokens": done.usage.prompt_tokens,
        "input_tokens_details": response["usage"]["input_tokens_details"],
        "output_tokens": done.usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": done.usage.prompt_tokens + done.usage.completion_tokens,
    }
    assert {name: response[name] for name in body if name != "input"} == {
        name: value for name, value in body.items() if name != "input"
    }
    assert response["store"] is True
    assert response["background"] is False
    assert response["text"] == {"format": {"type": "text"}}
    assert (response["tools"], response["tool_choice"]) == ([], "auto")


def test_a_stream_folds_to_the_same_response(kept: httpx2.Client) -> None:
    whole = ask(kept)
    response = fold(events_of(post(kept, stream=True)))
    assert text_of(response) == text_of(whole)
    for field in set(whole) - {"id", "created_at", "completed_at", "output", "usage"}:
        assert response[field] == whole[field], field
    assert response["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_a_stored_response_is_shown_and_told_again(kept: httpx2.Client) -> None:
    response = fold(events_of(post(kept, stream=True)))
    place = f"/v1/responses/{response['id']}"
    assert kept.get(place).json() == response
    again = events_of(kept.get(place, params={"stream": True}))
    assert fold(again) == response
    rest = events_of(kept.get(place, params={"stream": True, "starting_after": 4}))
    assert rest == again[5:]


def test_a_conversation_goes_on_from_a_response(kept: httpx2.Client) -> None:
    """The prompt is the one that sending all messages again would make, instructions apart."""
    first = ask(kept, input="My name is Alice.", instructions="Be brief.")
    second = ask(kept, input="What is my name?", previous_response_id=first["id"])
    third = ask(kept, input="And now?", previous_response_id=second["id"])
    assert third["previous_response_id"] == second["id"]
    said = [
        {"role": "user", "content": "My name is Alice."},
        *first["output"],
        {"role": "user", "content": "What is my name?"},
        *second["output"],
        {"role": "user", "content": "And now?"},
    ]
    alone = ask(kept, input=said)
    assert alone["usage"]["input_tokens"] == third["usage"]["input_tokens"]
    assert text_of(alone) == text_of(third)
    chat = {"model": "judge", "messages": [
        {"role": one["role"], "content": one["content"] if isinstance(one["content"], str)
         else one["content"][0]["text"]} for one in said
    ]}  # fmt: skip
    counted = kept.post("/v1/chat/completions", json=chat).json()["usage"]["prompt_tokens"]
    assert counted == third["usage"]["input_tokens"]


def test_the_oldest_turns_are_left_out_where_that_is_asked(kept: httpx2.Client) -> None:
    long = {"role": "user", "content": "word " * 700}
    said = [{"role": "developer", "content": "Be brief."}, *[long] * 9, *LAST]
    assert error_of(post(kept, input=said), 400)["code"] == "context_length_exceeded"
    cut = ask(kept, input=said, truncation="auto")
    assert cut["truncation"] == "auto"
    assert cut["status"] == "completed"
    left = ask(kept, input=[said[0], *LAST])
    assert cut["usage"]["input_tokens"] >= left["usage"]["input_tokens"]
    (first, *_, last) = kept.get(
        f"/v1/responses/{cut['id']}/input_items", params={"order": "asc"}
    ).json()["data"]
    assert (first["role"], last["content"][0]["text"]) == ("developer", "What is it?")
    alone = [{"role": "user", "content": "word " * 20_000}]
    error = error_of(post(kept, input=alone, truncation="auto"), 400)
    assert error["code"] == "context_length_exceeded"


def test_items_can_be_sent_by_their_ids(kept: httpx2.Client) -> None:
    first = ask(kept, input="My name is Alice.")
    (sent,) = kept.get(f"/v1/responses/{first['id']}/input_items").json()["data"]
    references = [
        {"type": "item_reference", "id": sent["id"]},
        {"id": first["output"][0]["id"]},
        {"role": "user", "content": "What is my name?"},
    ]
    referred = ask(kept, input=references)
    going_on = ask(kept, input="What is my name?", previous_response_id=first["id"])
    assert referred["usage"]["input_tokens"] == going_on["usage"]["input_tokens"]
    items = kept.get(
        f"/v1/responses/{referred['id']}/input_items", params={"order": "asc", "limit": 2}
    ).json()
    assert items["data"] == [sent, first["output"][0]]
    assert items["has_more"] is True
    assert (items["first_id"], items["last_id"]) == (sent["id"], first["output"][0]["id"])
    error = error_of(post(kept, input=[{"type": "item_reference", "id": "msg_1"}]), 400)
    assert error["param"] == "input[0].id"


def test_what_is_not_to_be_stored_is_not(kept: httpx2.Client) -> None:
    response = ask(kept, store=False)
    assert response["store"] is False
    assert error_of(kept.get(f"/v1/responses/{response['id']}"), 404)["code"] == "not_found"


def test_a_deleted_response_is_gone(kept: httpx2.Client) -> None:
    response = ask(kept)
    place = f"/v1/responses/{response['id']}"
    assert kept.delete(place).json() == {
        "id": response["id"], "object": "response", "deleted": True
    }  # fmt: skip
    error_of(kept.get(place), 404)
    error_of(kept.delete(place), 404)
    error = error_of(post(kept, previous_response_id=response["id"]), 404)
    assert error["code"] == "previous_response_not_found"
    assert error["param"] == "previous_response_id"


def test_another_keys_responses_are_not_found(kept: httpx2.Client) -> None:
    response = ask(kept)
    place = f"/v1/responses/{response['id']}"
    for answer in (
        kept.get(place, headers=OTHER),
        kept.get(place, headers=OTHER, params={"stream": True}),
        kept.get(f"{place}/input_items", headers=OTHER),
        kept.post(f"{place}/cancel", headers=OTHER),
        kept.delete(place, headers=OTHER),
        kept.post(
            "/v1/responses",
            headers=OTHER,
            json={"model": "judge", "input": "x", "previous_response_id": response["id"]},
        ),
    ):
        error_of(answer, 404)
    item = {"type": "item_reference", "id": response["output"][0]["id"]}
    body = {"model": "judge", "input": [item]}
    error_of(kept.post("/v1/responses", headers=OTHER, json=body), 400)
    assert kept.get(place).json() == response


def test_responses_outlive_the_server(serve: Callable[..., Any], tmp_path: Path) -> None:
    with serve(state_folder=tmp_path) as client:
        first = ask(client, input="My name is Alice.")
    with serve(state_folder=tmp_path) as client:
        assert client.get(f"/v1/responses/{first['id']}").json() == first
        second = ask(client, input="And now?", previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def test_without_a_state_folder_nothing_is_kept_and_that_is_said(client: httpx2.Client) -> None:
    assert ask(client)["store"] is False
    for fields in ({"store": True}, {"background": True}, {"previous_response_id": "resp_1"}):
        assert error_of(post(client, **fields), 501)["code"] == "nothing_kept"


def test_a_picture_is_seen(kept: httpx2.Client) -> None:
    parts = [
        {"type": "input_image", "image_url": red_picture(), "detail": "auto"},
        {"type": "input_text", "text": "what"},
    ]
    seen = ask(kept, input=[{"role": "user", "content": parts}])
    blind = ask(kept, input=[{"role": "user", "content": parts[1:]}])
    assert seen["usage"]["input_tokens"] > blind["usage"]["input_tokens"] + 10
    again = ask(kept, input="and now", previous_response_id=seen["id"])
    assert again["usage"]["input_tokens"] > seen["usage"]["input_tokens"], "it is seen again"


def test_a_document_is_read(kept: httpx2.Client) -> None:
    text = base64.b64encode(b"The exit is on the left.").decode()
    file = {
        "type": "input_file",
        "file_data": f"data:text/plain;base64,{text}",
        "filename": "a.txt",
    }
    parts = [file, {"type": "input_text", "text": "Where is it?"}]
    assert ask(kept, input=[{"role": "user", "content": parts}])["usage"]["input_tokens"] > 15


def test_an_uploaded_document_is_read_by_its_id(kept: httpx2.Client) -> None:
    text = b"The exit is on the left. " * 8
    upload = {"files": {"file": ("exit.txt", text)}, "data": {"purpose": "user_data"}}
    file_id = kept.post("/v1/files", **upload).json()["id"]  # type: ignore[arg-type]
    parts = [{"type": "input_file", "file_id": file_id}, {"type": "input_text", "text": "Where?"}]
    read = ask(kept, input=[{"role": "user", "content": parts}])
    assert read["usage"]["input_tokens"] > 60
    again = ask(kept, input="And then?", previous_response_id=read["id"])
    assert again["usage"]["input_tokens"] > read["usage"]["input_tokens"]
    parts[0]["file_id"] = "file-nobody-has-this"
    error = error_of(post(kept, input=[{"role": "user", "content": parts}]), 400)
    assert (error["code"], error["param"]) == ("file_not_found", "input")
    mine = [{"role": "user", "content": [{**parts[0], "file_id": file_id}]}]
    body = {"model": "judge", "input": mine}
    error_of(kept.post("/v1/responses", headers=OTHER, json=body), 400)


def test_a_form_is_kept_whole_and_streamed(kept: httpx2.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"fire": {"type": "boolean"}},
        "required": ["fire"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "name": "v", "schema": schema, "strict": True}}
    whole = ask(kept, text=form)
    assert whole["text"] == form
    assert isinstance(json.loads(text_of(whole))["fire"], bool)
    assert text_of(fold(events_of(post(kept, text=form, stream=True)))) == text_of(whole)
    loose = ask(kept, text={"format": {"type": "json_object"}}, max_output_tokens=50)
    assert text_of(loose).startswith("{")


def test_an_answer_that_is_cut_is_incomplete(kept: httpx2.Client) -> None:
    response = ask(kept, max_output_tokens=2)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 2
    events = events_of(post(kept, max_output_tokens=2, stream=True))
    assert events[-1]["type"] == "response.incomplete"


def test_probabilities_are_told_where_they_are_included(kept: httpx2.Client) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = ask(kept, **asked)
    entries = whole["output"][0]["content"][0]["logprobs"]
    assert b"".join(bytes(one["bytes"]) for one in entries).decode() == text_of(whole)
    assert all(len(one["top_logprobs"]) == 2 for one in entries)
    events = events_of(post(kept, **asked, stream=True))
    told = [one for event in events for one in event.get("logprobs", ()) if "delta" in event]
    assert told == entries
    assert fold(events)["output"][0]["content"][0]["logprobs"] == entries


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "magic"}]}, "input[0].type"),
        ({"input": [{"content": "hello"}]}, "input[0].type"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_logprobs": 50}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**9}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "text.format"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "web_search"}, {"type": "function", "name": "a b"}],
          "tool_choice": {"type": "allowed_tools", "tools": [{"name": "a b"}]}}, "tools[1].name"),
        ({"tools": [{"type": "file_search"}]}, "tools[0]"),
        ({"tools": [{"type": "web_search", "search_context_size": "x"}]},
         "tools[0].search_context_size"),
        ({"tools": [{"type": "web_search", "filters": 5}]}, "tools[0].filters"),
        ({"tools": [{"type": "web_search", "external_web_access": False}]},
         "tools[0].external_web_access"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": 5}, "tools"),
        ({"tools": [{"type": ["function"]}]}, "tools[0]"),
        ({"tool_choice": {"type": ["function"]}}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "tools": 5}}, "tool_choice.tools"),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [{"name": "f"}]}},
            "tool_choice.tools",
        ),
        ({"reasoning": {"effort": "wild"}}, "reasoning.effort"),
        ({"reasoning": {"effort": "max"}}, "reasoning.effort"),
        ({"enable_thinking": True}, "enable_thinking"),
        ({"truncation": "some"}, "truncation"),
        ({"include": ["everything"]}, "include"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True, "stream": True}, "stream"),
        ({"background": True, "store": False}, "store"),
        ({"background": True, "input": [5]}, "input[0]"),
        ({"background": True, "tools": [{"type": "mcp"}]}, "tools[0]"),
        (
            {"input": [{"role": "user", "content": [
                {"type": "input_text", "text": "x"},
                {"type": "input_image", "image_url": "/etc/passwd"},
            ]}]},
            "input[0].content[1].image_url",
        ),
    ],
)  # fmt: skip
def test_one_wrong_field_is_400_with_its_place(
    kept: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    error = error_of(post(kept, **fields), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    "field",
    [
        '"text": {"format": {"type": "json_object", "x": NaN}}',
        '"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,",'
        ' "max_pixels": 1e999}]}]',
    ],
)
def test_numbers_that_are_none_are_refused(kept: httpx2.Client, field: str) -> None:
    content = f'{{"model": "judge", "input": "x", {field}}}'
    headers = {"content-type": "application/json"}
    answer = kept.post("/v1/responses", content=content, headers=headers)
    assert error_of(answer, 400)["code"] == "invalid_json"


def test_a_place_is_right_behind_instructions_and_what_went_before(kept: httpx2.Client) -> None:
    first = ask(kept)
    wrong = [
        {"role": "user", "content": "x"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]},
    ]
    fields = {"input": wrong, "instructions": "x", "previous_response_id": first["id"]}
    error = error_of(post(kept, **fields), 400)
    assert error["param"] == "input[1].content[0].image_url"
    assert error["message"].startswith("input[1].content[0].image_url is 'file:///etc/passwd'")


def test_another_model_is_not_found(kept: httpx2.Client) -> None:
    assert error_of(post(kept, model="gpt-4o"), 404)["code"] == "model_not_found"


def test_unknown_fields_are_named(kept: httpx2.Client) -> None:
    for is_background in (False, True):
        given = {"service_tier": "auto", "stream_options": {}, "safety": 1, "magic": True}
        answer = post(kept, **given, background=is_background)
        assert answer.headers["x-ignored-fields"] == "magic, safety"


def test_a_background_response_is_queued_made_and_gone_on_from(kept: httpx2.Client) -> None:
    queued = ask(kept, background=True, metadata={"a": "b"})
    assert queued["status"] == "queued"
    assert queued["background"] is True
    done = until_over(kept, queued["id"])
    assert done["status"] == "completed"
    assert done["metadata"] == {"a": "b"}
    assert text_of(done) == text_of(ask(kept))
    assert kept.post(f"/v1/responses/{queued['id']}/cancel").json() == done
    assert ask(kept, previous_response_id=queued["id"])["status"] == "completed"


def test_a_background_response_can_be_cancelled(kept: httpx2.Client) -> None:
    queued = ask(kept, background=True, text={"format": LONG}, max_output_tokens=1500)
    place = f"/v1/responses/{queued['id']}"
    worker = kept.app.state.serving.worker  # type: ignore[attr-defined]
    until = time.monotonic() + 20
    while kept.get(place).json()["status"] != "in_progress" or not worker.num_running:
        assert time.monotonic() < until
        time.sleep(0.02)
    error = error_of(kept.get(place, params={"stream": True}), 400)
    assert error["code"] == "wrong_state"
    error = error_of(post(kept, previous_response_id=queued["id"]), 400)
    assert error["code"] == "wrong_state"
    assert kept.post(f"{place}/cancel").json()["status"] == "cancelled"
    while worker.num_running:
        assert time.monotonic() < until, "its place is never free"
        time.sleep(0.02)
    assert kept.get(place).json()["status"] == "cancelled"


def test_a_background_response_is_made_after_the_server_was_stopped(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    with serve(state_folder=tmp_path) as client:
        queued = ask(client, background=True, text={"format": LONG}, max_output_tokens=900)
        place = f"/v1/responses/{queued['id']}"
        until = time.monotonic() + 20
        while client.get(place).json()["status"] == "queued":
            assert time.monotonic() < until
            time.sleep(0.02)
    with serve(state_folder=tmp_path) as client:
        done = until_over(client, queued["id"])
    assert done["status"] == "incomplete"
    assert done["usage"]["output_tokens"] == 900


def test_what_is_wrong_in_the_background_becomes_the_responses_error(kept: httpx2.Client) -> None:
    queued = ask(kept, background=True, input="word " * 20_000)
    done = until_over(kept, queued["id"])
    assert done["status"] == "failed"
    assert done["error"]["code"] == "context_length_exceeded"
    assert done["output"] == []


def test_a_response_that_was_not_made_in_the_background_is_not_cancelled(
    kept: httpx2.Client,
) -> None:
    response = ask(kept)
    error = error_of(kept.post(f"/v1/responses/{response['id']}/cancel"), 400)
    assert "background true" in error["message"]


def test_who_leaves_a_stream_frees_the_place_and_nothing_is_kept(kept: httpx2.Client) -> None:
    worker = kept.app.state.serving.worker  # type: ignore[attr-defined]
    body = {"model": "judge", "input": "x", "stream": True, "text": {"format": LONG}}
    with kept.stream("POST", "/v1/responses", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        created = json.loads(next(lines).removeprefix("data: "))
        assert worker.num_running == 1
    until = time.monotonic() + 5
    while worker.num_running:
        assert time.monotonic() < until
        time.sleep(0.02)
    error_of(kept.get(f"/v1/responses/{created['response']['id']}"), 404)


def test_a_model_that_breaks_midway_fails_the_response(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    with serve(state_folder=tmp_path) as client:
        worker = client.app.state.serving.worker
        body = {"model": "judge", "input": "x", "stream": True, "text": {"format": LONG}}
        with client.stream("POST", "/v1/responses", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            events = [json.loads(next(lines).removeprefix("data: ")) for _ in range(6)]
            (running,) = worker._open
            worker._loop.call_soon_threadsafe(
                running.take, [], ModelFailedError("The model failed while it was computing.")
            )
            events += [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
    response = fold(events)
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    assert response["output"][0]["status"] == "incomplete"
