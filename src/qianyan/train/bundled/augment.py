"""Changes to labelled pictures that keep their labels true: crop, paste, stretch, recolour."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from qianyan.labels.photos import LabelledBox
from qianyan.models.detector import Kind
from qianyan.train.bundled.flames import Floats

Pixels = NDArray[np.uint8]
Edges = tuple[float, float, float, float]
MIN_KEPT = 0.35  # of a box's area inside a crop, below which the box is dropped
FAR = (2.0, 3.0)  # sides of the window of a far picture, in sides of the picture
MIN_PIXELS = 4.0  # a box smaller than this in the square is not worth learning


@dataclass(frozen=True)
class Sample:
    """A picture, its boxes in its own pixels, and the kinds whose absence is known.

    `doubtful` kinds were cut down to less than a crop may show: whether the picture still shows
    them is not certain.
    """

    rgb: Pixels
    boxes: tuple[LabelledBox, ...]
    labelled: frozenset[Kind]
    doubtful: frozenset[Kind] = frozenset()


def box_size(box: Edges) -> tuple[float, float]:
    """Measure width and height."""
    return box[2] - box[0], box[3] - box[1]


def shift_box(box: Edges, x: float, y: float) -> Edges:
    """Move a box."""
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def cut_out(rgb: Pixels, box: Edges) -> Pixels:
    """Copy what lies in a box."""
    x1, y1, x2, y2 = (round(edge) for edge in box)
    return rgb[y1:y2, x1:x2].copy()


def _feather(height: int, width: int) -> Floats:
    """An ellipse that fades at its rim, (height, width, 1) in 0..1."""
    up = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    fade: Floats = np.clip((1.08 - np.sqrt(up**2 + across**2)) * 5, 0, 1)[..., None]
    return fade


def paste_fire(rng: np.random.Generator, sample: Sample, flame: Pixels) -> Sample:
    """Add a flame cut from another photo; light adds, so only its bright part shows."""
    height, width = sample.rgb.shape[:2]
    tall = float(np.exp(rng.uniform(np.log(0.1), np.log(0.55)))) * height
    wide = min(tall * flame.shape[1] / flame.shape[0], 0.7 * width)
    rows, columns = max(12, round(tall)), max(12, round(wide))
    if rows >= height or columns >= width:
        return sample
    x, y = int(rng.integers(width - columns)), int(rng.integers(height - rows))
    patch = np.asarray(Image.fromarray(flame).resize((columns, rows)), dtype=np.float32)
    brightness = patch[..., :1]
    alpha = _feather(rows, columns) * np.clip((brightness - 60) / 90, 0.0, 1)
    rgb = sample.rgb.copy()
    under = rgb[y : y + rows, x : x + columns].astype(np.float32)
    rgb[y : y + rows, x : x + columns] = (
        under * (1 - alpha) + np.maximum(under, patch) * alpha
    ).astype(np.uint8)
    box = LabelledBox("fire", (float(x), float(y), float(x + columns), float(y + rows)))
    return replace(sample, rgb=rgb, boxes=(*sample.boxes, box))


def paste_head(rng: np.random.Generator, sample: Sample, bank: list[Pixels]) -> Sample:
    """Lay a bare head cut from another photo over one that wears a helmet."""
    worn = [
        i for i, b in enumerate(sample.boxes) if b.kind == "helmet" and min(box_size(b.box)) >= 14
    ]
    if not worn:
        return sample
    index = worn[int(rng.integers(len(worn)))]
    x1, y1, x2, y2 = (round(edge) for edge in sample.boxes[index].box)
    head = bank[int(rng.integers(len(bank)))]
    source = Image.fromarray(head if rng.random() < 0.5 else head[:, ::-1])
    patch = np.asarray(source.resize((x2 - x1, y2 - y1)), dtype=np.float32)
    rgb = sample.rgb.copy()
    under = rgb[y1:y2, x1:x2].astype(np.float32)
    patch = np.clip(patch * (under.mean() + 30) / (patch.mean() + 30), 0, 255)
    alpha = _feather(y2 - y1, x2 - x1)
    rgb[y1:y2, x1:x2] = (under * (1 - alpha) + patch * alpha).astype(np.uint8)
    bared = LabelledBox("head", sample.boxes[index].box)
    boxes = (*sample.boxes[:index], bared, *sample.boxes[index + 1 :])
    return replace(sample, rgb=rgb, boxes=boxes)


def crop(
    rng: np.random.Generator, sample: Sample, size: int, *, chance: float, is_far: bool = False
) -> Sample:
    """Cut a random window, stretch it to a square, mirror and blur by chance.

    The window may reach beyond the picture (things look smaller then); what lies outside is grey.
    `is_far` has it reach so far beyond that everything is shown at half its size or less.
    """
    height, width = sample.rgb.shape[:2]
    x, y, wide, tall = 0.0, 0.0, float(width), float(height)
    if is_far:
        zoom = float(rng.uniform(*FAR))
        wide, tall = width * zoom, height * zoom
        x, y = (float(rng.uniform(side * (1 - zoom), 0)) for side in (width, height))
    elif rng.random() < chance:
        zoom = float(rng.uniform(0.42, 1.0) if rng.random() < 0.8 else rng.uniform(1.0, 1.5))
        squeeze = float(np.exp(rng.uniform(-0.22, 0.22)))
        wide, tall = width * min(1.5, zoom * squeeze), height * min(1.5, zoom / squeeze)
        x = float(rng.uniform(min(0, width - wide), max(0, width - wide)))
        y = float(rng.uniform(min(0, height - tall), max(0, height - tall)))
    image = Image.fromarray(sample.rgb)
    inside = (max(0.0, x), max(0.0, y), min(float(width), x + wide), min(float(height), y + tall))
    if inside == (x, y, x + wide, y + tall):
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=inside)
    else:
        fill = tuple(int(v) for v in rng.integers(60, 170, 3))
        edges = (round(x), round(y), round(x + wide), round(y + tall))
        padded = Image.new("RGB", (edges[2] - edges[0], edges[3] - edges[1]), fill)
        padded.paste(image, (-edges[0], -edges[1]))
        image = padded.resize((size, size), Image.Resampling.BILINEAR)
    blur = rng.random()
    if blur < 0.08:
        image = image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.5, 1.6))))
    elif blur < 0.18:
        small = round(size * float(rng.uniform(0.35, 0.8)))
        image = image.resize((small, small), Image.Resampling.BILINEAR).resize((size, size))
    boxes, doubtful = _cut_boxes(sample, (x, y, x + wide, y + tall), size)
    rgb = np.asarray(image)
    if rng.random() < 0.5:
        rgb = rgb[:, ::-1]
        boxes = [
            replace(b, box=(size - b.box[2], b.box[1], size - b.box[0], b.box[3])) for b in boxes
        ]
    return Sample(rgb, tuple(boxes), sample.labelled, doubtful)


def _cut_boxes(
    sample: Sample, window: Edges, size: int
) -> tuple[list[LabelledBox], frozenset[Kind]]:
    """Map boxes into a window stretched to size x size; say which kinds were cut too far."""
    boxes, doubtful = [], set(sample.doubtful)
    scale_x, scale_y = size / (window[2] - window[0]), size / (window[3] - window[1])
    for each in sample.boxes:
        x1, y1 = max(each.box[0], window[0]), max(each.box[1], window[1])
        x2, y2 = min(each.box[2], window[2]), min(each.box[3], window[3])
        kept = max(0.0, x2 - x1) * max(0.0, y2 - y1)
        wide, tall = box_size(each.box)
        if kept <= 0:
            continue
        box = ((x1 - window[0]) * scale_x, (y1 - window[1]) * scale_y,
               (x2 - window[0]) * scale_x, (y2 - window[1]) * scale_y)  # fmt: skip
        # Fire and smoke have no shape that a cut destroys: a large remnant is still fire.
        amorphous = each.kind in ("fire", "smoke") and min(box_size(box)) >= 0.12 * size
        if (kept < MIN_KEPT * wide * tall and not amorphous) or min(box_size(box)) < MIN_PIXELS:
            doubtful.add(each.kind)
            continue
        boxes.append(LabelledBox(each.kind, box))
    return boxes, frozenset(doubtful)


def stretch(sample: Sample, width: int, height: int) -> Sample:
    """Stretch a sample to another size."""
    rows, columns = sample.rgb.shape[:2]
    sx, sy = width / columns, height / rows
    rgb = np.asarray(
        Image.fromarray(np.ascontiguousarray(sample.rgb)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
    )
    boxes = [
        replace(b, box=(b.box[0] * sx, b.box[1] * sy, b.box[2] * sx, b.box[3] * sy))
        for b in sample.boxes
    ]
    return replace(sample, rgb=rgb, boxes=tuple(boxes))


def recolour(rng: np.random.Generator, pictures: Tensor) -> Tensor:
    """Vary contrast, brightness, tint and saturation; make some noisy, hide parts of others."""
    count = pictures.shape[0]

    def spread(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape)).astype(np.float32)).reshape(
            count, -1, 1, 1
        )

    grey = pictures.mean(dim=1, keepdim=True)
    saturation = spread(0.65, 1.35, 1)
    saturation[torch.from_numpy(rng.random(count) < 0.04)] = 0.0
    pictures = grey + (pictures - grey) * saturation
    pictures = pictures * spread(0.72, 1.3, 1) * spread(0.93, 1.07, 3) + spread(-0.35, 0.35, 1)
    for row in np.flatnonzero(rng.random(count) < 0.12).tolist():
        cells = torch.from_numpy(rng.normal(0, 1, (1, 3, 80, 80)).astype(np.float32))
        grain = functional.interpolate(cells, size=pictures.shape[-2:], mode="nearest")[0]
        pictures[row] += grain * float(rng.uniform(0.05, 0.2))
    for row in np.flatnonzero(rng.random(count) < 0.12).tolist():
        _hide(rng, pictures[row])
    limit = 2.4  # black and white are about -1.8 and 2.3
    return pictures.clamp_(-1.9, limit).contiguous(memory_format=torch.channels_last)


def _hide(rng: np.random.Generator, picture: Tensor) -> None:
    """Cover up to three small rectangles with one colour, in place."""
    size = picture.shape[-1]
    for _ in range(int(rng.integers(1, 4))):
        wide, tall = (int(v) for v in rng.uniform(0.04, 0.16, 2) * size)
        x, y = int(rng.integers(size - wide)), int(rng.integers(size - tall))
        colour = torch.from_numpy(rng.uniform(-1.5, 1.8, (3, 1, 1)).astype(np.float32))
        picture[:, y : y + tall, x : x + wide] = colour
