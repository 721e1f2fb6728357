"""The cases of the Open Responses compliance suite, asked as it asks them.

Answers and events are checked against the forms that the protocol gives them. A model that has
learnt nothing calls no function by itself, so the two cases of functions ask for a call.
"""

import base64
import io
import json
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

KEY = "sk-e2e-0123456789"


def picture() -> str:
    held = io.BytesIO()
    Image.new("RGB", (32, 32), (220, 20, 60)).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


HEART = picture()
NUMBER, TEXT, MAYBE_TEXT = {"type": "number"}, {"type": "string"}, {"type": ["string", "null"]}
WHOLE, FLAG = {"type": "integer"}, {"type": "boolean"}
STATUS = {"enum": ["in_progress", "completed", "incomplete"]}


def form(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


LOGPROBS = {"type": "array", "items": form(token=TEXT, logprob=NUMBER, bytes={"type": "array"})}
SPOKEN = form(
    type={"const": "output_text"}, text=TEXT, annotations={"type": "array"}, logprobs=LOGPROBS
)
MESSAGE = form(
    type={"const": "message"}, id=TEXT, status=STATUS, role={"const": "assistant"},
    content={"type": "array", "items": SPOKEN},
)  # fmt: skip
CALL = form(
    type={"const": "function_call"}, id=TEXT, call_id=TEXT, name=TEXT, arguments=TEXT, status=STATUS
)
THOUGHT = form(type={"const": "reasoning"}, id=TEXT, summary={"type": "array"})
RESOURCE = form(
    id=TEXT, object={"const": "response"}, created_at=WHOLE,
    completed_at={"type": ["integer", "null"]}, status=TEXT,
    incomplete_details={"anyOf": [form(reason=TEXT), {"type": "null"}]}, model=TEXT,
    previous_response_id=MAYBE_TEXT, instructions=MAYBE_TEXT,
    output={"type": "array", "items": {"anyOf": [MESSAGE, CALL, THOUGHT]}},
    error={"anyOf": [form(code=TEXT, message=TEXT), {"type": "null"}]},
    tools={"type": "array", "items": form(
        type={"const": "function"}, name=TEXT, description=MAYBE_TEXT,
        parameters={"type": ["object", "null"]}, strict={"type": ["boolean", "null"]},
    )},
    tool_choice={"anyOf": [{"enum": ["none", "auto", "required"]}, form(type=TEXT)]},
    truncation={"enum": ["auto", "disabled"]}, parallel_tool_calls=FLAG,
    text=form(format=form(type={"enum": ["text", "json_object", "json_schema"]})),
    top_p=NUMBER, presence_penalty=NUMBER, frequency_penalty=NUMBER, top_logprobs=WHOLE,
    temperature=NUMBER, reasoning=form(effort=MAYBE_TEXT, summary=MAYBE_TEXT),
    usage={"anyOf": [{"type": "null"}, form(
        input_tokens=WHOLE, output_tokens=WHOLE, total_tokens=WHOLE,
        input_tokens_details=form(cached_tokens=WHOLE),
        output_tokens_details=form(reasoning_tokens=WHOLE),
    )]},
    max_output_tokens={"type": ["integer", "null"]}, max_tool_calls={"type": ["integer", "null"]},
    store=FLAG, background=FLAG, service_tier=TEXT, metadata={"type": "object"},
    safety_identifier=MAYBE_TEXT, prompt_cache_key=MAYBE_TEXT,
)  # fmt: skip
AT = {"item_id": TEXT, "output_index": WHOLE}
IN_PART = {**AT, "content_index": WHOLE}
ITEM = {"output_index": WHOLE, "item": {"type": "object", "required": ["id", "type"]}}
EVENTS = {
    **{name: {"response": RESOURCE} for name in ("created", "in_progress", "completed")},
    "incomplete": {"response": RESOURCE},
    "output_item.added": ITEM,
    "output_item.done": {"output_index": WHOLE, "item": {"anyOf": [MESSAGE, CALL, THOUGHT]}},
    "content_part.added": {**IN_PART, "part": SPOKEN},
    "content_part.done": {**IN_PART, "part": SPOKEN},
    "output_text.delta": {**IN_PART, "delta": TEXT, "logprobs": LOGPROBS},
    "output_text.done": {**IN_PART, "text": TEXT, "logprobs": LOGPROBS},
    "function_call_arguments.delta": {**AT, "delta": TEXT},
    "function_call_arguments.done": {**AT, "arguments": TEXT},
}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string", "description": "City and state"}},
        "required": ["location"],
    },
}
WEATHER_ASKED = {
    "input": [said("user", "What's the weather like in San Francisco?")],
    "tools": [WEATHER],
    "tool_choice": "required",
    "max_output_tokens": 300,
}


def ask(house: Any, **body: Any) -> httpx2.Response:
    answer = httpx2.post(
        f"{house.address}/v1/responses",
        headers={"authorization": f"Bearer {KEY}"},
        json={"model": "qwen-plus", **body},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Read a stream, each event checked against its form; the last is the response's."""
    *lines, done = [line for line in answer.text.split("\n") if line.startswith("data: ")]
    assert done == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        kind = event["type"].removeprefix("response.")
        Draft202012Validator(form(type=TEXT, **EVENTS[kind])).validate(event)
    return events


@pytest.mark.parametrize(
    "sent",
    [
        [said("user", "Say hello in exactly 3 words.")],
        [
            said("system", "You are a pirate. Always respond in pirate speak."),
            said("user", "Say hello."),
        ],
        [
            said(
                "user",
                [
                    {"type": "input_text", "text": "What do you see in this image?"},
                    {"type": "input_image", "image_url": HEART},
                ],
            )
        ],
        [
            said("user", "My name is Alice."),
            said("assistant", "Hello Alice! Nice to meet you. How can I help you today?"),
            said("user", "What is my name?"),
        ],
    ],
    ids=["basic-response", "system-prompt", "image-input", "multi-turn"],
)
def test_compliance_of_a_whole_response(house: Any, sent: list[Any]) -> None:
    response = ask(house, input=sent).json()
    Draft202012Validator(RESOURCE).validate(response)
    assert response["output"]
    assert response["status"] == "completed"


def test_compliance_streaming_response(house: Any) -> None:
    events = events_of(ask(house, input=[said("user", "Count from 1 to 5.")], stream=True))
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["status"] == "completed"


def test_compliance_tool_calling(tools_house: Any) -> None:
    response = ask(tools_house, **WEATHER_ASKED).json()
    Draft202012Validator(RESOURCE).validate(response)
    assert "function_call" in [item["type"] for item in response["output"]]


def test_compliance_tool_calling_streaming(tools_house: Any) -> None:
    events = events_of(ask(tools_house, **WEATHER_ASKED, stream=True))
    kinds = {event["type"].removeprefix("response.") for event in events}
    assert {"function_call_arguments.delta", "function_call_arguments.done"} <= kinds
    for kind in ("added", "done"):
        items = [one for one in events if one["type"] == f"response.output_item.{kind}"]
        assert "function_call" in [one["item"]["type"] for one in items]
