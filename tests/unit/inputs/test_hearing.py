"""Sounds in messages, for a model that hears and for models that do not."""

import base64
import json
import threading
import wave
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from qianyan.errors import CapacityError, ConfigError, InputError, MediaError
from qianyan.inputs.fetch import FetchLimits
from qianyan.inputs.media import MediaLimits
from qianyan.inputs.processor import Processor
from qianyan.inputs.sound import AudioLimits

PICTURES = {"min_pixels": 56 * 56, "max_pixels": 100 * 28 * 28}
WORDS = (
    *("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|vision_bos|>"),
    *("<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>"),
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif part.type == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part.type == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


@pytest.fixture
def omni_folder(make_folder: Callable[..., Path]) -> Path:
    added = {str(270 + n): {"content": word, "special": True} for n, word in enumerate(WORDS)}
    return make_folder(
        template=TEMPLATE, pictures=PICTURES, settings={"added_tokens_decoder": added}
    )


@pytest.fixture
def process(omni_folder: Path) -> Processor:
    return Processor.from_folder(omni_folder)


@pytest.fixture
def deaf(make_folder: Callable[..., Path]) -> Processor:
    return Processor.from_folder(make_folder(pictures=PICTURES))


def wav(seconds: float, rate: int = 16_000) -> bytes:
    """A WAV file of a tone."""
    file = BytesIO()
    times = np.arange(round(seconds * rate)) / rate
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes((8000 * np.sin(2000 * times)).astype("<i2").tobytes())
    return file.getvalue()


def video(seconds: float, *, sound_s: float = 0.0) -> bytes:
    """A video file, with a sound where it lasts."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 56
        sound: Any = container.add_stream("pcm_s16le", rate=16_000) if sound_s else None
        for index in range(round(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((56, 56, 3), index, np.uint8), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound_s:
            samples = np.full((1, round(sound_s * 16_000)), 900, dtype="<i2")
            heard = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            heard.sample_rate, heard.pts = 16_000, 0
            container.mux(sound.encode(heard))
            container.mux(sound.encode(None))
    return file.getvalue()


def inline(data: bytes, kind: str = "audio/wav") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def clip(data: bytes, **how: Any) -> dict[str, Any]:
    url = {"url": inline(data, "video/x-matroska")}
    return {"type": "video_url", "video_url": url, **how}


def text_of(process: Processor, inputs: Any) -> str:
    return process.tokenizer.decode(inputs.prompt_token_ids, skip_special=False)


def test_every_way_to_name_a_sound_gives_the_same_inputs(
    process: Processor, tmp_path: Path
) -> None:
    data = wav(1.0)
    path = tmp_path / "bell.wav"
    path.write_bytes(data)
    packed = base64.b64encode(data).decode()
    sources: tuple[dict[str, Any], ...] = (
        {"type": "input_audio", "input_audio": {"data": packed, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": packed}},
        {"type": "input_audio", "input_audio": {"data": inline(data), "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": f"data:;base64,{packed}"}},
        {"type": "input_audio", "input_audio": {"data": path}},
        {"type": "audio_url", "audio_url": {"url": inline(data)}},
        {"type": "audio_url", "audio_url": str(path)},
        {"type": "audio", "audio": str(path)},
        {"type": "audio", "audio": path},
        {"type": "audio", "audio": data},
    )
    first, *others = [process(user(source)) for source in sources]
    assert first.num_audio_frames == (100,)
    assert text_of(process, first) == (
        "<|im_start|>user\n<|audio_bos|>" + 25 * "<|AUDIO|>" + "<|audio_eos|><|im_end|>\n"
    )
    assert first.input_features is not None
    assert first.input_features.shape == (100, 128)
    assert (first.pixel_values, first.grid_thw) == (None, ())
    for inputs in others:
        assert inputs.prompt_token_ids == first.prompt_token_ids
        assert np.array_equal(inputs.input_features, first.input_features)  # type: ignore[arg-type]
        assert inputs.seen == first.seen


def test_a_sound_is_fetched_from_a_url(omni_folder: Path) -> None:
    class Bell(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(wav(0.5))

        def log_message(self, *_: Any) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Bell) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        allowed = FetchLimits(allow_private=frozenset({host}))
        process = Processor.from_folder(omni_folder, limits=MediaLimits(fetch_audio=allowed))
        part = {"type": "input_audio", "input_audio": {"data": f"http://{host}/bell.wav"}}
        inputs = process(user(part), allow_files=False)
        server.shutdown()
    assert inputs.num_audio_frames == (50,)


def test_a_video_is_heard_where_it_has_sound(process: Processor) -> None:
    inputs = process(user(clip(video(3.0, sound_s=3.0))))
    ((t, h, w),) = inputs.grid_thw
    per_moment = h * w // 4
    assert (t, inputs.num_audio_frames) == (3, (300,))
    assert text_of(process, inputs) == (
        "<|im_start|>user\n<|vision_bos|><|audio_bos|>"
        + 2 * per_moment * "<|VIDEO|>"
        + 50 * "<|AUDIO|>"
        + per_moment * "<|VIDEO|>"
        + 25 * "<|AUDIO|>"
        + "<|audio_eos|><|vision_eos|><|im_end|>\n"
    )
    assert [heard.duration_s for heard in inputs.seen.audios] == [3.0]
    silent = process(user(clip(video(3.0))))
    unheard = process(user(clip(video(3.0, sound_s=3.0), use_audio_in_video=False)))
    for one in (silent, unheard):
        assert one.input_features is None
        assert text_of(process, one) == (
            "<|im_start|>user\n<|vision_bos|>"
            + 3 * per_moment * "<|VIDEO|>"
            + "<|vision_eos|><|im_end|>\n"
        )


def test_only_the_part_of_a_video_that_is_seen_is_heard(process: Processor) -> None:
    part = clip(video(4.0, sound_s=4.0), video_start=1.0, video_end=2.5)
    assert process(user(part)).num_audio_frames == (150,)


def test_a_soundtrack_that_cannot_be_heard_is_left_out_unless_asked_for(
    omni_folder: Path,
) -> None:
    limits = MediaLimits(audio=AudioLimits(max_duration_s=2.0))
    process = Processor.from_folder(omni_folder, limits=limits)
    inputs = process(user(clip(video(3.0, sound_s=3.0))))
    assert inputs.input_features is None
    assert "is seen and not heard: The sound is longer" in inputs.seen.notes[0]
    with pytest.raises(MediaError, match="longer than") as refused:
        process(user(clip(video(3.0, sound_s=3.0), use_audio_in_video=True)))
    assert refused.value.code == "too_long"


def test_sounds_and_pictures_keep_their_order(process: Processor) -> None:
    inputs = process(
        user(
            {"type": "audio", "audio": wav(0.4)},
            clip(video(1.0, sound_s=0.8)),
            {"type": "text", "text": "and"},
            {"type": "audio", "audio": wav(1.2)},
        )
    )
    assert inputs.num_audio_frames == (40, 80, 120)
    assert [heard.duration_s for heard in inputs.seen.audios] == [0.4, 0.8, 1.2]
    assert inputs.input_features is not None
    assert len(inputs.input_features) == 240


REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"type": "input_audio", "input_audio": {}}, "bad_input", "names no sound; expected base64"),
    ({"type": "input_audio", "input_audio": {"data": 3}}, "bad_input", "names no sound"),
    ({"type": "input_audio", "input_audio": {"data": "###"}}, "bad_url", "not valid base64"),
    ({"type": "input_audio", "input_audio": {"x": 1}}, "bad_input", "'x', which is not known"),
    ({"type": "input_audio", "input_audio": {"data": "ftp://a/b.wav"}}, "bad_url", "'ftp'"),
    ({"type": "audio", "audio": "none.wav"}, "not_found", "There is no file 'none.wav'"),
    ({"type": "audio", "audio": wav(1 / 16_000)}, "too_short", "0.0001 seconds long"),
    ({"type": "audio", "audio": video(1.0)}, "no_sound", "has no sound in it"),
    ({"type": "audio", "audio": b"%PDF-1.7 nothing" * 99}, "not_a_sound", "a PDF document"),
    (clip(video(1.0), use_audio_in_video=True), "no_sound", "has no sound to be heard"),
    (clip(video(1.0), use_audio_in_video=1), "bad_input", "expected true or false"),
    (
        {"type": "video", "video": ["a.png"], "use_audio_in_video": True},
        "bad_input",
        "frames given as a list are silent",
    ),
    ({"type": "text", "text": "a <|AUDIO|> b"}, "bad_input", "own placeholder for pictures"),
)


@pytest.mark.parametrize(("part", "code", "words"), REFUSED)
def test_sounds_that_cannot_be_heard_are_refused_in_a_sentence(
    process: Processor, part: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        process(user(part))
    assert refused.value.code == code


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "audio", "audio": "a.wav"},
        {"type": "audio_url", "audio_url": {"url": "https://example.com/a.wav"}},
    ],
)
def test_a_model_that_does_not_hear_says_so(deaf: Processor, part: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is a sound; this model does not hear"):
        deaf(user(part))


def test_videos_of_a_model_that_does_not_hear_are_silent(deaf: Processor) -> None:
    assert deaf(user(clip(video(1.0, sound_s=1.0)))).input_features is None
    with pytest.raises(InputError, match="expected false, as this model does not hear"):
        deaf(user(clip(video(1.0, sound_s=1.0), use_audio_in_video=True)))


def test_local_files_are_not_opened_for_strangers(process: Processor, tmp_path: Path) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(wav(1.0))
    for part in (
        {"type": "audio", "audio": str(path)},
        {"type": "audio_url", "audio_url": {"url": str(path)}},
    ):
        with pytest.raises(MediaError, match="local paths are not accepted here"):
            process(user(part), allow_files=False)


def test_more_sounds_than_the_limits_are_refused(omni_folder: Path) -> None:
    process = Processor.from_folder(omni_folder, limits=replace(MediaLimits(), max_audios=1))
    sound = {"type": "audio", "audio": wav(0.2)}
    assert process(user(sound)).num_audio_frames == (20,)
    with pytest.raises(CapacityError, match="more than 1 sounds"):
        process(user(sound, clip(video(1.0, sound_s=1.0))))
    process = Processor.from_folder(omni_folder, limits=MediaLimits(max_audio_s=0.5))
    assert process(user(sound, sound)).num_audio_frames == (20, 20)
    with pytest.raises(CapacityError, match=r"more than 0.00833333 minutes of sound"):
        process(user(sound, sound, sound))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hop_length": 0}, "hop_length '0'; expected a whole number"),
        ({"n_fft": 401}, "n_fft 401, feature_size 128 and n_samples 4800000"),
        ({"n_samples": 400}, "expected an even n_fft between the two others"),
        ({"dither": 0.1}, "asks for dither"),
        ({"padding_value": -1}, "padding other than silence"),
    ],
)
def test_impossible_settings_are_refused(
    omni_folder: Path, change: dict[str, Any], words: str
) -> None:
    (omni_folder / "preprocessor_config.json").write_text(json.dumps(PICTURES | change))
    with pytest.raises(ConfigError, match=words):
        Processor.from_folder(omni_folder)


def test_settings_in_one_file_for_all_parts_are_read(omni_folder: Path) -> None:
    (omni_folder / "preprocessor_config.json").unlink()
    combined = {"image_processor": PICTURES, "feature_extractor": {"feature_size": 80}}
    (omni_folder / "processor_config.json").write_text(json.dumps(combined))
    process = Processor.from_folder(omni_folder)
    assert process.sounds is not None
    assert process.sounds.feature_size == 80
