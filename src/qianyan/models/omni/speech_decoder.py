"""Codec ids become speech as they come, block by block, or all at once.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.4): the transformer sees four blocks of frames at
a time, two before the one it makes and one behind. A stretch of blocks is therefore made as soon as
the codes of the block behind it are there. What the blocks before it leave behind is kept (keys
and values of the last, for every moment in time), so they are neither computed nor guessed again:
a stretch costs the same however long the answer grows.

What a stretch cannot know is how the block behind it will turn out in the end, as that depends on
the block after that, and so forth. This alone tells it from the same codes decoded at once; the
last stretch of an utterance knows everything.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qianyan.errors import CheckpointError, InputError
from qianyan.models.omni.bigvgan import OVERLAP_FRAMES, BigVGAN
from qianyan.models.omni.dit import DiT
from qianyan.models.omni.dit_layers import KeyValue, Stretch
from qianyan.models.omni.flow import evaluation_times, follow, guided, sway_times
from qianyan.models.omni.speakers import Speaker
from qianyan.models.omni.token2wav import Token2Wav

BLOCKS_TOGETHER = 8
"""Most blocks of a stretch: two seconds of speech. Each stretch computes one block more than it
ends with, so that longer ones cost less in all, and are heard later."""
FRAMES_VOCODED = 512
"""Mel frames that become samples in one go where all of them are there."""


class SpeechDecoder:
    """Speaks one utterance with one voice; samples are float32 of -1 ... 1 at 24 kHz, on the CPU.

    `push` takes codes, any number at a time, and gives the samples that are certain by then, often
    none; `finish` gives the rest, after which nothing can be pushed. All samples joined are as many
    as `decode` gives for the same codes, `samples_per_code` each, and do not depend on how the
    codes were cut into calls. The first samples come when the codes of two blocks are there (24
    codes, half a second, in the released models). The first stretch is one block; later ones are as
    long as all before them, so that who speaks at twice the pace of speech leaves no gap between
    them, and `blocks_together` at most.

    `decode` gives the samples of a whole utterance at once, every frame with its true neighbours;
    it leaves the stream as it is. Both draw the same noise for the same frame and `seed`.

    `leave`, from any thread, breaks off the stretch that is being made, at the next of its 36
    passes; `push` and `finish` give no samples any more.

    Codes are the Talker's, 0 ... num_embeds, without its pad, start and end. But for `leave`, not
    for several threads at a time. The other three raise InputError for other codes, and
    CheckpointError when the weights give samples that are no numbers.
    """

    def __init__(
        self,
        model: Token2Wav,
        speaker: Speaker,
        *,
        seed: int = 0,
        blocks_together: int = BLOCKS_TOGETHER,
    ) -> None:
        assert blocks_together >= 1, f"{blocks_together} blocks in a stretch"
        self._num_codes = model.config.dit.num_embeds + 1
        self._vocoder = model.code2wav_bigvgan_model
        self._flow = Flow(model.code2wav_dit_model, speaker)
        self._seed = seed
        self._frames = FrameStream(self._flow, seed=seed, blocks_together=blocks_together)
        self._waves = WaveStream(self._vocoder)
        self._is_finished = False

    @torch.inference_mode()
    def push(self, codes: Sequence[int]) -> Tensor:
        """Take the next codes; give the samples that are certain now, (samples,)."""
        if self._is_finished:
            raise InputError("The utterance is finished; expected a new decoder for more codes.")
        mels = self._frames.push(self._checked(codes))
        return _told([self._waves.push(mel) for mel in mels if self._flow.is_wanted])

    def leave(self) -> None:
        """Nobody listens any more: compute nothing."""
        self._flow.is_wanted = False

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """End the utterance; give the samples that are left, (samples,)."""
        self._is_finished = True
        mel = self._frames.finish()
        return _told([self._waves.finish(mel)] if self._flow.is_wanted else [])

    @torch.inference_mode()
    def decode(self, codes: Sequence[int]) -> Tensor:
        """Give the samples of a whole utterance, (samples,)."""
        frames = FrameStream(self._flow, seed=self._seed, blocks_together=1)
        mel = frames.finish(self._checked(codes))
        waves = WaveStream(self._vocoder)
        *others, last = torch.split(mel, FRAMES_VOCODED)
        return _told([*map(waves.push, others), waves.finish(last)])

    def _checked(self, codes: Sequence[int]) -> Sequence[int]:
        wrong = [code for code in codes if not 0 <= code < self._num_codes]
        if wrong:
            raise InputError(
                f"{len(wrong)} codes are outside the decoder's, the first of them {wrong[0]}; "
                f"expected 0 to {self._num_codes - 1}."
            )
        return codes


def _told(pieces: Sequence[Tensor]) -> Tensor:
    """Join what is given away; nobody is to hear what is no number."""
    samples = torch.cat([piece.cpu() for piece in pieces]) if pieces else torch.empty(0)
    if not bool(samples.isfinite().all()):
        raise CheckpointError(
            "The speech decoder's weights gave samples that are not finite; expected sound. "
            "Download the folder again."
        )
    return samples


class Flow:
    """From noise to mel frames for one voice: what all stretches of an utterance share."""

    def __init__(self, dit: DiT, speaker: Speaker) -> None:
        self.config = dit.config
        self.device = dit.proj_out.weight.device
        self._dit, self._times = dit, sway_times()
        moments = evaluation_times(self._times)
        self.num_moments = len(moments)
        self.is_wanted = True
        with torch.inference_mode():
            self._voice = dit.listen(*(e.to(self.device) for e in (speaker.ref_mel, speaker.cond)))
            self._modulations = dit.modulate(moments.to(self.device))

    def __call__(self, codes: Sequence[int], noise: Tensor, stretches: Sequence[Stretch]) -> Tensor:
        """Map noise (frames, mel) to mel frames; there is a stretch for each moment in time."""
        known = self._dit.know(torch.tensor(codes, device=self.device), self._voice)

        def velocity(moment: int, state: Tensor) -> Tensor:
            if not self.is_wanted:
                return torch.zeros_like(state)
            return guided(self._dit(state, known, self._modulations[moment], stretches[moment]))

        return follow(velocity, noise.to(self.device), self._times)


class FrameStream:
    """Codes to mel frames, stretch by stretch."""

    def __init__(self, flow: Flow, *, seed: int, blocks_together: int) -> None:
        self._flow, self._config = flow, flow.config
        self._blocks_together = blocks_together
        self._generator = torch.Generator().manual_seed(seed)
        self._codes: list[int] = []  # from the first frame on that is not final
        self._noise: list[Tensor] = []  # of those frames as far as drawn, a block each
        self._start = 0  # that frame
        self._kept: list[dict[int, KeyValue]] = [{} for _ in range(flow.num_moments)]

    def push(self, codes: Sequence[int]) -> list[Tensor]:
        """Take codes; give the frames that are final now, (frames, mel) for each stretch."""
        self._codes += codes
        made: list[Tensor] = []
        while True:
            done = self._start // self._config.block_size
            blocks = min(max(done, 1), self._blocks_together)
            num_codes = (blocks + self._config.blocks_ahead) * self._config.block_codes
            if len(self._codes) < num_codes:
                return made
            made.append(self._make(num_codes, blocks))

    def finish(self, codes: Sequence[int] = ()) -> Tensor:
        """Take the last codes; give all frames that are left, (frames, mel), in one stretch."""
        self._codes += codes
        if not self._codes:
            return torch.empty(0, self._config.mel_dim, device=self._flow.device)
        return self._make(len(self._codes), -(-len(self._codes) // self._config.block_codes))

    def _make(self, num_codes: int, blocks: int) -> Tensor:
        """Compute the frames of the next codes, and keep the first blocks of them."""
        final = blocks * self._config.block_size
        stretches = [
            Stretch(start=self._start, final=final, before=before) for before in self._kept
        ]
        frames = num_codes * self._config.repeats
        mel = self._flow(self._codes[:num_codes], self._draw(frames), stretches)
        self._kept = [stretch.after for stretch in stretches]
        self._start += final
        del self._codes[: blocks * self._config.block_codes], self._noise[:blocks]
        return mel[:final]

    def _draw(self, frames: int) -> Tensor:
        """Give the noise of the next frames: the same for a frame however often it is asked for."""
        shape = (self._config.block_size, self._config.mel_dim)
        while len(self._noise) * self._config.block_size < frames:
            self._noise.append(torch.randn(shape, generator=self._generator))
        return torch.cat(self._noise)[:frames]


class WaveStream:
    """Mel frames to samples; those of the last frames wait for what follows."""

    def __init__(self, vocoder: BigVGAN) -> None:
        self._vocoder = vocoder
        self._rate = vocoder.config.samples_per_frame
        self._mel: Tensor | None = None  # frames to come and the overlap before them
        self._overlap = 0  # how many of them were told

    def push(self, mel: Tensor) -> Tensor:
        """Take frames (frames, mel); give the samples that are certain now, (samples,)."""
        mel = self._take(mel)
        return self._tell(mel, len(mel) - OVERLAP_FRAMES)

    def finish(self, mel: Tensor) -> Tensor:
        """Take the last frames, if any; give the samples of all that are left, (samples,)."""
        mel = self._take(mel)
        return self._tell(mel, len(mel))

    def _take(self, mel: Tensor) -> Tensor:
        self._mel = mel if self._mel is None else torch.cat((self._mel, mel))
        return self._mel

    def _tell(self, mel: Tensor, until: int) -> Tensor:
        """Give the samples from the first frame not told to frame `until` of those held."""
        if until <= self._overlap:
            return torch.empty(0)
        waveform: Tensor = self._vocoder(mel)
        samples = waveform[self._overlap * self._rate : until * self._rate]
        done = max(until - OVERLAP_FRAMES, 0)
        self._mel, self._overlap = mel[done:], until - done
        return samples
