"""A voice behind an OpenAI-compatible endpoint: a sentence goes out, its sound comes back.

An endpoint that has /audio/speech reads what it is given. Others (Bailian's Qwen-Omni, for one)
speak answers of chat/completions: there the model is asked to repeat the sentence, and what it says
that it said is compared with it, for a model may add or leave out words. Bailian speaks in streams
only; the samples are 16-bit PCM, mono, 24 kHz, whatever the format's name.
"""

import unicodedata
import wave
from base64 import b64decode
from contextlib import closing
from io import BytesIO
from typing import Any

from qianyan.errors import EndpointError, ReplyError, quote
from qianyan.inspection.remote.chat_endpoint import (
    MAX_REPLY_BYTES,
    ChatEndpoint,
    OptionNames,
    Patience,
    RefusedError,
)
from qianyan.models.omni.bigvgan import SAMPLE_RATE_HZ
from qianyan.models.omni.pcm import SAMPLE_BYTES, to_wav

PATIENCE = Patience(timeout_s=300, attempts=3)
"""Alarms wait for each other: fewer attempts than a run has, and time for a slow voice."""
NAMES = OptionNames(
    base_url="--voice-url", api_key="--voice-key or QIANYAN_VOICE_KEY", model="--voice-model"
)
SPARE_TOKENS = 32
"""Of an answer, beside the sentence's own, which are no more than its bytes."""
ATTEMPTS = 2
"""How often a model that said something else is asked."""
_ABSENT_STATUS = frozenset({404, 405, 501})
_BAD_REQUEST_STATUS = frozenset({400, 422})
_FORMATS = ("wav", "pcm16")
"""Of a stream's sound: as Bailian and our server take it, and as OpenAI does."""
_QUESTION = "请逐字复述下面这句话，不要增减任何内容：\n{}"
_ENGLISH_QUESTION = "Repeat this sentence word for word, and say nothing else:\n{}"


class RemoteVoice:
    """A model that speaks, behind an endpoint; one sentence at a time."""

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        voice: str | None = None,
        patience: Patience = PATIENCE,
        names: OptionNames = NAMES,
    ) -> None:
        """Check the address; without `model` the endpoint is asked for its first one later.

        Raises EndpointError when the address is no http(s) URL.
        """
        self.endpoint = ChatEndpoint(
            base_url, api_key, patience=patience, concurrency=1, names=names
        )
        self.voice = voice
        self._model, self._name = model, model or self.endpoint.base_url
        self._reads_aloud = True
        self._format = _FORMATS[0]

    @property
    def name(self) -> str:
        """What the voice is known by: the model as it was named, else the endpoint's address."""
        return self._name

    def say(self, sentence: str) -> bytes:
        """Have a sentence read aloud; give a WAV file.

        Raises ReplyError where something else was said, EndpointError.
        """
        if self._model is None:
            self._model = self.endpoint.first_model()
        if self._reads_aloud:
            try:
                return _check_wav(self.endpoint.read_aloud(self._speech_body(sentence)))
            except RefusedError as error:
                if error.status not in _ABSENT_STATUS:
                    raise
                self._reads_aloud = False
        return self._repeated(sentence)

    def _speech_body(self, sentence: str) -> dict[str, Any]:
        body = {"model": self._model, "input": sentence, "response_format": "wav"}
        return body if self.voice is None else {**body, "voice": self.voice}

    def _repeated(self, sentence: str) -> bytes:
        """Have the model repeat a sentence; what it said has to be the sentence."""
        said = ""
        for _ in range(ATTEMPTS):
            said, sound = self._asked(sentence)
            if plain_words(said) == plain_words(sentence):
                return sound
        raise ReplyError(
            f"The voice {self._model} was to say {quote(sentence)} and said {quote(said)}; its "
            "sound is not kept. Use an endpoint that has /audio/speech, or a checkpoint here."
        )

    def _asked(self, sentence: str) -> tuple[str, bytes]:
        """Ask once, in the other name of the format where this one is refused."""
        try:
            return self._spoken(sentence)
        except RefusedError as error:
            is_about_format = error.status in _BAD_REQUEST_STATUS and "format" in error.said
            if not is_about_format or self._format == _FORMATS[-1]:
                raise
            self._format = _FORMATS[-1]
            return self._spoken(sentence)

    def _spoken(self, sentence: str) -> tuple[str, bytes]:
        """Have an answer spoken; give its text, and its sound as a WAV file."""
        words, transcript, sounds, size = "", "", list[str](), 0
        with closing(self.endpoint.stream(self._chat_body(sentence))) as deltas:
            for delta in deltas:
                words, transcript = words + delta.text, transcript + delta.transcript
                sounds.append(delta.sound)
                size += len(delta.sound)
                if delta.finish_reason == "length":
                    raise ReplyError(f"The voice {self._model} was cut off before it had said all.")
                if size > MAX_REPLY_BYTES:
                    raise EndpointError(
                        f"{self.endpoint.base_url} speaks for more than "
                        f"{MAX_REPLY_BYTES // 2**20} MiB; expected one sentence."
                    )
        data = _decode(sounds, self.endpoint.base_url)
        if len(data) < SAMPLE_BYTES:
            raise EndpointError(
                f"{self._model} at {self.endpoint.base_url} answers without sound; expected a "
                "model that speaks."
            )
        sound = _check_wav(data) if data.startswith(b"RIFF") else to_wav(data[: len(data) // 2 * 2])
        return transcript or words, sound

    def _chat_body(self, sentence: str) -> dict[str, Any]:
        question = _ENGLISH_QUESTION if sentence.isascii() else _QUESTION
        audio = {"format": self._format}
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": question.format(sentence)}],
            "modalities": ["text", "audio"],
            "audio": audio if self.voice is None else {**audio, "voice": self.voice},
            "max_tokens": len(sentence.encode()) + SPARE_TOKENS,
            "temperature": 0,
        }


def plain_words(text: str) -> str:
    """Leave letters and digits of a text alone, for comparing what is heard of it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in folded if char.isalnum())


def _decode(pieces: list[str], where: str) -> bytes:
    """Join base64 that was cut anywhere, or into pieces that are whole in themselves."""
    whole = "".join(pieces)
    try:
        if "=" in whole.rstrip("="):
            return b"".join(b64decode(piece, validate=True) for piece in pieces)
        return b64decode(whole, validate=True)
    except ValueError as error:
        raise EndpointError(f"{where} sends sound that is no base64; expected base64.") from error


def _check_wav(data: bytes) -> bytes:
    """Write a WAV file anew under its real length; streamed ones do not know it."""
    try:
        with wave.open(BytesIO(data)) as file:
            shape = file.getnchannels(), file.getsampwidth(), file.getframerate()
            pcm = file.readframes(len(data))
    except (wave.Error, EOFError) as error:
        raise EndpointError(
            "The endpoint's sound is no WAV file of 16-bit samples; expected one."
        ) from error
    if shape[:2] != (1, SAMPLE_BYTES) or not pcm:
        raise EndpointError(
            f"The endpoint's sound has {shape[0]} channels of {8 * shape[1]} bits and {len(pcm)} "
            f"bytes; expected one channel of 16 bits, such as {SAMPLE_RATE_HZ} samples a second."
        )
    return to_wav(pcm, rate_hz=shape[2])
