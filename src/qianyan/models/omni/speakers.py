"""The voices that a Qwen2.5-Omni checkpoint can speak with.

The authors publish them as `spk_dict.pt`, a pickle. It is opened with `weights_only=True`, which
builds tensors, numbers and containers and calls nothing that the file names. `save_speakers` writes
`spk_dict.safetensors` in its place, which is read first where both lie in a folder: tensors
`NAME.cond` and `NAME.ref_mel`, and `NAME.bos_token`, one integer.
"""

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qianyan.errors import CheckpointError, quote
from qianyan.models.omni.dit_layers import DiTConfig

PICKLED_NAME = "spk_dict.pt"
SAFE_NAME = "spk_dict.safetensors"
MAX_BYTES = 2**26
MAX_REFERENCE_FRAMES = 30_000
"""Five minutes of a voice; released ones are seconds long."""
FIELDS = ("cond", "ref_mel", "bos_token")
UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, OSError, EOFError, MemoryError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError, OverflowError),
)
"""What torch raises for damaged files: seen when thousands of them were tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Speaker:
    """One voice.

    Args:
        name: as users say it, "Chelsie" for example.
        cond: the voice as a vector, (enc_emb_dim,).
        ref_mel: mel frames of the voice, (frames, mel).
        bos_token: the token that tells the Talker whose voice follows.
    """

    name: str
    cond: Tensor
    ref_mel: Tensor
    bos_token: int


def load_speakers(folder: str | Path, config: DiTConfig) -> dict[str, Speaker]:
    """Read all voices of a checkpoint folder, on the CPU, by their names.

    Raises CheckpointError when there is no file of voices, it cannot be read, or a voice does not
    fit the speech decoder that `config` describes.
    """
    safe, pickled = Path(folder) / SAFE_NAME, Path(folder) / PICKLED_NAME
    path = safe if safe.is_file() else pickled
    if not path.is_file():
        raise CheckpointError(
            f"{Path(folder).name} has no {PICKLED_NAME}; expected it, as a model that speaks needs "
            "a voice. Download the folder again."
        )
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(
            f"{path.name} has {path.stat().st_size} bytes; expected at most {MAX_BYTES}."
        )
    voices = _read_safe(path) if path == safe else _read_pickled(path)
    if not voices:
        raise CheckpointError(f"{path.name} holds no voice; expected at least one.")
    return {name: _speaker(name, voice, config, path.name) for name, voice in voices.items()}


def save_speakers(folder: str | Path, speakers: Mapping[str, Speaker]) -> None:
    """Write voices as `spk_dict.safetensors` into a checkpoint folder."""
    tensors: dict[str, Tensor] = {}
    for name, speaker in speakers.items():
        tensors[f"{name}.cond"] = speaker.cond.contiguous()
        tensors[f"{name}.ref_mel"] = speaker.ref_mel.contiguous()
        tensors[f"{name}.bos_token"] = torch.tensor(speaker.bos_token)
    save_file(tensors, Path(folder) / SAFE_NAME, metadata={"format": "pt"})


def _read_safe(path: Path) -> dict[str, dict[str, object]]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    voices: dict[str, dict[str, object]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        voices.setdefault(name, {})[part] = tensor
    return voices


def _read_pickled(path: Path) -> dict[str, dict[str, object]]:
    try:
        voices = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(voices, dict) or not all(
        isinstance(name, str) and isinstance(voice, dict) for name, voice in voices.items()
    ):
        raise CheckpointError(
            f"{path.name} is no dictionary of voices; expected one for each, by its name."
        )
    return voices


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path.name} cannot be read ({type(error).__name__}); expected the voices of the model. "
        "Download it again."
    )


def _is_dense(value: object) -> TypeGuard[Tensor]:
    """Tell whether a value is a tensor of plain floats."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.is_floating_point()
        and not value.is_quantized
    )


def _speaker(name: str, voice: Mapping[str, object], config: DiTConfig, file: str) -> Speaker:
    """Check one voice and bring it into shape."""
    cond, ref_mel, bos_token = (voice.get(field) for field in FIELDS)
    if isinstance(bos_token, Tensor) and bos_token.numel() == 1:
        bos_token = bos_token.item()
    if not _is_dense(cond) or not _is_dense(ref_mel) or not isinstance(bos_token, int):
        raise CheckpointError(
            f"The voice {quote(name)} in {file} lacks a part; expected {', '.join(FIELDS)}."
        )
    least, most = config.encoder.least_frames, MAX_REFERENCE_FRAMES
    frames = ref_mel.numel() // config.mel_dim
    fits = cond.numel() == config.enc_emb_dim and ref_mel.shape[-1:] == (config.mel_dim,)
    if not fits or ref_mel.shape[-2:-1] != (frames,) or not least <= frames <= most:
        raise CheckpointError(
            f"The voice {quote(name)} in {file} is {tuple(cond.shape)} and {tuple(ref_mel.shape)}; "
            f"expected (1, {config.enc_emb_dim}) and (1, frames, {config.mel_dim}), "
            f"{least} to {most} frames."
        )
    cond, ref_mel = cond.float().flatten(), ref_mel.float().reshape(frames, -1)
    if not bool(cond.isfinite().all()) or not bool(ref_mel.isfinite().all()):
        raise CheckpointError(
            f"The voice {quote(name)} in {file} holds numbers that are not finite. "
            "Download it again."
        )
    return Speaker(name=name, cond=cond, ref_mel=ref_mel, bos_token=bos_token)
