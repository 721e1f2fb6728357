"""How much memory is free, and how many tokens' keys and values a part of it holds.

On Linux the machine's word is MemAvailable (proc(5)), and a control group's is its limit less what
is in use, for the group and every group around it (cgroup v2 memory.max, v1
memory.limit_in_bytes). Pages of files that were not used lately make way, so they count as free.
CUDA devices tell for themselves. Elsewhere nothing is known, and a default stands in.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qianyan.engine.costs import kept_bytes_per_token
from qianyan.engine.options import Lengths
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import CapacityError
from qianyan.models.registry import Model

CACHE_SHARE = 0.5
"""Of the memory that is free behind the weights; passes and the rest of the program need some."""
MAX_CACHE_TOKENS = 1_048_576
"""Largest cache that is chosen unasked."""
UNKNOWN_CACHE_TOKENS = 32_768
"""Where nobody tells how much memory is free."""
LEAST_CACHE_TOKENS = 2048
"""A photo, a question and an answer; with less a model is of no use."""


@dataclass(frozen=True, kw_only=True)
class MemoryFiles:
    """Where Linux tells about memory."""

    meminfo: Path = Path("/proc/meminfo")
    own_groups: Path = Path("/proc/self/cgroup")
    groups: Path = Path("/sys/fs/cgroup")


def find_free_bytes(device: torch.device, files: MemoryFiles | None = None) -> int | None:
    """Tell how many bytes may still be taken on a device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    files = files or MemoryFiles()
    rooms = [room for room in (_available(files.meminfo), *_group_rooms(files)) if room is not None]
    return max(0, min(rooms)) if rooms else None


def fit_cache(
    config: EngineConfig,
    model: Model,
    device: torch.device,
    files: MemoryFiles | None = None,
    *,
    speech_bytes: int = 0,
) -> EngineConfig:
    """Fill in `max_cache_tokens` where it is open, from what is free now that the model is loaded.

    `speech_bytes` are left for what speaks and is loaded later. Never more than all requests could
    use, nor than MAX_CACHE_TOKENS. Raises CapacityError where not even one useful request would
    fit.
    """
    if config.max_cache_tokens is not None:
        return config
    length = config.max_model_len or model.max_position_embeddings
    usable = min(length * config.max_num_requests, MAX_CACHE_TOKENS)
    free = find_free_bytes(device, files)
    if free is None:
        return replace(config, max_cache_tokens=min(usable, UNKNOWN_CACHE_TOKENS))
    per_token = kept_bytes_per_token(model)
    num_tokens = int(max(0, free - speech_bytes) * CACHE_SHARE) // per_token
    least = min(length, LEAST_CACHE_TOKENS)
    if num_tokens < least:
        raise CapacityError(
            f"{free >> 20} MiB of memory are free beside the weights; expected at least "
            f"{_mebibytes(least * per_token / CACHE_SHARE + speech_bytes)} MiB, for passes and the "
            f"keys and values of {least} tokens{_for_speech(speech_bytes)}. Close other programs, "
            'take a smaller model or quantize="int8", or set max_cache_tokens yourself.'
        )
    return replace(config, max_cache_tokens=min(num_tokens, usable))


def to_lengths(config: EngineConfig, model: Model) -> Lengths:
    """Say what a request has to fit into, under a config whose cache has a size."""
    assert config.max_cache_tokens is not None
    return Lengths(
        max_model_len=config.max_model_len or model.max_position_embeddings,
        max_cache_tokens=config.max_cache_tokens,
    )


def _for_speech(num_bytes: int) -> str:
    if not num_bytes:
        return ""
    return f", and {_mebibytes(num_bytes)} MiB for speech (none with --no-speech, use_speech False)"


def _mebibytes(num_bytes: float) -> int:
    return -int(-num_bytes // 2**20)


def _available(meminfo: Path) -> int | None:
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _group_rooms(files: MemoryFiles) -> Iterator[int]:
    """Give what each memory limit that holds for this process leaves, innermost first."""
    for line in _lines(files.own_groups):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = files.groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = files.groups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be the host's: what is not there is passed over.
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            room = _room(folder, *names)
            if room is not None:
                yield room
            if folder == root:
                break


def _room(folder: Path, limit_name: str, used_name: str, idle_name: str) -> int | None:
    limit, used = (next(iter(_lines(folder / name)), "max") for name in (limit_name, used_name))
    if not limit.isdecimal() or not used.isdecimal():  # "max" is no limit
        return None
    stat = (line.split() for line in _lines(folder / "memory.stat"))
    idle = next((int(words[1]) for words in stat if words[:1] == [idle_name]), 0)
    return int(limit) - int(used) + idle


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except OSError:
        return []
