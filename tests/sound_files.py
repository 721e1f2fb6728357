"""Real files with sounds in them: WAV, videos, and conversations about them as JSON lines."""

import base64
import json
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def tone(seconds: float, hertz: float) -> np.ndarray:
    """Give 16-bit samples of a tone over a little noise, 16,000 a second."""
    times = np.arange(round(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(round(hertz)).standard_normal(len(times))
    return ((0.4 * np.sin(2 * np.pi * hertz * times) + 0.02 * noise) * 32767).astype("<i2")


def write_wav(path: Path, seconds: float, hertz: float) -> Path:
    """Write a tone as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(tone(seconds, hertz).tobytes())
    return path


def write_video(path: Path, seconds: float, hertz: float | None) -> Path:
    """Write a video of noise, ten frames a second, with a tone for its sound where there is one."""
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 56
        sound: Any = container.add_stream("pcm_s16le", rate=16_000) if hertz else None
        for index in range(round(seconds * 10)):
            pixels = np.random.default_rng(index).integers(0, 256, (56, 56, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if hertz is not None:
            heard = av.AudioFrame.from_ndarray(tone(seconds, hertz)[None], "s16", "mono")
            heard.sample_rate, heard.pts = 16_000, 0
            container.mux(sound.encode(heard))
            container.mux(sound.encode(None))
    return path


def write_conversations(folder: Path) -> Path:
    """Write conversations to learn from: sounds in both forms, a picture, a video that is heard.

    The last is text alone.
    """
    bell, horn = write_wav(folder / "bell.wav", 0.7, 880), write_wav(folder / "horn.wav", 2.3, 220)
    write_video(folder / "clip.mkv", 2.0, 440)
    Image.new("RGB", (84, 56), (200, 60, 30)).save(folder / "red.png")
    data = base64.b64encode(horn.read_bytes()).decode()

    def llava(question: str, answer: str, **files: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"conversations": turns, **files}

    def openai(answer: str, *parts: dict[str, Any]) -> dict[str, Any]:
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}
        return {"messages": [asked, {"role": "assistant", "content": answer}]}

    lines = [
        llava("<audio>\nWhat is heard?", "A bell.", audio=bell.name),
        openai(
            "A horn, then a bell.",
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
            {"type": "audio", "audio": bell.name},
        ),
        llava("<image>\nWhat is seen?", "Red.", image="red.png"),
        llava("<video>What happens?", "Noise.", video="clip.mkv", use_audio_in_video=True),
        openai("It hums.", {"type": "audio_url", "audio_url": {"url": horn.name}}),
        openai("Nothing."),
    ]
    path = folder / "sounds.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path
