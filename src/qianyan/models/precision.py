"""Which number format to compute in where none was asked for.

A checkpoint's own, with one exception: processors have no fast float16 matrices. A prefill in
float16 takes about ten times as long as in bfloat16 and four times as long as in float32 (torch
2.13, a processor with avx512_bf16), so float16 checkpoints compute in one of these there.
"""

from collections import Counter
from collections.abc import Iterable

import torch

BFLOAT16_FEATURES = ("avx512_bf16", "amx_bf16")


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(feature) for feature in BFLOAT16_FEATURES)


def choose_dtype(
    stored: Iterable[torch.dtype], *, device: str | torch.device
) -> torch.dtype | None:
    """Choose for a checkpoint whose tensors are stored so; None leaves each as it is."""
    counts = Counter(dtype for dtype in stored if dtype.is_floating_point)
    if torch.device(device).type != "cpu" or not counts:
        return None
    if counts.most_common(1)[0][0] != torch.float16:
        return None
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32
