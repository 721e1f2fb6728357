"""Which frames a velocity depends on, and stretches that continue each other."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qianyan.models.omni.dit import DiT, Modulation
from qianyan.models.omni.dit_layers import Stretch
from qianyan.models.omni.speakers import Speaker
from qianyan.models.omni.token2wav import Token2Wav

BLOCK = 6  # frames


@pytest.fixture(scope="module")
def dit(token2wav: Token2Wav) -> DiT:
    return token2wav.code2wav_dit_model


@pytest.fixture(scope="module")
def modulation(dit: DiT) -> Modulation:
    with torch.no_grad():
        return dit.modulate(torch.tensor([0.4]))[0]


def inputs(dit: DiT, speaker: Speaker, blocks: int) -> tuple[Tensor, Tensor]:
    """Noisy frames of some blocks, and what is known of them."""
    generator = torch.Generator().manual_seed(blocks)
    codes = torch.randint(0, 190, (blocks * BLOCK // 2,), generator=generator)
    known = dit.know(codes, dit.listen(speaker.ref_mel, speaker.cond))
    return torch.randn(blocks * BLOCK, 20, generator=generator), known


@torch.no_grad()
def test_a_velocity_sees_two_blocks_back_and_one_ahead(
    dit: DiT, speaker: Speaker, modulation: Modulation
) -> None:
    """The receptive field of the paper: four blocks, its own included."""
    noisy, known = inputs(dit, speaker, 7)
    before = dit(noisy, known, modulation, Stretch())
    seen = []
    for block in range(7):
        changed = noisy.clone()
        changed[block * BLOCK : (block + 1) * BLOCK] += 1
        after = dit(changed, known, modulation, Stretch())
        change = (after - before).abs()[:, 3 * BLOCK : 4 * BLOCK].amax(dim=(0, 2))  # of block 3
        seen.append((change > 1e-6).tolist())
    assert seen == [[1 <= block <= 4] * BLOCK for block in range(7)]


@torch.no_grad()
def test_codes_and_voice_reach_the_first_half_only(
    dit: DiT, speaker: Speaker, modulation: Modulation
) -> None:
    noisy, known = inputs(dit, speaker, 2)
    other = dit.know(torch.arange(6), dit.listen(speaker.ref_mel.flip(0) + 1, speaker.cond.flip(0)))
    first, second = (dit(noisy, each, modulation, Stretch()) for each in (known, other))
    assert (first[0] - second[0]).abs().max() > 0.1
    assert torch.equal(first[1], second[1])


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[1], [3], [1, 2, 3, 4, 5], [2, 4], [5]])
def test_stretches_continue_each_other(
    cuts: list[int], dit: DiT, speaker: Speaker, modulation: Modulation
) -> None:
    """Each computes one block more than it ends with, and knows the past by what was kept."""
    noisy, known = inputs(dit, speaker, 6)
    whole = dit(noisy, known, modulation, Stretch())
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    pieces = []
    for first, last in zip([0, *cuts], [*cuts, 6], strict=True):
        rows = slice(first * BLOCK, (last + 1) * BLOCK)
        final = (last - first) * BLOCK
        stretch = Stretch(start=first * BLOCK, final=final, before=kept)
        pieces.append(dit(noisy[rows], known[:, rows], modulation, stretch)[:, :final])
        kept = stretch.after
        assert sorted(kept) == [0, 2]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_only_distances_between_frames_count(
    dit: DiT, speaker: Speaker, modulation: Modulation
) -> None:
    noisy, known = inputs(dit, speaker, 3)
    here, there = (
        dit(noisy, known, modulation, Stretch(start=start)) for start in (0, 1000 * BLOCK)
    )
    torch.testing.assert_close(here, there, atol=1e-3, rtol=0)


def test_blocks_ahead_are_counted_among_the_layers_that_exist(dit: DiT) -> None:
    for layers, expected in (((), 0), ((1,), 1), ((1, 3, 3), 2), ((9,), 0)):
        assert replace(dit.config, look_ahead_layers=layers).blocks_ahead == expected
