"""Speech in pieces against the same speech at once, on a decoder with real structure."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qianyan.errors import CheckpointError, InputError
from qianyan.models.omni.bigvgan import OVERLAP_FRAMES
from qianyan.models.omni.speakers import Speaker
from qianyan.models.omni.speech_decoder import SpeechDecoder, WaveStream
from qianyan.models.omni.token2wav import Token2Wav

BLOCK_CODES = 3
BLOCK_SAMPLES = BLOCK_CODES * 480
CODES = torch.randint(0, 191, (93,), generator=torch.Generator().manual_seed(3)).tolist()
TOGETHER = (1, 5)  # blocks of a stretch


def streamed(decoder: SpeechDecoder, codes: list[int], step: int = 1) -> Tensor:
    pieces = [decoder.push(codes[at : at + step]) for at in range(0, len(codes), step)]
    return torch.cat([*pieces, decoder.finish()])


@pytest.fixture(scope="module")
def offline(token2wav: Token2Wav, speaker: Speaker) -> Tensor:
    return SpeechDecoder(token2wav, speaker, seed=1).decode(CODES)


@pytest.fixture(scope="module")
def spoken(token2wav: Token2Wav, speaker: Speaker) -> dict[int, Tensor]:
    """The same speech in pieces, by the number of blocks in a stretch."""
    return {
        count: streamed(
            SpeechDecoder(token2wav, speaker, seed=1, blocks_together=count), CODES, BLOCK_CODES
        )
        for count in TOGETHER
    }


def seams(blocks_together: int) -> list[int]:
    """The samples at which stretches meet."""
    ends, end = [], 1
    while end < len(CODES) // BLOCK_CODES:
        ends.append(end)
        end += min(end, blocks_together)
    return [end * BLOCK_SAMPLES for end in ends]


@pytest.mark.parametrize("blocks_together", TOGETHER)
def test_speech_in_pieces_is_the_speech_of_the_whole(
    blocks_together: int, spoken: dict[int, Tensor], offline: Tensor
) -> None:
    samples = spoken[blocks_together]
    assert samples.shape == offline.shape == (93 * 480,)
    assert 0.1 < offline.std() < offline.abs().max() < 1
    assert (samples - offline).abs().max() < 0.01


def test_away_from_seams_the_difference_is_below_a_thousandth(
    spoken: dict[int, Tensor], offline: Tensor
) -> None:
    """What a stretch does not know concerns its last block, and less and less those before."""
    difference = (spoken[5] - offline).abs()
    is_near = torch.zeros(len(difference), dtype=torch.bool)
    for seam in seams(5):
        is_near[max(seam - 2 * BLOCK_SAMPLES, 0) : seam + BLOCK_SAMPLES] = True
    assert is_near.float().mean() < 0.8
    assert difference[~is_near].max() < 1e-3 < difference[is_near].max()


@pytest.mark.parametrize("blocks_together", TOGETHER)
def test_nothing_clicks_where_stretches_meet(
    blocks_together: int, spoken: dict[int, Tensor], offline: Tensor
) -> None:
    for shift in (0, OVERLAP_FRAMES * 240):  # where frames meet, and where pieces of sound do
        at = torch.tensor([seam - shift for seam in seams(blocks_together) if seam > shift])
        for order in (1, 2):  # jumps, and kinks
            rises, whole = (each.diff(n=order).abs() for each in (spoken[blocks_together], offline))
            near = torch.stack([rises[at + offset] for offset in range(-3, 2)])
            assert near.max() <= whole.max()
            assert near.mean() < 1.3 * whole.mean()


def test_only_what_lies_ahead_is_not_known(quick_token2wav: Token2Wav, speaker: Speaker) -> None:
    """Without a layer that looks ahead, speech in pieces is exactly that of the whole."""
    dit = replace(quick_token2wav.config.dit, look_ahead_layers=())
    blind = Token2Wav(replace(quick_token2wav.config, dit=dit))
    blind.load_state_dict(quick_token2wav.state_dict())
    samples = streamed(SpeechDecoder(blind, speaker, blocks_together=1), CODES[:31])
    whole = SpeechDecoder(blind, speaker).decode(CODES[:31])
    torch.testing.assert_close(samples, whole, atol=2e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [6, 24, 97])
def test_sound_made_in_pieces_is_the_sound_of_all_frames(frames: int, token2wav: Token2Wav) -> None:
    vocoder = token2wav.code2wav_bigvgan_model
    mel = 2 * torch.randn(97, 20, generator=torch.Generator().manual_seed(2)) - 2
    waves = WaveStream(vocoder)
    *others, last = torch.split(mel, frames)
    pieces = [*map(waves.push, others), waves.finish(last)]
    whole = vocoder(mel)
    assert whole.std() > 0.1
    torch.testing.assert_close(torch.cat(pieces), whole, atol=2e-5, rtol=0)


@given(cuts=st.lists(st.integers(0, 24), max_size=4), number=st.integers(0, 24))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_how_codes_are_cut_into_calls_changes_nothing(
    cuts: list[int], number: int, quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    codes = CODES[:number]
    whole = SpeechDecoder(quick_token2wav, speaker, blocks_together=2)
    cut = SpeechDecoder(quick_token2wav, speaker, blocks_together=2)
    bounds = [0, *sorted(min(each, number) for each in cuts), number]
    pieces = [cut.push(codes[a:b]) for a, b in pairwise(bounds)]
    samples = torch.cat([*pieces, cut.finish()])
    assert len(samples) == number * 16
    assert torch.equal(samples, streamed(whole, codes))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_what_fits_into_the_first_stretches_is_exact(
    number: int, quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    decoder = SpeechDecoder(quick_token2wav, speaker, seed=4)
    expected = decoder.decode(CODES[:number])
    assert decoder.push(CODES[:number]).numel() == 0 or number == 6
    if number < 6:
        torch.testing.assert_close(decoder.finish(), expected, atol=1e-5, rtol=0)


def test_the_first_samples_come_as_soon_as_frames_are_certain(
    quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    """Frames of a block are made when the next block's codes are there; sound waits for 20."""
    decoder = SpeechDecoder(quick_token2wav, speaker, blocks_together=1)
    counts = [len(decoder.push([code])) for code in CODES[:24]]
    told = [sum(counts[: n + 1]) for n in range(24)]
    made = [max((n + 1) // 3 - 1, 0) * 6 for n in range(24)]
    assert told == [max(frames - OVERLAP_FRAMES, 0) * 8 for frames in made]
    assert told[-1] > 0


def test_stretches_grow_with_what_was_said(quick_token2wav: Token2Wav, speaker: Speaker) -> None:
    """One block, then as many as were made, and eight at most."""
    decoder = SpeechDecoder(quick_token2wav, speaker)
    counts = [len(decoder.push([code])) for code in CODES]
    at = [index + 1 for index, count in enumerate(counts) if count]  # codes there
    assert at == [3 * (end + 1) for end in (4, 8, 16, 24)]
    told = [sum(counts[:number]) // 8 for number in at]  # frames
    assert told == [6 * end - OVERLAP_FRAMES for end in (4, 8, 16, 24)]


def test_the_same_seed_says_the_same_and_another_something_else(
    quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    first, again, other = (
        SpeechDecoder(quick_token2wav, speaker, seed=seed).decode(CODES[:20]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


def test_decoding_at_once_leaves_the_stream_as_it_is(
    quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    plain, disturbed = (SpeechDecoder(quick_token2wav, speaker) for _ in range(2))
    expected = streamed(plain, CODES[:40], 10)
    pieces = [disturbed.push(CODES[:20])]
    disturbed.decode(CODES[50:70])
    pieces += [disturbed.push(CODES[20:40]), disturbed.finish()]
    assert torch.equal(torch.cat(pieces), expected)


def test_no_codes_are_no_samples(quick_token2wav: Token2Wav, speaker: Speaker) -> None:
    decoder = SpeechDecoder(quick_token2wav, speaker)
    assert decoder.decode([]).shape == decoder.push([]).shape == decoder.finish().shape == (0,)


@pytest.mark.parametrize("code", [-1, 191, 8292])
def test_codes_that_the_decoder_does_not_know_are_refused(
    code: int, quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    decoder = SpeechDecoder(quick_token2wav, speaker)
    for take in (decoder.push, decoder.decode):
        with pytest.raises(InputError, match=rf"the first of them {code}; expected 0 to 190"):
            take([5, code])


def test_a_finished_utterance_takes_no_more(quick_token2wav: Token2Wav, speaker: Speaker) -> None:
    decoder = SpeechDecoder(quick_token2wav, speaker)
    decoder.finish()
    with pytest.raises(InputError, match="finished"):
        decoder.push([1])


def test_who_leaves_breaks_off_the_stretch_that_is_being_made(
    quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    decoder = SpeechDecoder(quick_token2wav, speaker)
    assert decoder.push(CODES[:60]).numel() > 0
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 5:
            decoder.leave()

    hook = quick_token2wav.code2wav_dit_model.register_forward_hook(count)
    try:
        assert decoder.push(CODES[60:]).numel() == 0
        assert decoder.finish().numel() == 0
    finally:
        hook.remove()
    assert passes == 5


def test_samples_that_are_no_numbers_are_never_told(
    quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    weight = quick_token2wav.code2wav_dit_model.proj_out.bias.data
    kept = weight[0].clone()
    weight[0] = float("nan")
    try:
        with pytest.raises(CheckpointError, match="not finite"):
            SpeechDecoder(quick_token2wav, speaker).decode(CODES[:9])
    finally:
        weight[0] = kept


def test_a_stretch_costs_the_same_however_long_the_answer_is(
    quick_token2wav: Token2Wav, speaker: Speaker
) -> None:
    decoder = SpeechDecoder(quick_token2wav, speaker, blocks_together=2)
    computed = 0

    def count(part: Any, given: Any, made: Tensor) -> None:
        nonlocal computed
        computed += made.numel() * part.weight[0].numel()

    kinds = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)
    parts = [part for part in quick_token2wav.modules() if isinstance(part, kinds)]
    hooks = [part.register_forward_hook(count) for part in parts]
    costs = []
    for at in range(0, 90, 6):
        computed = 0
        decoder.push(CODES[at : at + 6])
        costs.append(computed)
    computed = 0
    decoder.decode(CODES[:90])
    for hook in hooks:
        hook.remove()
    assert len(set(costs[5:])) == 1
    assert computed < sum(costs) < 2 * computed
