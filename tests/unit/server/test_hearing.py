"""Sounds as clients send them, in both dialects, to a model that hears: odd ones, and bad ones."""

import base64
import math
import wave
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import httpx2
import numpy as np
import pytest

from qianyan.engine.engine import Engine

CHAT = "/v1/chat/completions"
PARTS = "/api/v1/services/aigc/multimodal-generation/generation"
FORMS = (CHAT, PARTS)
HOW: dict[str, Any] = {"max_tokens": 2, "temperature": 0}
Serve = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture(scope="module")
def hearing(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a server whose model hears, and has room to speak of what it heard."""
    from tests.omni_checkpoint import write_omni_checkpoint

    folder = write_omni_checkpoint(tmp_path_factory.mktemp("hearing"), talker_positions=200)
    engine = Engine(folder, dtype="float32")
    limits = engine.processor.limits
    engine.processor.limits = replace(limits, audio=replace(limits.audio, max_duration_s=120.0))
    with serve(model=engine) as one:
        yield one


def wav(samples: np.ndarray, rate: int) -> bytes:
    """Write samples of -1 to 1, (frames, channels), as 16 bits."""
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(samples.shape[1])
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def tone(seconds: float, rate: int, *, channels: int = 1, level: float = 0.5) -> bytes:
    times = np.arange(round(seconds * rate))[:, None] / rate
    sine = (level * np.sin(2 * np.pi * 440 * times)).clip(-1, 1)
    return wav(np.repeat(sine, channels, axis=1), rate)


def three_hours() -> bytes:
    """Silence of 1,000 samples a second, 8 bits each."""
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(1)
        written.setframerate(1000)
        written.writeframes(bytes([128]) * (3 * 3600 * 1000))
    return file.getvalue()


def corrupt_mp3() -> bytes:
    """The head of an MP3 file, then noise."""
    noise = np.random.default_rng(1).integers(0, 128, 20_000, dtype=np.uint8)
    return b"ID3\x04\0\0\0\0\0\x0a" + noise.tobytes()


def video(*, has_sound: bool = False) -> bytes:
    """A second of grey frames, with noise beside them or without."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        pictures: Any = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 64
        sound: Any = container.add_stream("pcm_s16le", rate=48_000) if has_sound else None
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if sound is not None:
            noise = np.random.default_rng(2).normal(0, 3000, (1, 48_000)).astype("<i2")
            heard = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            heard.sample_rate, heard.time_base, heard.pts = 48_000, Fraction(1, 48_000), 0
            container.mux(sound.encode(heard))
            container.mux(sound.encode(None))
    return file.getvalue()


def inline(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def ask(hearing: httpx2.Client, form: str, part: dict[str, Any], **how: Any) -> httpx2.Response:
    """Ask about a part, which has DashScope's form; its key says what it holds."""
    how = {**HOW, **how}
    if form == PARTS:
        content = [part, {"text": "What is it?"}]
        asked = {"messages": [{"role": "user", "content": content}]}
        return hearing.post(PARTS, json={"model": "judge", "input": asked, "parameters": how})
    (kind, source), *hints = part.items()
    field = {"audio": "data", "video": "url"}[kind]
    kind = {"audio": "input_audio", "video": "video_url"}[kind]
    typed = {"type": kind, kind: {field: source}, **dict(hints)}
    content = [typed, {"type": "text", "text": "What is it?"}]
    asked = {"messages": [{"role": "user", "content": content}]}
    return hearing.post(CHAT, json={"model": "judge", **asked, **how})


HEARD: dict[str, tuple[Callable[[], bytes], float, str]] = {
    "silence": (lambda: wav(np.zeros((16_000, 1)), 16_000), 1.0, "sound 1: silent"),
    "8 kHz, mono": (lambda: tone(1.2, 8000), 1.2, ""),
    "96 kHz, 6 channels": (lambda: tone(0.8, 96_000, channels=6), 0.8, ""),
    "clipped": (lambda: tone(1.0, 16_000, level=3.0), 1.0, "sound 1: clipped"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HEARD)
def test_odd_sounds_are_heard_and_answered_aloud(
    hearing: httpx2.Client, form: str, name: str
) -> None:
    make, seconds, note = HEARD[name]
    part = {"audio": inline(make(), "audio/wav")}
    answer = ask(hearing, form, part, modalities=["text", "audio"], seed=1)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    usage = said["usage"]
    details = usage.get("input_tokens_details") or usage.get("prompt_tokens_details")
    assert details["audio_tokens"] == pytest.approx(25 * seconds, abs=1)
    assert note in answer.text
    sound = said["output"]["audio"] if form == PARTS else said["choices"][0]["message"]["audio"]
    with wave.open(BytesIO(base64.b64decode(sound["data"]))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert len(samples) > 4800
    assert np.abs(samples.astype(float)).max() < 32767
    assert math.sqrt((samples.astype(float) ** 2).mean()) > 10, "it is not silent"


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "one sample": (
        lambda: {"audio": inline(tone(1 / 16_000, 16_000), "audio/wav")},
        "too_short",
        "0.0001 seconds long",
    ),
    "three hours": (
        lambda: {"audio": inline(three_hours(), "audio/wav")},
        "too_long",
        "longer than 2 minutes",
    ),
    "a corrupt MP3": (
        lambda: {"audio": inline(corrupt_mp3(), "audio/mpeg")},
        "truncated",
        "missing or damaged",
    ),
    "a silent video that is to be heard": (
        lambda: {"video": inline(video(), "video/x-matroska"), "use_audio_in_video": True},
        "no_sound",
        "has no sound to be heard",
    ),
    "no sound at all": (
        lambda: {"audio": inline(b"hello, this is no sound" * 9, "audio/wav")},
        "not_a_sound",
        "not a sound but text",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REFUSED)
def test_sounds_that_cannot_be_heard_are_refused_with_a_sentence(
    hearing: httpx2.Client, form: str, name: str
) -> None:
    make, code, words = REFUSED[name]
    answer = ask(hearing, form, make())
    assert answer.status_code == 400, answer.text
    error = answer.json() if form == PARTS else answer.json()["error"]
    assert words in error["message"]
    assert error["code"] == ("InvalidParameter" if form == PARTS else code)


@pytest.mark.parametrize("form", FORMS)
def test_a_video_is_heard_where_it_has_sound_and_seen_where_it_has_none(
    hearing: httpx2.Client, form: str
) -> None:
    def count(part: dict[str, Any]) -> dict[str, int]:
        answer = ask(hearing, form, part)
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        found: dict[str, int] = (
            usage["input_tokens_details"] if form == PARTS else usage["prompt_tokens_details"]
        )
        return found

    url = inline(video(has_sound=True), "video/x-matroska")
    heard = count({"video": url})
    assert heard["audio_tokens"] == 25
    seen = (count({"video": url, "use_audio_in_video": False}),
            count({"video": inline(video(), "video/x-matroska")}))  # fmt: skip
    for one in seen:
        assert not one.get("audio_tokens")
        assert one["video_tokens"] == heard["video_tokens"] > 0


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_does_not_hear_says_so(client: httpx2.Client, form: str) -> None:
    answer = ask(client, form, {"audio": inline(tone(0.5, 16_000), "audio/wav")})
    assert answer.status_code == 400
    assert "hear" in answer.text


def test_what_is_too_long_to_be_spoken_about_is_refused(hearing: httpx2.Client) -> None:
    """The Talker has fewer places than the Thinker; text alone is answered."""
    part = {"audio": inline(tone(20.0, 16_000), "audio/wav")}
    spoken = ask(hearing, CHAT, part, modalities=["text", "audio"])
    assert spoken.status_code == 400, spoken.text
    assert "for an answer that is spoken" in spoken.json()["error"]["message"]
    assert ask(hearing, CHAT, part).status_code == 200
