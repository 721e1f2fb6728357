"""openai-python's responses, unmodified, against `qianyan serve` over TCP."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image
from pydantic import BaseModel

KEY = "sk-e2e-0123456789"
OTHER_KEY = "sk-e2e-9876543210"


@pytest.fixture(scope="module")
def client(house: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=house.base_url, api_key=KEY, max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def tools_client(tools_house: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=tools_house.base_url, api_key=KEY, max_retries=0) as one:
        yield one


def picture(colour: tuple[int, int, int]) -> str:
    held = io.BytesIO()
    Image.new("RGB", (200, 120), colour).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def test_a_response_is_created_retrieved_and_deleted(house: Any, client: OpenAI) -> None:
    created = client.responses.create(model="qwen-plus", input="hello", metadata={"site": "east"})
    assert created.output_text
    assert created.status == "completed"
    assert created.usage
    assert created.usage.total_tokens == created.usage.input_tokens + created.usage.output_tokens
    found = client.responses.retrieve(created.id)
    assert found == created
    assert found.metadata == {"site": "east"}
    items = client.responses.input_items.list(created.id).data
    assert [item.content[0].text for item in items] == ["hello"]  # type: ignore[union-attr]
    with OpenAI(base_url=house.base_url, api_key=OTHER_KEY, max_retries=0) as stranger:
        with pytest.raises(openai.NotFoundError):
            stranger.responses.retrieve(created.id)
        with pytest.raises(openai.NotFoundError):
            stranger.responses.create(model="qwen-plus", input="x", previous_response_id=created.id)
    client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


def test_a_conversation_goes_on_by_an_id(client: OpenAI) -> None:
    first = client.responses.create(model="qwen-plus", input="My name is Alice.")
    second = client.responses.create(
        model="qwen-plus", input="What is my name?", previous_response_id=first.id
    )
    by_hand: Any = [
        {"role": "user", "content": "My name is Alice."},
        *first.output,
        {"role": "user", "content": "What is my name?"},
    ]
    again = client.responses.create(model="qwen-plus", input=by_hand)
    assert second.usage
    assert again.usage
    assert second.usage.input_tokens == again.usage.input_tokens
    assert second.output_text == again.output_text


def test_the_stream_helper_puts_the_response_together(client: OpenAI) -> None:
    whole = client.responses.create(model="qwen-plus", input="hello")
    with client.responses.stream(model="qwen-plus", input="hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == final.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with client.responses.stream(response_id=final.id) as again:
        assert again.get_final_response().output_text == said


def test_a_picture_is_seen(client: OpenAI) -> None:
    def look(colour: tuple[int, int, int]) -> Any:
        parts: Any = [
            {"type": "input_image", "image_url": picture(colour), "detail": "auto"},
            {"type": "input_text", "text": "What is it?"},
        ]
        return client.responses.create(
            model="qwen-plus",
            input=[{"role": "user", "content": parts}],
            include=["message.output_text.logprobs"],
            top_logprobs=5,
            max_output_tokens=1,
        )

    red, blue = look((230, 30, 20)), look((30, 60, 220))
    assert red.usage.input_tokens == blue.usage.input_tokens > 20
    told = [one.output[0].content[0].logprobs for one in (red, blue)]
    assert told[0] != told[1], "it looks at the colour"
    assert red.incomplete_details.reason == "max_output_tokens"


class Verdict(BaseModel):
    fire: bool
    level: Literal["low", "high"]


def test_a_schema_is_parsed_into_its_class(client: OpenAI) -> None:
    done = client.responses.parse(
        model="qwen-plus", input="Is it burning?", text_format=Verdict, max_output_tokens=60
    )
    assert isinstance(done.output_parsed, Verdict)
    with client.responses.stream(
        model="qwen-plus", input="Is it burning?", text_format=Verdict, max_output_tokens=60
    ) as stream:
        assert stream.get_final_response().output_parsed == done.output_parsed


ALARM: Any = {
    "type": "function",
    "name": "ring_alarm",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {
            "level": {"type": "string", "enum": ["low", "high"]},
            "loud": {"type": "boolean"},
        },
        "required": ["level", "loud"],
        "additionalProperties": False,
    },
}
CHOICES: list[Any] = [
    "required",
    {"type": "function", "name": "ring_alarm"},
    {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "ring_alarm"}],
    },
]


@pytest.mark.parametrize("choice", CHOICES, ids=["required", "named", "allowed"])
def test_a_function_is_called_and_its_result_is_taken(tools_client: OpenAI, choice: Any) -> None:
    asked: dict[str, Any] = {
        "model": "qwen-plus",
        "input": "fire!",
        "tools": [ALARM, {**ALARM, "name": "wait"}],
        "parallel_tool_calls": False,
        "max_output_tokens": 200,
        "tool_choice": choice,
    }
    if choice == "required":
        asked["tools"] = [ALARM]
    done = tools_client.responses.create(**asked)
    (call,) = done.output
    assert call.type == "function_call"
    assert call.name == "ring_alarm"
    arguments = json.loads(call.arguments)
    assert arguments["level"] in ("low", "high")
    assert isinstance(arguments["loud"], bool)
    assert done.tool_choice == choice or done.tool_choice.model_dump(exclude_none=True) == choice  # type: ignore[union-attr]

    with tools_client.responses.stream(**asked) as stream:
        events = list(stream)
        helped = stream.get_final_response().output[0]
    deltas = [one for one in events if one.type == "response.function_call_arguments.delta"]
    assert "".join(one.delta for one in deltas) == call.arguments
    assert deltas[-1].snapshot == call.arguments
    assert helped.type == "function_call"
    assert helped.arguments == call.arguments

    given: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "ringing"}
    after = tools_client.responses.create(
        model="qwen-plus",
        input=[given],
        previous_response_id=done.id,
        tools=[ALARM],
        tool_choice="none",
        max_output_tokens=5,
    )
    assert [item.type for item in after.output] == ["message"]


def test_a_response_in_the_background_is_waited_for_and_cancelled(client: OpenAI) -> None:
    queued = client.responses.create(model="qwen-plus", input="hello", background=True)
    assert queued.status == "queued"
    until = time.monotonic() + 30
    while (found := client.responses.retrieve(queued.id)).status in ("queued", "in_progress"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert found.status == "completed"
    assert found.output_text
    long: Any = {
        "type": "json_schema",
        "name": "long",
        "schema": {"type": "string", "minLength": 5000},
    }
    queued = client.responses.create(
        model="qwen-plus", input="a story", background=True, text={"format": long}
    )
    assert client.responses.cancel(queued.id).status == "cancelled"
    assert client.responses.retrieve(queued.id).status == "cancelled"


def test_errors_come_as_the_classes_that_clients_catch(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as too_hot:
        client.responses.create(model="qwen-plus", input="hi", temperature=9)
    assert too_hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.responses.create(model="qwen-plus", input="word " * 20_000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as wrong_model:
        client.responses.create(model="gpt-4o", input="hi")
    assert wrong_model.value.code == "model_not_found"


def test_async_clients_stream_too(house: Any) -> None:
    async def story() -> list[str]:
        async with AsyncOpenAI(base_url=house.base_url, api_key=KEY, max_retries=0) as client:
            stream = await client.responses.create(model="qwen-plus", input="hello", stream=True)
            return [event.type async for event in stream]

    kinds = asyncio.run(story())
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
