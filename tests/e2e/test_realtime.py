"""The makers' own realtime clients, unmodified, against `qianyan serve` over TCP."""

import asyncio
import base64
import gc
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from dashscope.audio.qwen_omni import (
    AudioFormatConfig,
    MultiModality,
    OmniRealtimeCallback,
    OmniRealtimeConversation,
)
from tests.omni_checkpoint import write_omni_checkpoint
from tests.voiced import silence, to_pcm, voice
from websockets.exceptions import ConnectionClosed, InvalidStatus

KEY = "sk-test-0123456789"
MODEL = "qwen-omni"


pytestmark = [
    # What openai-python does is newly deprecated in websockets.
    pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning"),
    # Bailian's client leaves its socket to the garbage collector when the server ends a session.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@dataclass(frozen=True)
class House:
    """A running server."""

    port: str
    process: subprocess.Popen[str]


@contextmanager
def serving(folder: Path) -> Iterator[House]:
    """Run the command with a small model that speaks for little more than a second."""
    (folder / "omni").mkdir()
    model = write_omni_checkpoint(folder / "omni", talker_positions=150)
    command = [sys.executable, "-m", "qianyan", "serve", "--port", "0", "--model", str(model)]
    command += ["--served-name", MODEL, "--dtype", "float32", "--state-dir", str(folder)]
    environment = {**os.environ, "QIANYAN_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as server,
    ):
        try:
            assert server.stdout is not None
            found = re.search(r"http://127.0.0.1:(\d+)(?=/v1)", server.stdout.readline())
            assert found, (folder / "log").read_text()
            yield House(found[1], server)
        finally:
            server.terminate()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One server for all tests that do not stop it."""
    with serving(tmp_path_factory.mktemp("realtime")) as one:
        yield one


@pytest.fixture
def client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{house.port}/v1", api_key=KEY) as one:
        yield one


def at_24_khz(samples: np.ndarray) -> np.ndarray:
    """Change 16 kHz to 24 kHz, by straight lines between samples."""
    moments = np.arange(len(samples) * 3 // 2) / 1.5
    return np.interp(moments, np.arange(len(samples)), samples).astype(np.float32)


def pieces(samples: np.ndarray, rate_hz: int) -> Iterator[str]:
    """Cut sound into tenths of a second, as base64."""
    step = rate_hz // 10
    for start in range(0, len(samples), step):
        yield base64.b64encode(to_pcm(samples[start : start + step])).decode()


def settings(turn_detection: dict[str, Any] | None, **more: Any) -> Any:
    return {
        "type": "realtime",
        "instructions": "",
        "max_output_tokens": 10,
        "audio": {"input": {"turn_detection": turn_detection}, "output": {"voice": "Ethan"}},
        **more,
    }


def collect(connection: Any, last: str = "response.done") -> list[Any]:
    """Read events up to one of a type; openai-python has parsed each into its own class."""
    events = []
    for event in connection:
        events.append(event)
        assert event.type != "error", event
        assert type(event).__name__ != "BaseModel", f"{event.type} is not known to the client"
        if event.type == last:
            return events
    raise AssertionError(f"closed before {last}")


def test_openai_s_client_speaks_and_hears(client: openai.OpenAI) -> None:
    with client.realtime.connect(model=MODEL) as connection:
        connection.session.update(session=settings(None))
        for piece in pieces(at_24_khz(voice(1.0)), 24_000):
            connection.input_audio_buffer.append(audio=piece)
        connection.input_audio_buffer.commit()
        connection.response.create()
        events = collect(connection)
    first, second = events[0], events[1]
    assert first.type == "session.created"
    assert first.session.audio.input.turn_detection.type == "server_vad"
    assert second.session.audio.input.turn_detection is None
    assert second.session.audio.output.voice == "Ethan"
    sound = b"".join(
        base64.b64decode(one.delta) for one in events if one.type == "response.output_audio.delta"
    )
    said = "".join(
        one.delta for one in events if one.type == "response.output_audio_transcript.delta"
    )
    response = events[-1].response
    assert response.output[0].content[0].transcript == said != ""
    usage = response.usage
    assert usage.input_token_details.audio_tokens == 25
    assert len(sound) == 960 * usage.output_token_details.audio_tokens > 9600
    levels = np.frombuffer(sound, np.int16) / 32767
    assert 0.001 < np.abs(levels).max() < 1, "neither silent nor clipped"
    assert np.abs(np.diff(levels)).max() < 0.9


def test_openai_s_client_writes_and_reads(client: openai.OpenAI) -> None:
    with client.realtime.connect(model=MODEL) as connection:
        connection.session.update(session=settings(None, output_modalities=["text"]))
        content: Any = [{"type": "input_text", "text": "Hello"}]
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": content}
        )
        connection.response.create()
        events = collect(connection)
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    assert events[-1].response.output[0].content[0].text == text != ""


def test_openai_s_client_is_answered_when_it_falls_silent_and_interrupts(house: House) -> None:
    """The asynchronous client, with a detector, and an answer that is cancelled by a word."""

    async def talk() -> list[Any]:
        address = f"http://127.0.0.1:{house.port}/compatible-mode/v1"
        async with (
            openai.AsyncOpenAI(base_url=address, api_key=KEY) as client,
            client.realtime.connect(model=MODEL) as connection,
        ):
            more = {"max_output_tokens": 300}
            await connection.session.update(session=settings({"type": "server_vad"}, **more))
            sound = np.concatenate([silence(0.3), voice(1.0), silence(0.8)])
            for piece in pieces(at_24_khz(sound), 24_000):
                await connection.input_audio_buffer.append(audio=piece)
            events, is_interrupted = [], False
            async for event in connection:
                events.append(event)
                assert event.type != "error", event
                if event.type == "response.output_audio_transcript.delta" and not is_interrupted:
                    is_interrupted = True
                    for piece in pieces(at_24_khz(voice(0.6, seed=1)), 24_000):
                        await connection.input_audio_buffer.append(audio=piece)
                if event.type == "response.done":
                    return events
        raise AssertionError("closed before the answer was over")

    events = asyncio.run(asyncio.wait_for(talk(), 60))
    kinds = [event.type for event in events]
    assert kinds.count("input_audio_buffer.speech_started") == 2
    assert kinds.count("input_audio_buffer.speech_stopped") == 1
    response = events[-1].response
    assert (response.status, response.status_details.reason) == ("cancelled", "turn_detected")
    again = len(kinds) - kinds[::-1].index("input_audio_buffer.speech_started")
    assert not [kind for kind in kinds[again:] if kind.endswith(".delta")]


def test_openai_s_client_cancels(client: openai.OpenAI) -> None:
    with client.realtime.connect(model=MODEL) as connection:
        connection.session.update(session=settings(None, max_output_tokens=300))
        for piece in pieces(at_24_khz(voice(0.5)), 24_000):
            connection.input_audio_buffer.append(audio=piece)
        connection.input_audio_buffer.commit()
        connection.response.create()
        collect(connection, "response.output_audio_transcript.delta")
        connection.response.cancel()
        response = collect(connection)[-1].response
    assert response.status_details.reason == "client_cancelled"


def test_openai_s_client_is_told_of_a_wrong_key_and_a_wrong_model(house: House) -> None:
    address = f"http://127.0.0.1:{house.port}/v1"
    with (
        openai.OpenAI(base_url=address, api_key="sk-wrong-000000") as client,
        pytest.raises(InvalidStatus, match="401"),
        client.realtime.connect(model=MODEL),
    ):
        raise AssertionError("a wrong key opens nothing")
    with (
        openai.OpenAI(base_url=address, api_key=KEY) as client,
        client.realtime.connect(model="other") as connection,
    ):
        event: Any = connection.recv()
        assert event.error.code == "model_not_found"


class Listener(OmniRealtimeCallback):
    """Keeps what a conversation tells."""

    def __init__(self) -> None:
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.closed = threading.Event()

    def on_event(self, message: Any) -> None:
        self.events.put(message)

    def on_close(self, close_status_code: Any, close_msg: Any) -> None:
        self.closed.set()

    def until(self, kind: str) -> list[dict[str, Any]]:
        found = [self.events.get(timeout=60)]
        while found[-1]["type"] != kind:
            assert found[-1]["type"] != "error", found[-1]
            found.append(self.events.get(timeout=60))
        return found


@pytest.mark.parametrize("has_detector", [True, False])
def test_bailian_s_client_speaks_and_hears(house: House, has_detector: bool) -> None:
    listener = Listener()
    conversation = OmniRealtimeConversation(
        model=MODEL,
        callback=listener,
        url=f"ws://127.0.0.1:{house.port}/api-ws/v1/realtime",
        api_key=KEY,
    )
    conversation.connect()
    conversation.update_session(
        output_modalities=[MultiModality.TEXT, MultiModality.AUDIO],
        voice="Chelsie",
        enable_turn_detection=has_detector,
        instructions="",
        max_tokens=10,
        # A client may state the rate in the newer way as well.
        input_audio_config=None if has_detector else AudioFormatConfig(sample_rate=16_000),
    )
    listener.until("session.updated")
    silent = silence(1.2 if has_detector else 0.0)
    for piece in pieces(np.concatenate([voice(1.0), silent]), 16_000):
        conversation.append_audio(piece)
    if not has_detector:
        conversation.commit()
        conversation.create_response()
    events = listener.until("response.done")
    kinds = [event["type"] for event in events]
    assert ("input_audio_buffer.speech_stopped" in kinds) is has_detector
    sound_bytes = sum(
        len(base64.b64decode(one["delta"]))
        for one in events
        if one["type"] == "response.audio.delta"
    )
    assert sound_bytes > 9600
    assert conversation.get_last_response_id() == events[-1]["response"]["id"]
    assert conversation.get_last_first_audio_delay() > 0
    conversation.end_session()
    listener.until("session.finished")
    assert listener.closed.wait(20)
    conversation.close()
    conversation.thread.join(10)
    gc.collect()


def test_the_server_stops_while_somebody_listens(tmp_path: Path) -> None:
    """The socket is closed with what RFC 6455 calls a restart, and the process ends."""
    with serving(tmp_path) as house:
        address = f"http://127.0.0.1:{house.port}/v1"
        with (
            openai.OpenAI(base_url=address, api_key=KEY) as client,
            client.realtime.connect(model=MODEL) as connection,
        ):
            connection.recv()
            house.process.terminate()
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert house.process.wait(30) in (0, -15)
