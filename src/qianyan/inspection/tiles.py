"""A detector looks at large photos whole and once more in parts, where small things are larger.

Slicing (SAHI, arXiv 2202.06934): N x N parts that overlap. What a part cuts off at an edge inside
the photo is left to the neighbour, or to the whole; of boxes of one kind that mean the same thing
the surest stays, as within one look. A photo so small that its parts would be shown hardly larger
than they are is looked at whole only.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from qianyan.models.boxes import suppress
from qianyan.models.detector import COVER_LIMITS, KINDS, Proposal

Propose = Callable[[NDArray[np.uint8]], Sequence[Proposal]]
Region = tuple[int, int, int, int]

OVERLAP = 0.2  # of a part's side; what is smaller than that lies whole in one of two neighbours
CUT_PX = 2.0  # a box this near to an edge inside the photo is taken for cut off
MOST_TILES = 4  # along each side


def tile_regions(photo_wh: tuple[int, int], num_tiles: int, *, seen_side: int) -> list[Region]:
    """Divide a photo into `num_tiles` x `num_tiles` overlapping parts, row by row.

    A side of at most `seen_side`, the detector's own, is not divided: parts would show nothing new.
    """
    if num_tiles == 1 or max(photo_wh) <= seen_side:
        return []
    columns, rows = (_spans(side, num_tiles if side > seen_side else 1) for side in photo_wh)
    return [(x1, y1, x2, y2) for (y1, y2), (x1, x2) in product(rows, columns)]


def _spans(side: int, count: int) -> list[tuple[int, int]]:
    length = side / (count - (count - 1) * OVERLAP)
    starts = [index * length * (1 - OVERLAP) for index in range(count)]
    return [(round(start), min(round(start + length), side)) for start in starts]


def propose_in_tiles(
    propose: Propose, rgb: NDArray[np.uint8], num_tiles: int, *, seen_side: int
) -> list[Proposal]:
    """Propose boxes in the whole photo and in its parts, best first; boxes in pixels of `rgb`."""
    height, width = rgb.shape[:2]
    found = list(propose(rgb))
    regions = tile_regions((width, height), num_tiles, seen_side=seen_side)
    for region in regions:
        x1, y1, x2, y2 = region
        found += [
            moved
            for one in propose(np.ascontiguousarray(rgb[y1:y2, x1:x2]))
            if not _is_cut(moved := _moved(one, x1, y1), region, (width, height))
        ]
    return _merge(found) if regions else found


def _moved(one: Proposal, x: int, y: int) -> Proposal:
    x1, y1, x2, y2 = one.box
    return Proposal(one.kind, (x1 + x, y1 + y, x2 + x, y2 + y), one.score)


def _is_cut(one: Proposal, region: Region, photo_wh: tuple[int, int]) -> bool:
    """Say whether a box ends where its part does and the photo does not."""
    x1, y1, x2, y2 = one.box
    return (
        (region[0] > 0 and x1 < region[0] + CUT_PX)
        or (region[1] > 0 and y1 < region[1] + CUT_PX)
        or (region[2] < photo_wh[0] and x2 > region[2] - CUT_PX)
        or (region[3] < photo_wh[1] and y2 > region[3] - CUT_PX)
    )


def _merge(found: Sequence[Proposal]) -> list[Proposal]:
    """Keep the surest of boxes of one kind that mean the same thing."""
    ranked = sorted(found, key=lambda one: -one.score)
    kept: list[Proposal] = []
    for kind in KINDS:
        mine = [one for one in ranked if one.kind == kind]
        if mine:
            boxes = torch.tensor([one.box for one in mine])
            chosen = suppress(boxes, cover_limit=COVER_LIMITS[kind])
            kept += [mine[index] for index in chosen.tolist()]
    return sorted(kept, key=lambda one: -one.score)
