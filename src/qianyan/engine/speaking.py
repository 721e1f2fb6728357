"""Ask a model that speaks: its answer as text and sound, as they come or whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from qianyan.engine.engine import Engine, Messages
from qianyan.engine.options import ChatOptions, check_names
from qianyan.engine.request import Completion, Finished, TokenText
from qianyan.engine.speech import RATE_HZ


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """One more piece of a voice: float32 samples of -1 to 1, mono, at RATE_HZ."""

    samples: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Spoken:
    """An answer and its sound."""

    completion: Completion
    samples: np.ndarray
    rate_hz: int = RATE_HZ

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return len(self.samples) / self.rate_hz


def stream_speech(
    engine: Engine, messages: Messages, *, voice: str | None = None, **options: Unpack[ChatOptions]
) -> Iterator[TokenText | Sound | Finished]:
    """Answer one conversation token by token and speak it meanwhile, ending with Finished.

    The sounds joined are the whole speech; None is the model's usual voice. Closing the iterator
    ends both. What is wrong with messages, options or voice is raised here, not at the first event;
    InputError for a model that does not speak.
    """
    check_names(options)
    speech = engine.speech.load()
    speaker = speech.find_speaker(voice)
    request, prompt = engine.prepare(messages, options)
    speaking = speech.begin(request, prompt, speaker)

    def follow() -> Iterator[TokenText | Sound | Finished]:
        for event in engine.follow(request, prompt):
            if isinstance(event, Finished):
                yield from _sounds(speaking.finish())
                yield event
            else:
                yield event
                yield from _sounds(speaking.catch_up())

    return follow()


def _sounds(pieces: Iterator[np.ndarray]) -> Iterator[Sound]:
    return (Sound(samples=samples) for samples in pieces if len(samples))


def speak(
    engine: Engine, messages: Messages, *, voice: str | None = None, **options: Unpack[ChatOptions]
) -> Spoken:
    """Answer one conversation and speak the answer, as `stream_speech` does piece by piece."""
    pieces = [np.empty(0, np.float32)]
    for event in stream_speech(engine, messages, voice=voice, **options):
        if isinstance(event, Sound):
            pieces.append(event.samples)
        elif isinstance(event, Finished):
            completion = event.completion
    return Spoken(completion=completion, samples=np.concatenate(pieces))
