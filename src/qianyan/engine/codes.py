"""One speech code after the other: the Talker's own loop, in step with the answer's text.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.3); sums and order are `models/omni/talker.py`'s.
Each token of the text lets one more code out, and the first one lets the prompt in. When the text
has ended the codes go on until the Talker draws one that ends the speech.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qianyan.engine.options import Sampling
from qianyan.engine.sampler import draw, penalise_seen
from qianyan.errors import CapacityError, CheckpointError
from qianyan.models.omni.sequence import SequenceCache
from qianyan.models.omni.talker import Talker, talker_positions
from qianyan.models.positions import Positions

MAX_CODES = 4096  # of one speech: 82 seconds
SPEECH_SAMPLING = Sampling(
    max_tokens=MAX_CODES, temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05
)
"""How the released models draw codes."""
PASS_TOKENS = 2048  # of a prompt, in one pass


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What stands before the first code; all in the Thinker's width.

    `prompt` is its states (tokens, hidden), placed at `positions`; `voice` the embedding of the
    voice's start token and `first` the state of the answer's first token, both (1, hidden).
    """

    prompt: Tensor
    positions: Positions
    voice: Tensor
    first: Tensor


class CodeStream:
    """Draws the codes of one speech, in the order in which the text comes.

    Codes are below `num_codes`, what the decoder can make sound of. `codes` are all so far.
    `is_cut` tells whether they ended at a limit, not by the Talker's own will.
    """

    def __init__(self, talker: Talker, *, num_codes: int, sampling: Sampling) -> None:
        self._talker, self._sampling = talker, sampling
        self._random = np.random.default_rng(sampling.seed)
        self._cache = SequenceCache()
        self._device = next(talker.parameters()).device
        config = talker.config
        forbidden = torch.ones(config.text.vocab_size, dtype=torch.bool, device=self._device)
        forbidden[:num_codes] = False
        forbidden[sorted(config.stop_ids)] = False
        forbidden[config.tts_codec_start_token_id] = True
        self._forbidden = forbidden
        self._seen = {config.tts_codec_mask_token_id, config.tts_codec_pad_token_id,
                      config.tts_codec_start_token_id}  # fmt: skip
        self._num_tokens = 0
        self._positions: Positions | None = None
        self.codes: list[int] = []
        self.is_ended = self.is_cut = False

    @property
    def has_begun(self) -> bool:
        """Whether the prompt was taken in."""
        return self._positions is not None

    @torch.inference_mode()
    def begin(self, opening: Opening) -> list[int]:
        """Take in the prompt and the first token of the text; give the first code, if any.

        Raises CapacityError for a prompt that leaves no room for speech.
        """
        config = self._talker.config
        self._positions = talker_positions(opening.positions)
        marks = torch.tensor(
            [config.tts_codec_pad_token_id, config.tts_codec_start_token_id], device=self._device
        )
        tail = torch.cat([opening.voice, opening.first]).to(self._device) + self._talker.embed(
            marks
        )
        inputs = torch.cat([opening.prompt.to(tail), tail])
        longest = config.text.max_model_len
        if len(inputs) >= longest:
            raise CapacityError(
                f"The prompt has {len(inputs) - 2} tokens; expected less than {longest - 2} for an "
                "answer that is spoken."
            )
        for some in torch.split(inputs, PASS_TOKENS):
            logits = self._pass(some)
        return self._draw(logits)

    @torch.inference_mode()
    def go_on(self, text: Tensor) -> list[int]:
        """Take the next of the text's track, (1, hidden); give the code it lets out, if any."""
        if self.is_ended:
            return []
        last = torch.tensor(self.codes[-1:], device=self._device)
        embedded = self._talker.embed(last)
        return self._draw(self._pass(embedded + text.to(embedded)))

    def _pass(self, inputs: Tensor) -> Tensor:
        """Compute the logits (codes,) after the last of the inputs."""
        assert self._positions is not None, "codes before the prompt"
        start, self._num_tokens = self._num_tokens, self._num_tokens + len(inputs)
        at = torch.tensor([len(inputs) - 1], device=self._device)
        positions = self._positions.at(start, self._num_tokens)
        logits: Tensor = self._talker(inputs, positions, self._cache, at)[0]
        return logits

    def _draw(self, logits: Tensor) -> list[int]:
        if not bool(logits.isfinite().all()):
            raise CheckpointError(
                "The Talker's output is not a number; expected finite logits. "
                'Try dtype="float32" or "bfloat16".'
            )
        penalise_seen(logits, self._seen, self._sampling.repetition_penalty)
        logits[self._forbidden] = -torch.inf
        if self._sampling.temperature > 0:
            code = draw(logits, self._sampling, self._random)
        else:
            code = int(logits.argmax())
        if code in self._talker.config.stop_ids:
            self.is_ended = True
            return []
        self._seen.add(code)
        self.codes.append(code)
        is_full = self._num_tokens >= self._talker.config.text.max_model_len
        self.is_ended = self.is_cut = is_full or len(self.codes) >= self._sampling.max_tokens
        return [code]
