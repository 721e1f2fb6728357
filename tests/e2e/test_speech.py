"""Speech out of `qianyan serve`, heard by its users' own clients and listened to by measure.

The model is a small random Qwen2.5-Omni: what it says means nothing, but it has the length, the
rate and the seams of what a trained one says.
"""

import base64
import os
import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from tests.omni_checkpoint import TOKEN2WAV, write_omni_checkpoint

KEY = "sk-e2e-0123456789"
RATE_HZ = 24_000
CODES_PER_SECOND = 50
CODE_SAMPLES = RATE_HZ // CODES_PER_SECOND
BLOCK_SAMPLES = TOKEN2WAV["dit_config"]["block_size"] // 2 * CODE_SAMPLES  # two frames a code
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that speaks, in a process of its own."""
    folder = write_omni_checkpoint(tmp_path_factory.mktemp("omni"), talker_positions=260)
    command = [sys.executable, "-m", "qianyan", "serve", "--port", "0", "--model", str(folder)]
    command += ["--served-name", "qwen2.5-omni-7b", "--dtype", "float32"]
    command += ["--state-dir", str(tmp_path_factory.mktemp("state"))]
    environment = {**os.environ, "QIANYAN_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("log") / "server.log"
    with (
        log.open("wb") as written,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=written, text=True
        ) as server,
    ):
        assert server.stdout is not None
        found = re.search(r"http://[\d.:]+(?=/v1)", server.stdout.readline())
        assert found, f"the server ended with {server.wait()}: {log.read_text()}"
        yield found[0]
        server.terminate()


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/compatible-mode/v1", api_key=KEY) as one:
        yield one


def question_sound() -> str:
    """A second of a rising tone, as clients send it."""
    times = np.arange(16_000) / 16_000
    samples = 9000 * np.sin(2 * np.pi * (200 + 300 * times) * times)
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(16_000)
        written.writeframes(samples.astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


HOW: dict[str, Any] = {"max_tokens": NUM_TOKENS, "temperature": 0, "seed": 3}
SPOKEN: dict[str, Any] = {
    "model": "qwen2.5-omni-7b",
    "messages": [
        {
            "role": "user",
            "content": [
                {
                    "type": "input_audio",
                    "input_audio": {
                        "data": f"data:;base64,{question_sound()}",
                        "format": "wav",
                    },
                },
                {"type": "text", "text": "What is it?"},
            ],
        }
    ],
    "modalities": ["text", "audio"],
    "audio": {"voice": "Chelsie", "format": "wav"},
    **HOW,
}


class Heard:
    """What one stream said, collected as Bailian's sample does: sounds joined, then decoded."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.text, self.order, sounds = "", "", ""
        self.ends: list[int] = []
        stream = client.chat.completions.create(
            **SPOKEN, stream=True, stream_options={"include_usage": True}
        )
        for chunk in stream:
            if not chunk.choices:
                self.usage = chunk.usage
                continue
            audio = chunk.choices[0].delta.audio
            if audio is not None and audio.data:
                sounds += audio.data
                self.order += "s"
                self.ends.append(len(sounds) // 4 * 3 // 2)
            elif audio is not None:
                self.text += audio.transcript or ""
                self.order += "t"
        self.samples = np.frombuffer(base64.b64decode(sounds), dtype=np.int16)


@pytest.fixture(scope="module")
def heard(client: openai.OpenAI) -> Heard:
    return Heard(client)


def test_the_first_sound_comes_while_the_answer_is_written(heard: Heard) -> None:
    assert heard.order.index("s") < heard.order.rindex("t")
    assert heard.order.count("s") > 5


def test_a_saved_stream_has_the_length_of_its_codes_and_is_neither_silent_nor_clipped(
    heard: Heard, tmp_path: Path
) -> None:
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(heard.samples.tobytes())
    with wave.open(str(tmp_path / "said.wav")) as file:
        assert file.getframerate() == RATE_HZ
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    usage = heard.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    num_codes = usage.completion_tokens_details.audio_tokens
    assert num_codes is not None
    assert len(samples) / RATE_HZ == num_codes / CODES_PER_SECOND > 2
    assert usage.completion_tokens == NUM_TOKENS + num_codes
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.audio_tokens == 25
    levels = samples / 32767
    assert np.sqrt((levels**2).mean()) > 0.01
    assert np.abs(levels).max() < 1
    assert abs(levels.mean()) < 0.02
    quiet = [np.abs(one).max() for one in np.split(levels, len(levels) // CODE_SAMPLES)]
    assert min(quiet) > 0.001, "no code is a hole"


def test_there_are_no_clicks_at_seams(heard: Heard) -> None:
    """Steps from sample to sample, and their bends, are as between any other two codes there."""
    levels = heard.samples / 32767
    codes = np.arange(CODE_SAMPLES, len(levels), CODE_SAMPLES)
    blocks = np.arange(BLOCK_SAMPLES, len(levels), BLOCK_SAMPLES)
    chunks = np.array(heard.ends[:-1])
    assert not set(chunks) - set(codes)
    for order in (1, 2):
        change = np.abs(np.diff(levels, order))
        # The change from the sample before a seam to the one behind it, and those beside it.
        at = {end: change[end - 1 - order : end + 1].max() for end in codes}
        for seams in (blocks, chunks):
            inside = np.array([value for end, value in at.items() if end not in seams])
            across = np.array([at[end] for end in seams])
            # A decoder that begins anew at each seam is at 0.2: its edges are quiet.
            assert 0.6 < across.mean() / inside.mean() < 1.1
            assert across.max() < 1.1 * inside.max()


def test_the_same_seed_says_the_same_whole(client: openai.OpenAI, heard: Heard) -> None:
    message = client.chat.completions.create(**SPOKEN).choices[0].message
    assert message.audio is not None
    with wave.open(BytesIO(base64.b64decode(message.audio.data))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)
        assert file.readframes(file.getnframes()) == heard.samples.tobytes()
    assert message.audio.transcript == message.content == heard.text


def test_answers_spoken_side_by_side_are_those_spoken_alone(client: openai.OpenAI) -> None:
    def hear(seed: int) -> str:
        asked = SPOKEN | {"seed": seed, "max_tokens": 6}
        audio = client.chat.completions.create(**asked).choices[0].message.audio
        assert audio is not None
        return audio.data

    alone = [hear(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as together:
        assert list(together.map(hear, (1, 2))) == alone
    assert alone[0] != alone[1]


def test_the_next_is_heard_at_once_when_a_listener_goes_away(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**SPOKEN, stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.audio:
            break
    stream.close()
    bare = SPOKEN | {"audio": {"format": "pcm16"}, "max_tokens": 2}
    audio = client.chat.completions.create(**bare).choices[0].message.audio
    assert audio is not None
    assert len(base64.b64decode(audio.data)) > 2 * RATE_HZ // 2


@pytest.fixture
def dashscope(address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Bailian's SDK, led to the server; its calls of 1.x are kept in 2.0."""
    sdk = pytest.importorskip("dashscope", reason="Bailian's SDK is not installed")
    monkeypatch.setattr(sdk, "base_http_api_url", f"{address}/api/v1")
    monkeypatch.setattr(sdk, "api_key", KEY)
    return sdk


NATIVE: dict[str, Any] = {
    "model": "qwen2.5-omni-7b",
    "modalities": SPOKEN["modalities"],
    "audio": SPOKEN["audio"],
    **HOW,
}


@pytest.mark.filterwarnings("default")  # the SDK's own are not ours to end tests with
@pytest.mark.parametrize("incremental", [True, False])
def test_bailians_sdk_hears_the_same(dashscope: Any, heard: Heard, incremental: bool) -> None:
    parts = [{"audio": f"data:;base64,{question_sound()}"}, {"text": "What is it?"}]
    packets = dashscope.MultiModalConversation.call(
        messages=[{"role": "user", "content": parts}],
        stream=True,
        incremental_output=incremental,
        **NATIVE,
    )
    sounds, texts = "", []
    for packet in packets:
        assert packet.status_code == 200, packet
        sounds += packet.output.audio.data
        texts.append("".join(one["text"] for one in packet.output.choices[0].message.content))
    assert base64.b64decode(sounds) == heard.samples.tobytes()
    assert ("".join(texts) if incremental else texts[-1]) == heard.text
    assert packet.output.choices[0].finish_reason == "length"
    num_codes = len(heard.samples) // CODE_SAMPLES
    assert packet.usage.output_tokens == NUM_TOKENS + num_codes
    assert packet.usage.output_tokens_details["audio_tokens"] == num_codes
    assert packet.usage.input_tokens_details["audio_tokens"] == 25


@pytest.mark.filterwarnings("default")
def test_bailians_sdk_sends_a_local_sound_and_saves_the_whole_answer(
    dashscope: Any, heard: Heard, tmp_path: Path
) -> None:
    (tmp_path / "question.wav").write_bytes(base64.b64decode(question_sound()))
    parts = [{"audio": f"file://{tmp_path / 'question.wav'}"}, {"text": "What is it?"}]
    asked = [{"role": "user", "content": parts}]
    answer = dashscope.MultiModalConversation.call(messages=asked, **NATIVE)
    assert answer.status_code == 200, answer
    (part,) = answer.output.choices[0].message.content
    assert part["text"] == heard.text
    with wave.open(BytesIO(base64.b64decode(answer.output.audio.data))) as file:
        assert file.readframes(file.getnframes()) == heard.samples.tobytes()
    wrong = NATIVE | {"audio": {"voice": "Cherry"}}
    refused = dashscope.MultiModalConversation.call(messages=asked, **wrong)
    assert (refused.status_code, refused.code) == (400, "InvalidParameter")
    assert refused.message == "Input should be 'Chelsie' or 'Ethan': parameters.audio.voice"
