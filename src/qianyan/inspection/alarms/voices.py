"""Open a voice: the model that looks where it speaks too, another checkpoint, or an endpoint."""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch

from qianyan.engine.desk import Desk
from qianyan.engine.engine import Engine
from qianyan.engine.faults import is_out_of_memory
from qianyan.engine.reading_aloud import Reading
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import ConfigError, NoMemoryError, quote
from qianyan.inspection.inspector import LookSettings, OpenLook
from qianyan.inspection.remote.chat_endpoint import OptionNames
from qianyan.inspection.remote.voice import RemoteVoice
from qianyan.models.omni.pcm import to_pcm16, to_wav

SEED = 1
"""Of every alarm, so that the same sentence always sounds the same."""

READING = EngineConfig(max_num_requests=1, max_cache_tokens=2048)
"""Of a model that only reads aloud: what it reads never enters the engine's cache."""


class Voice(Protocol):
    """Something that reads sentences aloud."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def voice(self) -> str | None:
        """Whose voice it is; None is the model's usual one."""

    def say(self, sentence: str) -> bytes:
        """Read a sentence aloud as a WAV file; raises a QianyanError when it is not spoken."""


@dataclass(frozen=True, kw_only=True)
class VoiceSettings:
    """Which model reads alarms aloud, and in whose voice.

    Without `model` and `base_url` it is the model that looks. With `base_url` the model is named
    there (None: the endpoint's first), without it is a checkpoint here.
    """

    model: str | None = None
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    voice: str | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and self.base_url is None:
            raise ConfigError(
                "--voice-key is given without --voice-url; expected both, or neither."
            )

    def is_of(self, look: LookSettings) -> bool:
        """Say whether a model here both looks and speaks."""
        is_here = self.base_url is None and look.base_url is None
        return is_here and self.model in (None, look.model)


class LocalVoice:
    """A checkpoint here, used at a desk as the models that look are."""

    def __init__(self, engine: Engine, voice: str | None, desk: Desk) -> None:
        """Load what speaks; raises ConfigError for a model or voice that cannot."""
        if not engine.speech.is_there:
            raise ConfigError(
                f"The model {quote(engine.name)} does not speak; expected one that does, such as "
                "Qwen2.5-Omni."
            )
        known = desk.call(engine.speech.load).voices
        if voice is not None and voice not in known:
            raise ConfigError(f"--voice is {quote(voice)}; expected one of {', '.join(known)}.")
        self.name, self.voice = engine.name, voice
        self._engine, self._desk = engine, desk

    def say(self, sentence: str) -> bytes:
        """Read a sentence aloud, a piece at a time, so that pictures are looked at in between."""
        try:
            reading = Reading(self._engine, sentence, voice=self.voice, seed=SEED)
            take = partial(next, reading.pieces(), None)
            pieces = []
            while (piece := self._desk.call(take)) is not None:
                pieces.append(piece)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise NoMemoryError(
                "There was no memory to read a sentence aloud. Use a smaller --batch, or a voice "
                "elsewhere with --voice-url."
            ) from error
        return to_wav(to_pcm16(torch.from_numpy(np.concatenate(pieces))))


def open_voice(settings: VoiceSettings, look: LookSettings, opened: OpenLook) -> Voice:
    """Load or name what reads alarms aloud; of an endpoint nothing is asked yet.

    Raises ConfigError for what cannot speak, and what loading a checkpoint raises.
    """
    if settings.base_url is not None:
        return RemoteVoice(
            settings.base_url, settings.model, settings.api_key, voice=settings.voice
        )
    if look.base_url is not None and settings.model in (None, look.model):
        return RemoteVoice(
            look.base_url,
            opened.model,
            look.api_key,
            voice=settings.voice,
            names=OptionNames(),
        )
    engine = opened.engine
    if settings.model is None or settings.is_of(look):
        if engine is None or not engine.speech.is_there:
            raise ConfigError(
                f"The model {quote(opened.model)} looks and does not speak; name one that does "
                "with --voice-model, such as Qwen2.5-Omni, or an endpoint with --voice-url."
            )
        return LocalVoice(engine, settings.voice, opened.desk)
    engine = opened.desk.call(
        Engine,
        settings.model,
        dtype=look.dtype,
        device=look.device,
        quantize=look.quantize,
        config=READING,
    )
    return LocalVoice(engine, settings.voice, opened.desk)
