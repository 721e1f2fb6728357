"""Samples as others take them: 16-bit PCM, bare or in a WAV file, one channel.

A sample of 1.0 is 32767. What is beyond -1 ... 1 is clipped to it, and nothing else is changed:
no dither, no gain.
"""

import wave
from io import BytesIO

import torch
from torch import Tensor

from qianyan.models.omni.bigvgan import SAMPLE_RATE_HZ

FULL_SCALE = 32767
SAMPLE_BYTES = 2


def to_pcm16(samples: Tensor) -> bytes:
    """Write finite float samples (samples,) as little-endian 16-bit integers, nearest to each."""
    whole = (samples.clamp(-1, 1) * FULL_SCALE).round().to(torch.int16)
    return whole.cpu().numpy().astype("<i2").tobytes()


def to_wav(pcm: bytes, *, rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """Put 16-bit PCM, `to_pcm16` or several of them joined, into a WAV file."""
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(SAMPLE_BYTES)
        written.setframerate(rate_hz)
        written.writeframes(pcm)
    return file.getvalue()
