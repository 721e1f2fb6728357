"""BigVGAN: from mel frames to a waveform at 24 kHz.

Source: BigVGAN (arXiv 2206.04658). Signals are (channels, samples), without a batch axis; every
stage makes more samples of half as many channels. Filters are computed, not loaded.

A sample depends on the mel frames around it, `OVERLAP_FRAMES` to either side, so a long waveform
can be made in pieces.

Against the paper's code: mel frames are brought to decibels and from there to -1 ... 1 first; the
last convolution has no bias, and a clamp follows it in place of tanh.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from qianyan.errors import ConfigError
from qianyan.models.config import (
    check_positive_integer,
    require_positive_integers,
)

SAMPLE_RATE_HZ = 24_000  # fixed by the training; no config.json states it
OVERLAP_FRAMES = 20
"""Frames on either side of a piece that are computed with it and thrown away, as in the authors'
server. What lies further away changes no sample by more than 1e-5."""
FLOOR_DECIBELS = -115.0
REFERENCE_DECIBELS = 20.0
TAPS = 12  # of the filters around each activation
MAX_STAGES = 16
DIVISION_GUARD = 1e-9


@dataclass(frozen=True, kw_only=True)
class BigVGANConfig:
    """Hyper-parameters, named as in config.json; the defaults are those of the released models."""

    mel_dim: int = 80
    upsample_initial_channel: int = 1536
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    upsample_rates: tuple[int, ...] = (5, 3, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 7, 4, 4, 4, 4)

    def __post_init__(self) -> None:
        require_positive_integers(self, "mel_dim", "upsample_initial_channel")
        dilations = self.resblock_dilation_sizes
        if not isinstance(dilations, tuple) or not all(isinstance(row, tuple) for row in dilations):
            raise ConfigError("resblock_dilation_sizes is no list of lists of integers.")
        numbers = {
            "resblock_kernel_sizes": self.resblock_kernel_sizes,
            "upsample_rates": self.upsample_rates,
            "upsample_kernel_sizes": self.upsample_kernel_sizes,
            "resblock_dilation_sizes": sum(dilations, ()),
        }
        for name, listed in numbers.items():
            if not isinstance(listed, tuple) or not listed:
                raise ConfigError(f"{name} is no list of integers; expected at least one.")
            for number in listed:
                check_positive_integer(name, number)
        self._require_agreement()

    def _require_agreement(self) -> None:
        stages = list(zip(self.upsample_rates, self.upsample_kernel_sizes, strict=False))
        if (
            len(self.upsample_rates) != len(self.upsample_kernel_sizes)
            or len(stages) > MAX_STAGES
            or any(size < rate or (size - rate) % 2 for rate, size in stages)
        ):
            raise ConfigError(
                "upsample_rates and upsample_kernel_sizes do not agree; expected as many of both, "
                f"{MAX_STAGES} at most, each size its rate plus an even number."
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes) or not all(
            size % 2 for size in self.resblock_kernel_sizes
        ):
            raise ConfigError(
                "resblock_kernel_sizes and resblock_dilation_sizes do not agree; expected odd "
                "sizes, and a list of dilations for each."
            )
        if self.upsample_initial_channel % 2 ** len(stages):
            raise ConfigError(
                f"upsample_initial_channel is {self.upsample_initial_channel}; expected a multiple "
                f"of {2 ** len(stages)}, as it is halved {len(stages)} times."
            )

    @property
    def samples_per_frame(self) -> int:
        """Samples that one mel frame becomes."""
        return math.prod(self.upsample_rates)

    @property
    def channels(self) -> list[int]:
        """Channels before the first stage and after each."""
        return [self.upsample_initial_channel >> n for n in range(len(self.upsample_rates) + 1)]


@lru_cache(maxsize=1)
def low_pass() -> tuple[float, ...]:
    """Give the symmetric filter that removes the upper half of a band, its sum 1.

    A sinc under Kaiser's window, the window's shape from his formula of the attenuation.
    """
    cutoff, half_width = 0.25, 0.3  # in cycles a sample, at twice the signal's rate
    attenuation = 2.285 * (TAPS / 2 - 1) * math.pi * 4 * half_width + 7.95
    beta = 0.1102 * (attenuation - 8.7)  # for more than 50 dB
    window = torch.kaiser_window(TAPS, periodic=False, beta=beta, dtype=torch.float32)
    taps = window * torch.sinc(2 * cutoff * (torch.arange(TAPS) - (TAPS - 1) / 2))
    return tuple((taps / taps.sum()).tolist())


class SnakeBeta(nn.Module):
    """x + sin²(αx)/β, for each channel; the parameters are logarithms (BigVGAN, section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, signal: Tensor) -> Tensor:
        """Map (channels, samples) to the same shape."""
        frequency = self.alpha.exp().unsqueeze(1)
        height = 1 / (self.beta.exp().unsqueeze(1) + DIVISION_GUARD)
        return torch.addcmul(signal, (signal * frequency).sin_().square_(), height)


class Activation(nn.Module):
    """SnakeBeta at twice the rate, so that its overtones do not fold back into the band.

    The samples of the doubled rate stay two signals, those of even and of odd places: filters then
    are sums of shifted signals, ten times faster on processors than convolutions of one channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (channels, samples) to the same shape; a signal is continued by its end values."""
        samples, reach = signal.shape[1], TAPS // 4
        of_even, of_odd = low_pass()[0::2], low_pass()[1::2]
        longer = continued(signal, (signal[:, :1], signal[:, -1:]), (reach, reach))
        even = self.act(2 * shifted_sum(longer, of_even, samples))
        odd = self.act(2 * shifted_sum(longer[:, 1:], of_odd, samples))
        ends = even[:, :1], odd[:, -1:]  # of the doubled rate
        even = continued(even, ends, (reach - 1, reach))
        odd = continued(odd, ends, (reach, reach - 1))
        return shifted_sum(even, of_odd, samples).add_(shifted_sum(odd, of_even, samples))


def continued(signal: Tensor, ends: tuple[Tensor, Tensor], counts: tuple[int, int]) -> Tensor:
    """Put so many of the first end's samples before (channels, samples), and the last's behind."""
    before, behind = (end.expand(-1, count) for end, count in zip(ends, counts, strict=True))
    return torch.cat((before, signal, behind), dim=1)


def shifted_sum(signal: Tensor, weights: Sequence[float], samples: int) -> Tensor:
    """Weigh so many samples (channels, samples) and those that follow each, one weight a shift."""
    total = signal[:, :samples] * weights[0]
    for shift, weight in enumerate(weights[1:], start=1):
        total.add_(signal[:, shift : shift + samples], alpha=weight)
    return total


class AMPBlock(nn.Module):
    """Dilated convolutions between periodic activations, each pair added to what it was given."""

    def __init__(self, channels: int, size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(
                channels, channels, size, dilation=dilation, padding=(size - 1) * dilation // 2
            )
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, size, padding=(size - 1) // 2) for _ in dilations
        )
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(dilations)))

    def forward(self, signal: Tensor) -> Tensor:
        """Map (channels, samples) to the same shape."""
        for index, (dilated, plain) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            inner = dilated(self.activations[2 * index](signal))
            signal = signal + plain(self.activations[2 * index + 1](inner))
        return signal


class BigVGAN(nn.Module):
    """Mel frames to samples, `samples_per_frame` for each."""

    def __init__(self, config: BigVGANConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_pre = nn.Conv1d(config.mel_dim, config.upsample_initial_channel, 7, padding=3)
        rises = zip(
            pairwise(config.channels),
            config.upsample_rates,
            config.upsample_kernel_sizes,
            strict=True,
        )
        self.ups = nn.ModuleList(  # of one layer each: so are the checkpoint's names
            nn.ModuleList([nn.ConvTranspose1d(into, out, size, rate, padding=(size - rate) // 2)])
            for (into, out), rate, size in rises
        )
        kernels = list(
            zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        self.num_kernels = len(kernels)
        self.resblocks = nn.ModuleList(
            AMPBlock(channels, size, dilations)
            for channels in config.channels[1:]
            for size, dilations in kernels
        )
        self.activation_post = Activation(config.channels[-1])
        self.conv_post = nn.Conv1d(config.channels[-1], 1, 7, padding=3, bias=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Map mel frames, natural logarithms (frames, mel), to samples of -1 ... 1, (samples,)."""
        signal = self.conv_pre(normalised(mel).t())  # (channels, frames)
        for stage, ups in enumerate(self.ups):
            assert isinstance(ups, nn.ModuleList)
            raised = ups[0](signal)
            first = stage * self.num_kernels
            blocks = self.resblocks[first : first + self.num_kernels]
            signal = sum(block(raised) for block in blocks) / self.num_kernels
        samples: Tensor = self.conv_post(self.activation_post(signal))  # (1, samples)
        return samples.clamp(-1, 1).squeeze(0)


def normalised(mel: Tensor) -> Tensor:
    """Bring logarithms of amplitudes to decibels, and those to -1 ... 1."""
    decibels = mel * (20 / math.log(10)) - REFERENCE_DECIBELS
    return (1 - 2 * decibels / FLOOR_DECIBELS).clamp(-1, 1)
