"""Read a given text aloud: a model that speaks says it word for word and adds nothing.

The Talker of Qwen2.5-Omni speaks the tokens of the Thinker's answer. Here the Thinker is given the
text as the answer that it is to have written, so what is spoken cannot differ from the text. Long
texts are cut at the ends of sentences, each passage being an answer of its own: speech ends after
82 seconds. What the codes themselves can tell is checked: a passage whose speech ended before its
words, or did not end at all, is an error.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qianyan.engine.engine import Engine
from qianyan.engine.options import ChatOptions
from qianyan.engine.speech import RATE_HZ
from qianyan.errors import CapacityError, InputError, ReplyError, quote

MAX_CHARACTERS = 4096
"""Of one text: as many as OpenAI's text-to-speech takes."""
PASSAGE_TOKENS = 150
"""Most tokens of one passage: about 45 seconds, far from where speech ends."""
PAUSE_S = 0.2  # between two passages
SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
    "perceiving auditory and visual inputs, as well as generating text and speech."
)
"""The words under which the released models were taught to speak (README, Usage Tips)."""
QUESTIONS = {
    True: "请逐字朗读下面的文字，不要增减：\n{}",
    False: "Read this aloud, word for word:\n{}",
}
"""By whether the text is Chinese."""
_HAN = re.compile(r"[\u3400-\u9fff]")
_CUTS = (
    re.compile(r"(?<=[。！？；!?;\n])|(?<=\.)(?=\s)"),
    re.compile(r"(?<=[，、：,:])"),
    re.compile(r"(?<=\s)"),
)
"""Where a text may be cut, best first: behind sentences, clauses, words."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A text that was read aloud: float32 samples of -1 to 1, mono."""

    text: str
    samples: np.ndarray
    rate_hz: int = RATE_HZ

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return len(self.samples) / self.rate_hz


class Reading:
    """A text being read aloud by an engine's model; iterate over `pieces` once.

    No two threads may take pieces of the same engine's readings at a time.
    """

    def __init__(
        self, engine: Engine, text: str, *, voice: str | None = None, seed: int | None = None
    ) -> None:
        """Check the text and load what speaks; None is the model's usual voice.

        Raises InputError for a model that does not speak, an unknown voice and a text that cannot
        be read, CapacityError for one that is too long, CheckpointError.
        """
        self.text = text.strip()
        self._engine, self._seed = engine, seed
        self._speech = engine.speech.load()
        self._speaker = self._speech.find_speaker(voice)
        self._tokenizer = engine.processor.tokenizer
        _check(self.text, self._tokenizer.control_words)
        self._passages = cut(self.text, self._fits)
        self.num_prompt_tokens = self.num_text_tokens = self.num_codes = 0

    def pieces(self) -> Iterator[np.ndarray]:
        """Give the samples in pieces as they become certain; many are empty.

        Raises ReplyError where the speech of a passage ended before its words or went on without
        end.
        """
        for index, passage in enumerate(self._passages):
            if index:
                yield np.zeros(round(PAUSE_S * RATE_HZ), np.float32)
            yield from self._read(passage)

    def _fits(self, passage: str) -> bool:
        return len(self._tokenizer.encode(passage)) <= PASSAGE_TOKENS

    def _read(self, passage: str) -> Iterator[np.ndarray]:
        token_ids = self._tokenizer.encode(passage)
        options = ChatOptions(max_tokens=len(token_ids), seed=self._seed)
        request, prompt = self._engine.prepare(_conversation(passage), options)
        speaking = self._speech.begin(request, prompt, self._speaker)
        self.num_prompt_tokens += len(request.prompt_token_ids)
        self.num_text_tokens += len(token_ids)
        before = self.num_codes
        request.output_token_ids.extend(token_ids)  # no step of the engine ever sees this request
        for samples in speaking.finish():
            self.num_codes = before + len(speaking.codes)
            yield samples
        if len(speaking.codes) < len(token_ids):
            raise ReplyError(
                "The voice ended before the text; expected all of it to be read aloud. Try another "
                "seed or voice."
            )
        if speaking.is_cut:
            raise ReplyError(
                "The voice went on behind the text without an end; expected it to stop there. Try "
                "another seed or voice."
            )


def read_aloud(
    engine: Engine, text: str, *, voice: str | None = None, seed: int | None = None
) -> Recording:
    """Read a text aloud, word for word; raises what `Reading` does.

    Example:
        from qianyan.engine.reading_aloud import read_aloud
        recording = read_aloud(engine, "Two people without hard hats", voice="Chelsie")
    """
    reading = Reading(engine, text, voice=voice, seed=seed)
    return Recording(text=reading.text, samples=np.concatenate(list(reading.pieces())))


def cut(
    text: str, fits: Callable[[str], bool], cuts: tuple[re.Pattern[str], ...] = _CUTS
) -> list[str]:
    """Cut a text into passages that fit, as few and at as good places as can be had."""
    if fits(text) or len(text) == 1:
        return [text]
    if not cuts:
        middle = len(text) // 2
        return cut(text[:middle], fits, ()) + cut(text[middle:], fits, ())
    passages: list[str] = []
    for piece in cuts[0].split(text):
        for smaller in cut(piece, fits, cuts[1:]) if piece.strip() else ():
            if passages and fits(passages[-1] + smaller):
                passages[-1] += smaller
            else:
                passages.append(smaller)
    return passages


def _check(text: str, control_words: tuple[str, ...]) -> None:
    if not any(char.isalnum() for char in text):
        raise InputError("The text has no word to be read aloud; expected letters or digits.")
    if len(text) > MAX_CHARACTERS:
        raise CapacityError(
            f"The text has {len(text)} characters; expected at most {MAX_CHARACTERS} to be read "
            "aloud. Send it in parts."
        )
    for word in control_words:
        if word in text:
            raise InputError(
                f"The text holds {quote(word)}, which is a control word of the model; expected "
                "words that can be read aloud."
            )


def _conversation(text: str) -> list[dict[str, Any]]:
    question = QUESTIONS[bool(_HAN.search(text))].format(text)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
