"""Bailian's own SDK against `qianyan serve`: calls of 1.x and the client of 2.0, unmodified."""

import asyncio
import base64
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from tests.served import serving

dashscope = pytest.importorskip("dashscope", reason="Bailian's SDK is not installed")
import aiohttp  # noqa: E402  (comes with the SDK)
from dashscope.api_entities.http_request import close_shared_sync_session  # noqa: E402

KEY = "sk-e2e-0123456789"
HELLO = [{"role": "user", "content": "hello"}]
HOW: dict[str, Any] = {"max_tokens": 12, "temperature": 0}

pytestmark = pytest.mark.filterwarnings("default")  # the SDK's own are not ours to end tests with


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server's native API, in a process of its own, and the bundled judge."""
    state = tmp_path_factory.mktemp("state")
    with serving(state, "--served-name", "qwen-plus", QIANYAN_API_KEYS=KEY) as (_, address):
        yield f"{address}/api/v1"
        close_shared_sync_session()


@pytest.fixture(autouse=True)
def _there(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lead the calls of 1.x there."""
    monkeypatch.setattr(dashscope, "base_http_api_url", api)
    monkeypatch.setattr(dashscope, "api_key", KEY)


@pytest.fixture
def text() -> str:
    """What the model answers."""
    answer = dashscope.Generation.call("qwen-plus", messages=HELLO, **HOW)
    assert answer.status_code == 200, answer
    found: str = answer.output.text
    assert found
    return found


def red_picture() -> str:
    held = io.BytesIO()
    Image.new("RGB", (120, 90), (200, 20, 20)).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def test_a_prompt_and_a_message(text: str) -> None:
    prompt = dashscope.Generation.call("qwen-plus", prompt="hello", **HOW)
    message = dashscope.Generation.call("qwen-plus", messages=HELLO, result_format="message", **HOW)
    assert prompt.output.text == text
    assert prompt.output.finish_reason in ("stop", "length")
    assert message.output.choices[0].message.content == text
    assert message.usage.total_tokens == message.usage.input_tokens + message.usage.output_tokens
    assert message.request_id == message.headers["x-request-id"]


@pytest.mark.parametrize("incremental", [None, True, False])
def test_a_stream_both_ways(text: str, incremental: bool | None) -> None:
    """Told false, the SDK asks for increments and joins them; told nothing, the server does."""
    packets = list(
        dashscope.Generation.call(
            "qwen-plus", messages=HELLO, stream=True, incremental_output=incremental,
            result_format="message", **HOW,
        )
    )  # fmt: skip
    assert all(packet.status_code == 200 for packet in packets), packets
    contents = [packet.output.choices[0].message.content for packet in packets]
    assert ("".join(contents) if incremental else contents[-1]) == text
    reasons = [packet.output.choices[0].finish_reason for packet in packets]
    assert reasons[:-1] == ["null"] * (len(reasons) - 1)
    assert reasons[-1] in ("stop", "length")


def test_a_picture_is_seen_whole_and_streamed() -> None:
    content = [{"image": red_picture()}, {"text": "What is it?"}]
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": content}], **HOW}
    answer = dashscope.MultiModalConversation.call("qwen-plus", **ask)
    assert answer.status_code == 200, answer
    (part,) = answer.output.choices[0].message.content
    assert answer.usage.image_tokens > 0
    packets = dashscope.MultiModalConversation.call(
        "qwen-plus", stream=True, incremental_output=True, **ask
    )
    contents = [packet.output.choices[0].message.content for packet in packets]
    assert "".join(one["text"] for content in contents for one in content) == part["text"]


def test_the_text_of_a_local_picture_is_read_with_its_place(tmp_path: Path) -> None:
    """The SDK sends the file up and names it by oss://; the bundled model cannot read."""
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    picture = Image.new("RGB", (640, 240), "white")
    ImageDraw.Draw(picture).text((40, 80), "Fire exit 7", font_size=48, fill="black")
    picture.save(tmp_path / "sign.png")
    part = {"image": f"file://{tmp_path / 'sign.png'}", "enable_rotate": True}
    answer = dashscope.MultiModalConversation.call(
        "qwen-plus",
        messages=[{"role": "user", "content": [part]}],
        ocr_options={"task": "advanced_recognition"},
    )
    assert answer.status_code == 200, answer
    (read,) = answer.output.choices[0].message.content
    (line,) = read["ocr_result"]["words_info"]
    assert read["text"] == line["text"]
    assert line["text"].replace(" ", "") == "Fireexit7"
    assert line["location"][:2] == pytest.approx([40, 85], abs=20)


def test_many_calls_at_once_on_an_event_loop(text: str) -> None:
    async def ask_many() -> list[Any]:
        async with aiohttp.ClientSession() as session:
            ask = partial(dashscope.AioGeneration.call, "qwen-plus", messages=HELLO, **HOW)
            return list(await asyncio.gather(*(ask(session=session) for _ in range(8))))

    assert [answer.output.text for answer in asyncio.run(ask_many())] == [text] * 8


@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_status_and_code(stream: bool) -> None:
    def ask(model: str, **how: Any) -> Any:
        answer = dashscope.Generation.call(model, messages=HELLO, stream=stream, **how)
        return next(iter(answer)) if stream else answer

    missing = ask("gpt-4o")
    assert (missing.status_code, missing.code) == (404, "ModelNotFound")
    wrong = ask("qwen-plus", top_p=0)
    assert (wrong.status_code, wrong.code) == (400, "InvalidParameter")
    assert "top_p" in wrong.message
    stranger = ask("qwen-plus", api_key="sk-somebody-else")
    assert (stranger.status_code, stranger.code) == (401, "InvalidApiKey")


def test_the_client_of_2_0_asks_streams_and_is_refused(api: str, text: str) -> None:
    with dashscope.Client(api_key=KEY, base_url=api, protocol="native") as client:
        completions = client.chat.completions
        answer = completions.create(model="qwen-plus", messages=HELLO, **HOW)
        assert answer.choices[0].message.content == text
        chunks = list(completions.create(model="qwen-plus", messages=HELLO, stream=True, **HOW))
        assert "".join(chunk.delta.content or "" for chunk in chunks) == text
        with pytest.raises(dashscope.v2.errors.BadRequestError):
            completions.create(model="qwen-plus", messages=HELLO, top_p=0)
        parts = [{"type": "image", "url": red_picture()}, {"type": "text", "text": "What is it?"}]
        seen = completions.create(
            model="qwen-plus", messages=[{"role": "user", "content": parts}], **HOW
        )
        assert seen.usage.input_tokens > answer.usage.input_tokens
