"""openai-python, unmodified, against `qianyan serve` over TCP."""

import asyncio
import base64
import io
import json
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image
from pydantic import BaseModel

KEY = "sk-e2e-0123456789"


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(house: Any) -> OpenAI:
    return OpenAI(base_url=house.base_url, api_key=KEY, max_retries=0)


def test_the_notes_snippet_answers(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notes' program as it stands, but for the address."""
    import os

    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    client = OpenAI(
        api_key=os.getenv("DASHSCOPE_API_KEY"),
        base_url=house.base_url,
    )
    completion = client.chat.completions.create(
        model="qwen-plus",
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "你是谁？"},
        ],
        extra_body={"enable_thinking": False},
    )
    answer = json.loads(completion.model_dump_json())
    assert answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == "qwen-plus"
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0
    client.close()


def test_a_stream_says_what_a_whole_answer_says(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="qwen-plus", messages=say("hello"), max_tokens=16)
    stream = client.chat.completions.create(
        model="qwen-plus",
        messages=say("hello"),
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    assert last.choices == []
    assert last.usage
    assert whole.usage
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_stream_helper_puts_the_answer_together(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="qwen-plus", messages=say("hello"), stop="wer", logprobs=True
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert final.choices[0].message.content


def test_a_picture_by_data_uri_is_seen(client: OpenAI) -> None:
    def look(colour: tuple[int, int, int]) -> Any:
        held = io.BytesIO()
        Image.new("RGB", (200, 120), colour).save(held, "PNG")
        url = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
        parts: Any = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What is it?"},
        ]
        return client.chat.completions.create(
            model="qwen-plus",
            messages=[{"role": "user", "content": parts}],
            max_tokens=1,
            logprobs=True,
            top_logprobs=5,
        )

    red, blue = look((230, 30, 20)), look((30, 60, 220))
    assert red.usage.prompt_tokens == blue.usage.prompt_tokens > 20
    assert red.choices[0].logprobs != blue.choices[0].logprobs, "it looks at the colour"


class Verdict(BaseModel):
    fire: bool
    level: Literal["low", "high"]


def test_a_schema_is_parsed_into_its_class(client: OpenAI) -> None:
    done = client.chat.completions.parse(
        model="qwen-plus", messages=say("Is it burning?"), response_format=Verdict, max_tokens=60
    )
    assert isinstance(done.choices[0].message.parsed, Verdict)


def test_probabilities_add_up_to_the_answer(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="qwen-plus", messages=say("hello"), max_tokens=6, logprobs=True, top_logprobs=3
    )
    assert done.choices[0].logprobs
    entries = done.choices[0].logprobs.content
    assert entries
    assert b"".join(bytes(one.bytes or []) for one in entries).decode() == (
        done.choices[0].message.content
    )
    assert all(len(one.top_logprobs) == 3 for one in entries)


def test_errors_come_as_the_classes_that_clients_catch(house: Any, client: OpenAI) -> None:
    stranger = OpenAI(base_url=house.base_url, api_key="sk-wrong-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        stranger.chat.completions.create(model="qwen-plus", messages=say("hi"))
    assert wrong_key.value.code == "invalid_api_key"
    stranger.close()
    with pytest.raises(openai.NotFoundError) as wrong_model:
        client.chat.completions.create(model="gpt-4o", messages=say("hi"))
    assert wrong_model.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="qwen-plus", messages=say("word " * 20_000))
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as too_hot:
        client.chat.completions.create(model="qwen-plus", messages=say("hi"), temperature=9)
    assert "temperature is 9" in too_hot.value.message
    with pytest.raises(openai.BadRequestError) as speaking:
        client.chat.completions.create(
            model="qwen-plus", messages=say("hi"), modalities=["text", "audio"]
        )
    assert speaking.value.param == "modalities"
    assert wrong_model.value.request_id


def test_models_are_listed(client: OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["bundled", "qwen-plus"]
    assert client.models.retrieve("qwen-plus").id == "qwen-plus"


def test_many_calls_at_once_give_the_answers_that_each_gets_alone(house: Any) -> None:
    """24 questions in flight, a quarter of them left midway; the others notice nothing."""
    questions = [f"question {number} about smoke and number {number * 7}" for number in range(24)]
    left = set(range(0, 24, 4))

    async def whole(client: AsyncOpenAI, question: str) -> str:
        done = await client.chat.completions.create(
            model="qwen-plus", messages=say(question), max_tokens=24
        )
        return done.choices[0].message.content or ""

    async def streamed(client: AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model="qwen-plus", messages=say(questions[number]), max_tokens=24, stream=True
        )
        said = ""
        async with stream:
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
                if number in left and said:
                    break
        return said

    async def story() -> tuple[list[str], list[str]]:
        async with AsyncOpenAI(base_url=house.base_url, api_key=KEY, max_retries=0) as client:
            alone = [await whole(client, question) for question in questions]
            together = await asyncio.gather(*(streamed(client, n) for n in range(24)))
            return alone, list(together)

    alone, together = asyncio.run(story())
    stay = [number for number in range(24) if number not in left]
    assert [together[number] for number in stay] == [alone[number] for number in stay]
    house.wait_until_idle(1)


def test_a_client_that_closes_a_stream_frees_its_place(house: Any, client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="qwen-plus",
        messages=say("a long story"),
        stream=True,
        max_tokens=1000,
        response_format={  # an answer that does not end by itself
            "type": "json_schema",
            "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 5000}},
        },
    )
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert house.gauge("qianyan_requests_running") == 1
    stream.close()
    house.wait_until_idle(1)


ALARM: Any = {
    "type": "function",
    "function": {
        "name": "ring_alarm",
        "parameters": {
            "type": "object",
            "properties": {
                "level": {"type": "string", "enum": ["low", "high"]},
                "loud": {"type": "boolean"},
            },
            "required": ["level", "loud"],
            "additionalProperties": False,
        },
    },
}


def test_a_required_tool_is_called_with_arguments_of_its_schema(tools_house: Any) -> None:
    """Whole and streamed; the call and its result go back as clients send them."""
    asked: dict[str, Any] = {
        "model": "qwen-plus",
        "messages": say("fire!"),
        "tools": [ALARM],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 200,
    }
    with OpenAI(base_url=tools_house.base_url, api_key=KEY, max_retries=0) as client:
        done = client.chat.completions.create(**asked)
        message = done.choices[0].message
        assert done.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls
        (call,) = message.tool_calls
        assert call.function.name == "ring_alarm"
        arguments = json.loads(call.function.arguments)
        assert arguments["level"] in ("low", "high")
        assert isinstance(arguments["loud"], bool)

        chunks = list(client.chat.completions.create(**asked, stream=True))
        pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
        assert [piece.function.name for piece in pieces] == ["ring_alarm"] + [None] * (
            len(pieces) - 1
        )
        assert pieces[0].id
        assert all(piece.id is None for piece in pieces[1:])
        joined = "".join(piece.function.arguments or "" for piece in pieces)
        assert joined == call.function.arguments
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

        with client.chat.completions.stream(**asked) as stream:
            helped = stream.get_final_completion().choices[0].message.tool_calls
        assert helped
        assert helped[0].function.name == "ring_alarm"
        assert helped[0].function.arguments == call.function.arguments

        result = {"role": "tool", "tool_call_id": call.id, "content": "ringing"}
        again = client.chat.completions.create(
            model="qwen-plus",
            messages=[*say("fire!"), message, result],  # type: ignore[list-item]
            tools=[ALARM],
            tool_choice="none",
            max_tokens=5,
        )
        assert again.choices[0].message.tool_calls is None
