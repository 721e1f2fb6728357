"""The half of Qwen2.5-Omni that speaks, and one answer being spoken by it.

Source: Qwen2.5-Omni (arXiv 2503.20215, sections 2.3 and 2.4). Three models in a row, each a step
behind the one before: the Thinker's text (the engine's, and followed by `states.py`), the Talker's
codes (`codes.py`), the decoder's samples. Loaded when speech is asked for the first time: whoever
wants text only pays nothing for it.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from qianyan.engine.codes import SPEECH_SAMPLING, CodeStream, Opening
from qianyan.engine.folder import read_headers
from qianyan.engine.options import Sampling
from qianyan.engine.request import Request
from qianyan.engine.runner import Prompt
from qianyan.engine.states import ThinkerStates
from qianyan.errors import CheckpointError, InputError
from qianyan.models.omni.speakers import Speaker, load_speakers
from qianyan.models.omni.speech_decoder import SpeechDecoder
from qianyan.models.omni.talker import Talker, load_talker, talker_config
from qianyan.models.omni.thinker import Thinker
from qianyan.models.omni.token2wav import Token2Wav, load_token2wav
from qianyan.models.registry import Model, read_config_json

RATE_HZ = 24_000  # of all speech
USUAL_VOICE = "Chelsie"


class Speech:
    """Talker, speech decoder and voices beside the Thinker whose answers they speak.

    Any number of answers may be spoken in turns; no two threads at a time.
    """

    def __init__(
        self,
        thinker: Thinker,
        talker: Talker,
        token2wav: Token2Wav,
        speakers: Mapping[str, Speaker],
        look: Callable[[Prompt], None],
    ) -> None:
        """Put the parts together; `look` makes the features of a prompt's media be there."""
        self.look = look
        self.thinker, self.talker, self.token2wav = thinker, talker, token2wav
        self.speakers = dict(speakers)
        vocab_size = thinker.config.text.vocab_size
        ids = {speaker.bos_token for speaker in self.speakers.values()}
        ids |= {talker.config.tts_text_end_token_id, talker.config.tts_text_pad_token_id}
        if not all(0 <= token_id < vocab_size for token_id in ids):
            raise CheckpointError(
                f"A token of a voice or of the Talker's text is {max(ids)}; expected an id below "
                f"the Thinker's vocab_size ({vocab_size})."
            )

    @classmethod
    def load(cls, folder: Path, thinker: Thinker, *, look: Callable[[Prompt], None]) -> Self:
        """Load what speaks from the folder of a whole model, beside its Thinker.

        The Talker gets the Thinker's dtype; the decoder stays in float32. Raises ConfigError and
        CheckpointError.
        """
        weight = thinker.model.embed_tokens.weight
        token2wav = load_token2wav(folder, device=weight.device)
        speakers = load_speakers(folder, token2wav.config.dit)
        config = talker_config(read_config_json(folder))
        talker = load_talker(folder, config, dtype=weight.dtype, device=weight.device)
        return cls(thinker, talker, token2wav, speakers, look)

    @property
    def voices(self) -> tuple[str, ...]:
        """The names of the voices."""
        return tuple(self.speakers)

    def find_speaker(self, voice: str | None) -> Speaker:
        """Find a voice by its name, None for the usual one; InputError where there is none."""
        if voice is None:
            voice = USUAL_VOICE if USUAL_VOICE in self.speakers else self.voices[0]
        speaker = self.speakers.get(voice)
        if speaker is None:
            # Bailian's own sentence, which its clients know.
            *others, last = (f"'{name}'" for name in self.voices)
            names = f"{', '.join(others)} or {last}" if others else last
            raise InputError(f"Input should be {names}: parameters.audio.voice")
        return speaker

    def begin(
        self,
        request: Request,
        prompt: Prompt,
        speaker: Speaker,
        *,
        sampling: Sampling = SPEECH_SAMPLING,
    ) -> "Speaking":
        """Begin to speak the answer to a request, which need not have begun itself."""
        return Speaking(self, request, prompt, speaker, sampling)


class Speaking:
    """One answer being spoken while it is written.

    Samples are float32 of -1 to 1, mono, at RATE_HZ; their number is that of the codes times the
    same factor. Token by token the text gets ahead of the voice, so most sound comes after it.

    The Thinker follows as many tokens at a time as there are codes in a block: a pass over twelve
    costs little more than one over one, and sound is made of whole blocks anyway. Where groups end
    depends on nothing but the text, so the same answer is always computed alike.
    """

    def __init__(
        self, speech: Speech, request: Request, prompt: Prompt, speaker: Speaker, sampling: Sampling
    ) -> None:
        seed = request.sampling.seed
        self._speech, self._request, self._prompt = speech, request, prompt
        self._speaker = speaker
        self._states = ThinkerStates(speech.thinker, prompt.positions)
        self._codes = CodeStream(
            speech.talker,
            num_codes=speech.token2wav.config.dit.num_embeds,
            sampling=replace(sampling, seed=seed),
        )
        self._decoder = SpeechDecoder(speech.token2wav, speaker, seed=seed or 0)
        self._num_read = 0
        self._is_stopped = False

    @property
    def codes(self) -> list[int]:
        """All codes so far."""
        return self._codes.codes

    @property
    def is_cut(self) -> bool:
        """Whether the speech ended at a limit or was stopped, not by itself."""
        return self._codes.is_cut or (self._is_stopped and not self._codes.is_ended)

    def stop(self) -> None:
        """End the speech after the code that is being made; from any thread."""
        self._is_stopped = True

    def leave(self) -> None:
        """Stop, and break off the sound that is being made, as nobody hears it; from any thread."""
        self.stop()
        self._decoder.leave()

    def catch_up(self) -> Iterator[np.ndarray]:
        """Take in what the answer has become, step by step; each gives samples, often none.

        The first sound need not wait for all of a text that is ahead of it.
        """
        return self._read_groups(to_the_end=False)

    def finish(self) -> Iterator[np.ndarray]:
        """Speak what is left of an answer that is whole, in pieces as they become certain.

        An answer without text is silence of no length.
        """
        yield from self._read_groups(to_the_end=True)
        if not self._codes.has_begun:
            return
        config = self._speech.talker.config
        next_id = config.tts_text_end_token_id
        while not self._is_over:
            yield self._go_on(self._states.embed(next_id))
            next_id = config.tts_text_pad_token_id
        yield _to_numpy(self._decoder.finish())

    @property
    def _is_over(self) -> bool:
        return self._codes.is_ended or self._is_stopped

    def _read_groups(self, *, to_the_end: bool) -> Iterator[np.ndarray]:
        """Take in the text's next tokens group by group, at its end what there is."""
        stops = self._request.sampling.stop_token_ids
        text = [one for one in self._request.output_token_ids if one not in stops]
        block = self._speech.token2wav.config.dit.block_codes
        while self._num_read < len(text) and not self._is_over:
            size = block - self._num_read % block if self._codes.has_begun else 1
            group = text[self._num_read : self._num_read + size]
            if len(group) < size and not to_the_end:
                return
            self._num_read += len(group)
            yield np.concatenate([np.empty(0, np.float32), *self._read(group)])

    def _read(self, token_ids: list[int]) -> list[np.ndarray]:
        """Take in some tokens of the text; only the first one of all is alone."""
        if not self._codes.has_begun:
            return [_to_numpy(self._decoder.push(self._codes.begin(self._open(token_ids))))]
        states = torch.split(self._states.tokens(token_ids), 1)
        return [self._go_on(state) for state in states if not self._is_over]

    def _go_on(self, text: Tensor) -> np.ndarray:
        return _to_numpy(self._decoder.push(self._codes.go_on(text)))

    def _open(self, token_ids: list[int]) -> Opening:
        request, prompt = self._request, self._prompt
        self._speech.look(prompt)
        before = self._states.prompt(request.prompt_token_ids, prompt.rows, prompt.features)
        return Opening(
            prompt=before,
            positions=prompt.positions,
            voice=self._states.embed(self._speaker.bos_token),
            first=self._states.tokens(token_ids),
        )


class LazySpeech:
    """What speaks of a checkpoint folder, loaded when it is asked for; for any number of threads.

    `look` makes the features of a prompt's media be there.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        *,
        look: Callable[[Prompt], None],
        is_wanted: bool = True,
    ) -> None:
        """Load nothing yet; not wanted, the model does not speak."""
        self._folder, self._model, self._look = folder, model, look
        self._is_wanted = is_wanted
        self._loaded: Speech | None = None
        self._lock = threading.Lock()

    @property
    def is_there(self) -> bool:
        """Whether the folder holds more of Qwen2.5-Omni than what writes."""
        data = read_config_json(self._folder)
        has_parts = bool(data.get("talker_config") and data.get("token2wav_config"))
        is_on = data.get("enable_audio_output") is not False
        return self._is_wanted and isinstance(self._model, Thinker) and has_parts and is_on

    @property
    def num_bytes(self) -> int:
        """Count the bytes that its weights take once they are loaded, from their files' headers."""
        if not isinstance(self._model, Thinker) or not self.is_there:
            return 0
        width = self._model.model.embed_tokens.weight.element_size()
        widths = {"talker": width, "token2wav": 4}  # what `Speech.load` makes of them
        return sum(
            widths.get(tensor.name.partition(".")[0], 0) * math.prod(tensor.shape)
            for tensor in read_headers(self._folder)
        )

    def load(self) -> Speech:
        """Load it, or give what was loaded before.

        Raises InputError for a model that does not speak, ConfigError and CheckpointError.
        """
        with self._lock:
            if self._loaded is None:
                if not isinstance(self._model, Thinker) or not self.is_there:
                    raise InputError(
                        f"The model {self._folder.name[:80]} does not speak; expected modalities "
                        "['text'] and no audio."
                    )
                self._loaded = Speech.load(self._folder, self._model, look=self._look)
            return self._loaded


def _to_numpy(samples: Tensor) -> np.ndarray:
    found: np.ndarray = samples.numpy()
    return found
