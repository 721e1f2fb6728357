"""A voice from a few seconds of it: the ECAPA-TDNN that Qwen2.5-Omni's speech decoder listens with.

Source: ECAPA-TDNN (arXiv 2005.07143), as trained with the decoder. Signals are
(batch, channels, frames); convolutions keep the number of frames and mirror the signal at its ends.

Against the paper:
- no batch norm;
- the channels of a block are cut in as few parts as `enc_res2net_scale` says, two when released;
- the pooled statistics become `enc_dim` numbers without a norm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from qianyan.errors import ConfigError
from qianyan.models.config import MAX_LAYERS, check_positive_integer, require_positive_integers

SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class SpeakerEncoderConfig:
    """Hyper-parameters, named as in config.json; the defaults are those of the released models."""

    mel_dim: int = 80
    enc_dim: int = 128
    enc_channels: tuple[int, ...] = (256, 256, 256, 256, 768)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 64
    enc_res2net_scale: int = 2
    enc_se_channels: int = 64

    def __post_init__(self) -> None:
        names = ("mel_dim", "enc_dim", "enc_attention_channels", "enc_res2net_scale")
        require_positive_integers(self, *names, "enc_se_channels")
        for name in ("enc_channels", "enc_kernel_sizes", "enc_dilations"):
            numbers = getattr(self, name)
            if not isinstance(numbers, tuple) or not 3 <= len(numbers) <= MAX_LAYERS:
                raise ConfigError(f"{name} has to list 3 to {MAX_LAYERS} layers; it does not.")
            for number in numbers:
                check_positive_integer(name, number)
        first, *_, last = self.enc_channels
        between = set(self.enc_channels[:-1])
        lengths = {len(self.enc_channels), len(self.enc_kernel_sizes), len(self.enc_dilations)}
        if len(lengths) > 1 or between != {first} or last != first * (len(self.enc_channels) - 2):
            raise ConfigError(
                "enc_channels, enc_kernel_sizes and enc_dilations do not describe one encoder; "
                "expected lists of one length, equal channels, and their sum over the inner layers "
                "as the last."
            )
        if first % self.enc_res2net_scale or not all(size % 2 for size in self.enc_kernel_sizes):
            raise ConfigError(
                "enc_channels or enc_kernel_sizes cannot be used; expected multiples of "
                f"enc_res2net_scale ({self.enc_res2net_scale}), and odd sizes."
            )

    @property
    def least_frames(self) -> int:
        """Fewest mel frames of a voice: those that the widest convolution mirrors, and one more."""
        sizes = zip(self.enc_kernel_sizes, self.enc_dilations, strict=True)
        return max((size - 1) * dilation // 2 for size, dilation in sizes) + 1


def convolution(into: int, out: int, size: int = 1, dilation: int = 1) -> nn.Conv1d:
    """Make a convolution that keeps the number of frames."""
    padding = (size - 1) * dilation // 2
    return nn.Conv1d(
        into,
        out,
        size,
        dilation=dilation,
        padding=padding,
        padding_mode="reflect" if padding else "zeros",  # nothing to mirror
    )


class TimeDelay(nn.Module):
    """A dilated convolution and ReLU (TDNN)."""

    def __init__(self, into: int, out: int, size: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = convolution(into, out, size, dilation)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (batch, into, frames) to (batch, out, frames)."""
        return relu(self.conv(signal))


class Res2Net(nn.Module):
    """Parts of the channels, each convolved together with the outcome of the part before it."""

    def __init__(self, channels: int, scale: int, size: int, dilation: int) -> None:
        super().__init__()
        self.scale = scale
        self.blocks = nn.ModuleList(
            TimeDelay(channels // scale, channels // scale, size, dilation)
            for _ in range(scale - 1)
        )

    def forward(self, signal: Tensor) -> Tensor:
        """Map (batch, channels, frames) to the same shape; the first part passes as it is."""
        first, *rest = signal.chunk(self.scale, dim=1)
        outcomes = [first]
        for index, part in enumerate(rest):
            outcomes.append(self.blocks[index](part if index == 0 else part + outcomes[-1]))
        return torch.cat(outcomes, dim=1)


class SqueezeExcitation(nn.Module):
    """Weigh the channels by what their means over time say."""

    def __init__(self, channels: int, se_channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, se_channels)
        self.conv2 = convolution(se_channels, channels)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (batch, channels, frames) to the same shape."""
        means = signal.mean(dim=2, keepdim=True)  # (batch, channels, 1)
        weights: Tensor = self.conv2(relu(self.conv1(means))).sigmoid()
        return signal * weights


class SqueezeExcitationRes2Net(nn.Module):
    """The block of the paper's figure 2, added to what it was given."""

    def __init__(self, config: SpeakerEncoderConfig, layer: int) -> None:
        super().__init__()
        channels = config.enc_channels[layer]
        size, dilation = config.enc_kernel_sizes[layer], config.enc_dilations[layer]
        self.tdnn1 = TimeDelay(channels, channels)
        self.res2net_block = Res2Net(channels, config.enc_res2net_scale, size, dilation)
        self.tdnn2 = TimeDelay(channels, channels)
        self.se_block = SqueezeExcitation(channels, config.enc_se_channels)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (batch, channels, frames) to the same shape."""
        out: Tensor = self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(signal))))
        return out + signal


class AttentivePooling(nn.Module):
    """Means and deviations over time, each channel with weights of its own."""

    def __init__(self, channels: int, attention_channels: int) -> None:
        super().__init__()
        self.tdnn = TimeDelay(channels * 3, attention_channels)
        self.conv = convolution(attention_channels, channels)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (batch, channels, frames) to (batch, 2*channels, 1)."""
        even = torch.full_like(signal[:1, :1], 1 / signal.shape[2])
        whole = torch.cat(statistics(signal, even), dim=1).expand(-1, -1, signal.shape[2])
        scores = self.conv(self.tdnn(torch.cat([signal, whole], dim=1)).tanh())
        return torch.cat(statistics(signal, scores.softmax(dim=2)), dim=1)


def statistics(signal: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and standard deviation over time, (batch, channels, 1) each."""
    mean = (weights * signal).sum(dim=2, keepdim=True)
    variance = (weights * (signal - mean).square()).sum(dim=2, keepdim=True)
    return mean, variance.clamp(min=SMALLEST_VARIANCE).sqrt()


class SpeakerEncoder(nn.Module):
    """Mel frames of a voice to one vector."""

    def __init__(self, config: SpeakerEncoderConfig) -> None:
        super().__init__()
        channels, sizes, dilations = (
            config.enc_channels,
            config.enc_kernel_sizes,
            config.enc_dilations,
        )
        inner = range(1, len(channels) - 1)
        self.blocks = nn.ModuleList(
            [
                TimeDelay(config.mel_dim, channels[0], sizes[0], dilations[0]),
                *(SqueezeExcitationRes2Net(config, layer) for layer in inner),
            ]
        )
        self.mfa = TimeDelay(channels[-1], channels[-1], sizes[-1], dilations[-1])
        self.asp = AttentivePooling(channels[-1], config.enc_attention_channels)
        self.fc = convolution(channels[-1] * 2, config.enc_dim)

    def forward(self, mel: Tensor) -> Tensor:
        """Map (batch, frames, mel) to (batch, enc_dim)."""
        signal = mel.transpose(1, 2)  # (batch, mel, frames)
        outcomes = []
        for block in self.blocks:
            signal = block(signal)
            outcomes.append(signal)
        gathered = self.mfa(torch.cat(outcomes[1:], dim=1))
        out: Tensor = self.fc(self.asp(gathered)).squeeze(2)  # (batch, enc_dim)
        return out
