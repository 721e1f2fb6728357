"""What the detector is trained to say: which cells own which box, and how wrong they are.

Task-aligned assignment (arXiv 2108.07755): of the cells inside a labelled box, those that already
score and fit best own it, and their target score is how well they fit. Scores are trained with
binary cross-entropy on every kind that was labelled in the picture, boxes with the CIoU distance
(arXiv 1911.08287), the whole-picture output with binary cross-entropy as well.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from qianyan.models.boxes import box_overlap
from qianyan.models.detector import RawPrediction

OWNERS = 10  # cells that may own one box
SCORE_POWER, FIT_POWER = 0.5, 4.0
SMALLEST_REACH = 7.0  # pixels from a tiny box's centre within which a cell may own it
KIND_WEIGHT, BOX_WEIGHT, SCENE_WEIGHT = 0.6, 3.0, 0.25


@dataclass(frozen=True)
class Targets:
    """Labels of a batch, padded to the most boxes in one picture.

    `boxes` (batch, most, 4) in pixels of the square; `kinds` (batch, most) with -1 for padding;
    `labelled` (batch, kinds) 1 where absence is known; `scene` (batch, kinds) 1 where present;
    `scene_known` (batch, kinds) 1 where presence or absence is certain.
    """

    boxes: Tensor
    kinds: Tensor
    labelled: Tensor
    scene: Tensor
    scene_known: Tensor


@torch.no_grad()
def assign_cells(raw: RawPrediction, targets: Targets, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Choose each cell's box: index (batch, cells), -1 for none, and target score, same shape."""
    boxes, kinds = targets.boxes, targets.kinds
    is_real = kinds >= 0
    scores = raw.kind_logits.sigmoid()
    fit = box_overlap(boxes, raw.boxes)  # (batch, most, cells)
    own = kinds.clamp(min=0)[:, :, None].expand(-1, -1, scores.shape[1])
    said = scores.transpose(1, 2).gather(1, own)  # (batch, most, cells)
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=SMALLEST_REACH)
    away = (centres[None, None] - middle[:, :, None]).abs()
    inside = (away < half[:, :, None]).all(dim=-1) & is_real[..., None]
    aligned = said**SCORE_POWER * fit**FIT_POWER * inside + 1e-9 * inside
    best, where = aligned.topk(OWNERS, dim=-1)
    chosen = torch.zeros_like(aligned).scatter_(-1, where, (best > 0).to(aligned.dtype))
    aligned = aligned * chosen
    strongest, owner = aligned.max(dim=1)  # (batch, cells)
    per_box = aligned.amax(dim=-1, keepdim=True).clamp(min=1e-12)
    top_fit = (fit * chosen).amax(dim=-1, keepdim=True).clamp(min=0.1)
    target = (aligned / per_box * top_fit).gather(1, owner[:, None]).squeeze(1)
    owned = strongest > 0
    return torch.where(owned, owner, -1), torch.where(owned, target, 0.0)


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """CIoU of matching boxes (n, 4) and (n, 4): overlap less distance and difference in shape."""
    low, high = (
        torch.maximum(first[:, :2], second[:, :2]),
        torch.minimum(first[:, 2:], second[:, 2:]),
    )
    both = (high - low).clamp(min=0).prod(dim=-1)
    size1, size2 = first[:, 2:] - first[:, :2], second[:, 2:] - second[:, :2]
    union = size1.prod(dim=-1) + size2.prod(dim=-1) - both
    iou = both / union.clamp(min=1e-6)
    hull = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    apart = (first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]).square().sum(dim=-1) / 4
    tilt = torch.atan2(size2[:, 0], size2[:, 1]) - torch.atan2(size1[:, 0], size1[:, 1])
    shape = 4 / math.pi**2 * tilt.square()
    with torch.no_grad():
        share = shape / (1 - iou + shape).clamp(min=1e-6)
    return iou - apart / hull.square().sum(dim=-1).clamp(min=1e-6) - share * shape


def detector_loss(raw: RawPrediction, targets: Targets, centres: Tensor) -> Tensor:
    """Measure how wrong a batch of predictions is; a scalar."""
    owner, score = assign_cells(raw, targets, centres)
    is_owned = owner >= 0
    index = owner.clamp(min=0)
    kind = targets.kinds.gather(1, index).clamp(min=0)
    wanted = torch.zeros_like(raw.kind_logits)
    wanted.scatter_(-1, kind[..., None], (score * is_owned)[..., None])
    known = targets.labelled[:, None].expand_as(wanted)
    said = raw.kind_logits.sigmoid()
    # Easy negatives count less: |said - wanted| is small for them (arXiv 2006.04388).
    focus = torch.where(wanted > 0, torch.ones_like(said), (said - wanted).abs().detach() ** 1.5)
    surprise = functional.binary_cross_entropy_with_logits(
        raw.kind_logits, wanted, reduction="none"
    )
    total = score.sum().clamp(min=1.0)
    kind_loss = (surprise * focus * known).sum() / total
    owned_boxes = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))[is_owned]
    box_loss = (
        (1 - complete_iou(raw.boxes[is_owned], owned_boxes)) * score[is_owned]
    ).sum() / total
    scene = functional.binary_cross_entropy_with_logits(
        raw.scene_logits, targets.scene, reduction="none"
    )
    scene_loss = (scene * targets.scene_known).sum() / targets.scene_known.sum().clamp(min=1.0)
    return KIND_WEIGHT * kind_loss + BOX_WEIGHT * box_loss + SCENE_WEIGHT * scene_loss
