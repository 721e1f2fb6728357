"""Samples as bytes and as files."""

import wave
from io import BytesIO

import av
import numpy as np
import pytest
import torch

from qianyan.models.omni.pcm import to_pcm16, to_wav


def test_full_scale_is_kept_and_what_is_beyond_is_clipped() -> None:
    samples = torch.tensor([0.0, 1.0, -1.0, 1.5, -7.0, 0.5, -0.5, 1.4 / 32767, 1.6 / 32767])
    values = np.frombuffer(to_pcm16(samples), "<i2").tolist()
    assert values == [0, 32767, -32767, 32767, -32767, 16384, -16384, 1, 2]


def test_pieces_joined_are_the_whole() -> None:
    samples = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert b"".join(map(to_pcm16, samples.split(37))) == to_pcm16(samples)
    assert to_pcm16(torch.empty(0)) == b""


@pytest.mark.parametrize("number", [0, 1, 24_000])
def test_a_wav_file_says_what_it_holds(number: int) -> None:
    pcm = to_pcm16(torch.sin(torch.arange(number) * 0.1))
    with wave.open(BytesIO(to_wav(pcm))) as file:
        assert file.getparams()[:4] == (1, 2, 24_000, number)
        assert file.readframes(number) == pcm


def test_others_read_the_wav_file() -> None:
    pcm = to_pcm16(torch.sin(torch.arange(2400) * 0.1))
    with av.open(BytesIO(to_wav(pcm))) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    assert np.concatenate(frames, axis=1).astype("<i2").tobytes() == pcm
