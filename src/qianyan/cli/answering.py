"""Models to talk to, ours or one behind an endpoint: messages in, an answer piece by piece out."""

from base64 import b64encode
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from qianyan.cli.think_marks import ThinkMarks
from qianyan.engine.checkpoint import BUNDLED
from qianyan.engine.engine import Engine
from qianyan.engine.options import ChatOptions
from qianyan.engine.request import TokenText
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import InputError
from qianyan.inputs.frames import VideoRequest
from qianyan.inputs.sound import read_sound
from qianyan.inputs.video import read_video
from qianyan.inspection.inspector import LookSettings, find_pair
from qianyan.inspection.remote.chat_endpoint import ChatEndpoint, Patience, RefusedError
from qianyan.inspection.remote.completions import to_data_url
from qianyan.inspection.remote.event_stream import Delta
from qianyan.inspection.remote.profile import (
    MAX_PIXELS,
    EndpointProfile,
    find_profile,
    guess_profile,
    normal_url,
)
from qianyan.inspection.remote.vision import pinned_size

PATIENCE = Patience(timeout_s=300, attempts=3)
"""A person waits: fewer attempts than for a run, and time for long pictures to be read."""
MAX_SENT_BYTES = 50_000_000
_REFUSED_STATUS = frozenset({400, 422})


@dataclass(frozen=True, kw_only=True)
class TalkOptions:
    """How answers are to be; None leaves the model's own."""

    max_tokens: int | None = None
    temperature: float | None = None
    enable_thinking: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A few more words of an answer, or of the thinking before it."""

    text: str
    is_thinking: bool = False


@dataclass(frozen=True, kw_only=True)
class End:
    """The last event of an answer; `num_tokens` is None where an endpoint does not say."""

    is_full: bool
    num_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video or a sound as one part of a message, and what is worth knowing about it."""

    part: dict[str, Any]
    notes: tuple[str, ...] = ()


Events = Generator[Piece | End, None, None]


class Model(Protocol):
    """Something that answers."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def sees_pictures(self) -> bool:
        """Whether it reads more than text."""

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size (width, height) it sees a picture; InputError if it sees none."""

    def watch(self, video: Path | bytes, media_type: str) -> Clip:
        """Make of a video what it is sent as; InputError if it sees none."""

    def hear(self, sound: Path | bytes, media_type: str) -> Clip:
        """Make of a sound what it is sent as; InputError if it hears none."""

    def answer(self, messages: Sequence[dict[str, Any]], options: TalkOptions) -> Events:
        """Answer, ending with End; raises a QianyanError when there is no answer."""


def open_model(settings: LookSettings) -> Model:
    """Load or reach the model that the settings name."""
    if settings.base_url is not None:
        return RemoteModel(settings)
    engine, name = load_engine(settings)
    return LocalModel(engine, name)


def load_engine(settings: LookSettings, *, use_speech: bool = False) -> tuple[Engine, str]:
    """Load the checkpoint that the settings name, of a pair its judge; also give its name."""
    pair = find_pair(settings.model)
    dtype = settings.dtype
    if pair is not None and dtype == "auto":
        dtype = "float32"  # the small judge is faster in single precision than in its bf16
    engine = Engine(
        settings.model if pair is None or settings.model == BUNDLED else pair / "judge",
        dtype=dtype,
        device=settings.device,
        quantize=settings.quantize,
        max_pixels=settings.max_pixels or (MAX_PIXELS if pair is None else None),
        config=EngineConfig(use_speech=use_speech),
    )
    return engine, settings.model if pair is not None else engine.name


def _require_sendable(file: Path | bytes, noun: str) -> None:
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if size > MAX_SENT_BYTES:
        raise InputError(
            f"The {noun} has {size / 1e6:.0f} MB; expected at most {MAX_SENT_BYTES / 1e6:g} MB to "
            "be sent to an endpoint. Cut it shorter."
        )


def _base64(file: Path | bytes) -> str:
    return b64encode(file if isinstance(file, bytes) else file.read_bytes()).decode("ascii")


def _data_url(file: Path | bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{_base64(file)}"


class LocalModel:
    """A checkpoint run by the engine in this process."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self._engine = engine

    @property
    def sees_pictures(self) -> bool:
        """Whether the checkpoint has a picture format."""
        return self._engine.processor.pictures is not None

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size the checkpoint's processor shows a picture."""
        return self._engine.processor.seen_wh(photo_wh)

    def watch(self, video: Path | bytes, media_type: str) -> Clip:
        """Sample the frames once, so that later turns need neither the file nor its decoder.

        For a model that hears, the whole file is kept instead: its sound belongs to it.
        """
        processor = self._engine.processor
        if processor.videos is None:
            raise InputError(f"{self.name} reads pictures but no videos.")
        request = VideoRequest(where="The video")
        sampled = read_video(video, request, processor.videos, processor.limits.video)
        record = sampled.record
        frames = [Image.fromarray(frame) for frame in sampled.frames]
        stated = f"{record.num_frames} frames at {record.fps:.2f} fps of {record.duration_s:.1f} s"
        part: dict[str, Any] = {"type": "video", "video": frames, "fps": record.fps}
        if processor.sounds is not None:
            part = {"type": "video_url", "video_url": {"url": _data_url(video, media_type)}}
        return Clip(part=part, notes=(stated, *record.notes))

    def hear(self, sound: Path | bytes, media_type: str) -> Clip:  # noqa: ARG002  (remote needs it)
        """Keep the whole file, so that later turns need it no more."""
        processor = self._engine.processor
        if processor.sounds is None:
            raise InputError(f"{self.name} does not hear; expected a model such as Qwen2.5-Omni.")
        data = sound if isinstance(sound, bytes) else sound.read_bytes()
        record = read_sound(data, processor.sounds.sampling_rate, processor.limits.audio).record
        stated = f"{record.duration_s:.1f} s of sound"
        return Clip(part={"type": "audio", "audio": data}, notes=(stated, *record.notes))

    def answer(self, messages: Sequence[dict[str, Any]], options: TalkOptions) -> Events:
        """Answer with the engine's stream."""
        chosen = ChatOptions(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            enable_thinking=options.enable_thinking,
        )
        for event in self._engine.stream(messages, **chosen):
            if isinstance(event, TokenText):
                yield Piece(text=event.text, is_thinking=event.is_reasoning)
            else:
                yield End(
                    is_full=event.completion.finish_reason != "length",
                    num_tokens=event.completion.usage.completion_tokens,
                )


class RemoteModel:
    """A model behind an OpenAI-compatible endpoint.

    Pictures travel as data: URLs in the size that the model is known or guessed to see, so that
    the server has nothing to resize; local files are read here only.
    """

    def __init__(self, settings: LookSettings) -> None:
        """Find the model; raises EndpointError when the endpoint cannot be reached."""
        self._endpoint = ChatEndpoint(
            settings.base_url or "", settings.api_key, patience=PATIENCE, concurrency=1
        )
        named = None if settings.model == BUNDLED else settings.model
        self.name = named or self._endpoint.first_model()
        self._profile = _profile(settings, self.name)
        self._counts_tokens = True

    @property
    def sees_pictures(self) -> bool:
        """Taken for granted; an endpoint says no when it is sent one."""
        return True

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size a picture is sent."""
        return pinned_size(self._profile, photo_wh)

    def watch(self, video: Path | bytes, media_type: str) -> Clip:
        """Send the whole file; how it is sampled is the server's affair."""
        _require_sendable(video, "video")
        return Clip(part={"type": "video_url", "video_url": {"url": _data_url(video, media_type)}})

    def hear(self, sound: Path | bytes, media_type: str) -> Clip:
        """Send the whole file; whether it is heard is the server's affair."""
        _require_sendable(sound, "sound")
        given = media_type.rpartition("/")[2].removeprefix("x-")
        data = {"data": _base64(sound), "format": {"mpeg": "mp3"}.get(given, given)}
        return Clip(part={"type": "input_audio", "input_audio": data})

    def answer(self, messages: Sequence[dict[str, Any]], options: TalkOptions) -> Events:
        """Answer with the endpoint's stream."""
        body = self._body(messages, options)
        if not self._counts_tokens:
            yield from self._follow(body)
            return
        try:
            yield from self._follow({**body, "stream_options": {"include_usage": True}})
        except RefusedError as error:
            if error.status not in _REFUSED_STATUS or "stream_options" not in error.said:
                raise
            self._counts_tokens = False
            yield from self._follow(body)

    def _follow(self, body: Mapping[str, Any]) -> Events:
        end, marks = End(is_full=True), ThinkMarks()
        with closing(self._endpoint.stream(body)) as deltas:
            for delta in deltas:
                if delta.reasoning:
                    yield Piece(text=delta.reasoning, is_thinking=True)
                for text, is_thinking in marks.push(delta.text):
                    yield Piece(text=text, is_thinking=is_thinking)
                end = _later(end, delta)
        text, is_thinking = marks.finish()
        yield Piece(text=text, is_thinking=is_thinking)
        yield end

    def _body(self, messages: Sequence[dict[str, Any]], options: TalkOptions) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [self._message(message) for message in messages],
            **self._profile.extra,
        }
        if options.max_tokens is not None:
            body["max_tokens"] = options.max_tokens
        if options.temperature is not None:
            body["temperature"] = options.temperature
        if options.enable_thinking is not None:  # Bailian takes the first, vLLM the second
            body["enable_thinking"] = options.enable_thinking
            body["chat_template_kwargs"] = {"enable_thinking": options.enable_thinking}
        return body

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Write a message for the wire: pictures as data: URLs, no earlier thinking."""
        content = message["content"]
        if isinstance(content, list):
            content = [self._part(part) for part in content]
        return {"role": message["role"], "content": content}

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        picture = part.get("image")
        if not isinstance(picture, Image.Image):
            return part
        wh = self.seen_wh(picture.size)
        sent = picture if picture.size == wh else picture.resize(wh, Image.Resampling.BICUBIC)
        return {"type": "image_url", "image_url": {"url": to_data_url(sent)}}


def _profile(settings: LookSettings, name: str) -> EndpointProfile:
    address = normal_url(settings.base_url or "")
    known = find_profile(address, name) or guess_profile(address, name)
    return known if settings.max_pixels is None else known.within(settings.max_pixels)


def _later(end: End, delta: Delta) -> End:
    """Take into account what the last pieces say about the whole answer."""
    return End(
        is_full=end.is_full and delta.finish_reason != "length",
        num_tokens=end.num_tokens if delta.completion_tokens is None else delta.completion_tokens,
    )
