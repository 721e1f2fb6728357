"""Boxes as tensors (..., x1, y1, x2, y2): how much they share, and which of a heap to keep."""

import math

import torch
from torch import Tensor

OVERLAP_LIMIT = 0.5  # boxes of one kind that overlap more are the same thing


def _shared_areas(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Common area of (..., n, 4) with (..., m, 4), and the areas of either; all broadcast."""
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    both = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(dim=-1) for b in (first, second)]
    return both, areas[0][..., :, None], areas[1][..., None, :]


def box_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of (..., n, 4) with (..., m, 4): (..., n, m)."""
    both, area1, area2 = _shared_areas(first, second)
    return both / (area1 + area2 - both).clamp(min=1e-6)


def suppress(boxes: Tensor, *, cover_limit: float = math.inf) -> Tensor:
    """Choose, among boxes (n, 4) ranked best first, those that are not a better one again.

    A box is another again when their overlap is more than OVERLAP_LIMIT, or more than
    `cover_limit` of the smaller lies in the larger.
    """
    both, area1, area2 = _shared_areas(boxes, boxes)
    overlap = both / (area1 + area2 - both).clamp(min=1e-6)
    cover = both / torch.minimum(area1, area2).clamp(min=1e-6)
    is_same = ((overlap > OVERLAP_LIMIT) | (cover > cover_limit)).cpu().numpy()
    kept: list[int] = []
    for index in range(len(boxes)):
        if not is_same[index, kept].any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)
