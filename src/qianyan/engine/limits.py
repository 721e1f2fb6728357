"""What this machine can do at most: bytes read each second, and matrix operations by format.

Measured with torch's own kernels at the number of threads that torch uses, because the engine
computes with them. Every figure is a median of `REPEATS`. Sizes grow until a pass takes long
enough to be timed; formats without fast kernels are measured at the size at which they get slow.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

REPEATS = 5
READ_BYTES = 2**29
"""Larger than processors' caches, small beside their memory."""
DEVICE_READS = 16
"""Passes that an accelerator is given at a time: one takes it hardly longer than being asked."""
SIDES = (256, 512, 1024, 2048)
"""Sides of the square matrices that are tried; accelerators go on to `LARGE_SIDES`."""
LARGE_SIDES = (4096, 8192)
LONG_PASS_S = 0.25
FORMATS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """A machine and its measured limits.

    `matrix_rates` are operations a second by format, None where torch has no such product here.
    """

    processor: str
    cores: int
    threads: int
    memory_bytes: int | None
    device: str
    torch: str
    read_bytes_per_s: float
    matrix_rates: dict[str, float | None]


def measure_limits(device: str = "cpu") -> MachineLimits:
    """Measure the machine; takes a few seconds."""
    return MachineLimits(
        processor=_processor_name(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_bytes=_memory_bytes(),
        device=device,
        torch=torch.__version__,
        read_bytes_per_s=_read_rate(device),
        matrix_rates={name: _matrix_rate(name, device) for name in FORMATS},
    )


def synchronise(device: str) -> None:
    """Wait until an accelerator has done what it was told."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def _read_rate(device: str) -> float:
    numbers = torch.ones(READ_BYTES // 4, device=device)
    reads = 1 if torch.device(device).type == "cpu" else DEVICE_READS
    seconds = _seconds(lambda: [numbers.sum() for _ in range(reads)], device)
    return reads * READ_BYTES / seconds


def _matrix_rate(name: str, device: str) -> float | None:
    """Give operations a second at the largest size that is not slow; None without a kernel."""
    rate = None
    sides = SIDES if torch.device(device).type == "cpu" else SIDES + LARGE_SIDES
    for side in sides:
        try:
            seconds = _seconds(_product(name, side, device), device)
        except (RuntimeError, NotImplementedError, AttributeError):
            break
        rate = 2 * side**3 / seconds
        if 8 * seconds > LONG_PASS_S:  # twice the side is eight times the work
            break
    return rate


def _product(name: str, side: int, device: str) -> Callable[[], Tensor]:
    if name == "int8":
        left, right = (
            torch.randint(-100, 100, (side, side), dtype=torch.int8, device=device)
            for _ in range(2)
        )
        return lambda: torch._int_mm(left, right)  # noqa: SLF001  (its only public form is eager quantisation)
    dtype = getattr(torch, name)
    hidden, weight = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: torch.nn.functional.linear(hidden, weight)


@torch.inference_mode()
def _seconds(run: Callable[[], object], device: str) -> float:
    """Give the median time of a pass, after one that sets kernels up."""
    times = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
