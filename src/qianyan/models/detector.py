"""The small convolutional detector: fire, smoke, persons, and heads with and without hard hats.

Anchor-free, after FCOS (arXiv 1904.01355) with one class score per cell that also predicts how
well the box fits (arXiv 2108.07755). What is unusual:

* The first convolution steps four pixels at once, so nothing is computed at half resolution.
* A second output judges the whole picture for each class; a box's final score is its own score
  times the picture's, weighted by `scene_weight`. It lowers false alarms in small corners.
* Pictures are stretched to a square, after padding what is longer than 2:1. Training does the
  same, so shapes are seen as they will be met.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from qianyan.errors import CheckpointError, ConfigError
from qianyan.models.boxes import suppress

Kind = Literal["fire", "smoke", "person", "helmet", "head"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STRIDES = (8, 16, 32)
MAX_ASPECT = 2.0
PIXEL_MEAN, PIXEL_SPREAD = 112.0, 62.0
MAX_PROPOSALS = 60  # of one kind
MAX_RANKED = 400  # cells of one kind that are looked at, best first
# A box of which more lies in a better one (or the other way round) is a part of the same flame,
# plume or head. Persons may well stand in front of each other.
COVER_LIMITS: dict[Kind, float] = {
    "fire": 0.5, "smoke": 0.5, "person": math.inf, "helmet": 0.7, "head": 0.7,
}  # fmt: skip
SHAPELESS: tuple[Kind, ...] = ("fire", "smoke")
RELATIVE_FLOOR = 0.7  # beside a sure flame or plume, weak ones are its edges and reflections
MAX_LOG_REACH = 5.0
MODEL_TYPE = "qianyan_detector"
PER_STAGE = ("widths", "depths")  # config fields with one number per stage of the backbone
OPTIONAL = ("calibration",)  # config fields that detectors saved without them may lack
UNCALIBRATED = (1.0, 0.0)
LEAST_SCORE = 1e-4  # scores are kept this far from 0 and 1, where log-odds end


@dataclass(frozen=True)
class Proposal:
    """Something the detector believes it sees; the box is in pixels of the picture given."""

    kind: Kind
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Sizes of the network and how its scores are read.

    `calibration` is slope and offset by kind, on log-odds: what turns a score into the share of
    such boxes that are right (Platt scaling). Thresholds are on the scores themselves.
    """

    image_size: int = 320
    widths: tuple[int, int, int, int] = (32, 64, 128, 232)
    depths: tuple[int, int, int, int] = (1, 2, 3, 2)
    neck_width: int = 96
    scene_weight: float = 0.35
    thresholds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.3))
    calibration: dict[str, tuple[float, float]] = field(
        default_factory=lambda: dict.fromkeys(KINDS, UNCALIBRATED)
    )

    def __post_init__(self) -> None:
        if self.image_size % STRIDES[-1] or self.image_size < 2 * STRIDES[-1]:
            raise ConfigError(
                f"image_size is {self.image_size}; expected a multiple of {STRIDES[-1]} "
                f"from {2 * STRIDES[-1]} up."
            )
        if set(self.thresholds) != set(KINDS):
            raise ConfigError(f"thresholds name {sorted(self.thresholds)}; expected {list(KINDS)}.")
        is_whole = set(self.calibration) == set(KINDS)
        if not is_whole or any(slope <= 0 for slope, _ in self.calibration.values()):
            raise ConfigError(
                f"calibration is {self.calibration}; expected a slope above 0 and an offset for "
                f"each of {list(KINDS)}."
            )

    def limits(self, threshold: float | dict[str, float] | None) -> dict[str, float]:
        """Give the score that each kind has to reach: one for all, one each, or None: its own."""
        limits = self.thresholds if threshold is None else threshold
        return limits if isinstance(limits, dict) else dict.fromkeys(KINDS, limits)

    def probability(self, kind: str, score: float) -> float:
        """Say how often a box of this kind and score is right; a greater score is never less."""
        slope, offset = self.calibration[kind]
        held = min(max(score, LEAST_SCORE), 1 - LEAST_SCORE)
        return 1 / (1 + math.exp(-slope * math.log(held / (1 - held)) - offset))


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    padding = 1 if kernel in (3, 6) else 0
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Residual(nn.Module):
    """A narrow and a wide convolution around which the input is passed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = _conv(width, width // 2, kernel=1)
        self.wide = _conv(width // 2, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, width, rows, columns) to the same shape."""
        out: Tensor = hidden + self.wide(self.narrow(hidden))
        return out


class Pyramid(nn.Module):
    """Backbone and top-down neck: features at strides 8, 16 and 32."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        w, d, n = config.widths, config.depths, config.neck_width
        self.stem = _conv(3, w[0], kernel=6, stride=4)
        self.stage4 = nn.Sequential(*[Residual(w[0]) for _ in range(d[0])])
        self.stage8 = nn.Sequential(
            _conv(w[0], w[1], stride=2), *[Residual(w[1]) for _ in range(d[1])]
        )
        self.stage16 = nn.Sequential(
            _conv(w[1], w[2], stride=2), *[Residual(w[2]) for _ in range(d[2])]
        )
        self.stage32 = nn.Sequential(
            _conv(w[2], w[3], stride=2), *[Residual(w[3]) for _ in range(d[3])]
        )
        self.spread = _conv(3 * w[3] // 2, n, kernel=1)
        self.squeeze = _conv(w[3], w[3] // 2, kernel=1)
        self.merge16 = nn.Sequential(_conv(w[2] + n, n, kernel=1), Residual(n))
        self.merge8 = nn.Sequential(_conv(w[1] + n, n * 2 // 3, kernel=1), Residual(n * 2 // 3))
        self.rise16 = nn.Sequential(_conv(n + n * 2 // 3, n, kernel=1), Residual(n))
        self.down8 = _conv(n * 2 // 3, n * 2 // 3, stride=2)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map pixels (batch, 3, size, size) to features at strides 8, 16, 32 and the deepest."""
        at8 = self.stage8(self.stage4(self.stem(pixels)))
        at16 = self.stage16(at8)
        deep = self.stage32(at16)
        narrow = self.squeeze(deep)
        near = functional.max_pool2d(narrow, 5, 1, 2)
        far = functional.max_pool2d(near, 5, 1, 2)
        top = self.spread(torch.cat([narrow, near, far], dim=1))
        middle = self.merge16(
            torch.cat([at16, functional.interpolate(top, scale_factor=2.0)], dim=1)
        )
        low = self.merge8(torch.cat([at8, functional.interpolate(middle, scale_factor=2.0)], dim=1))
        middle = self.rise16(torch.cat([middle, self.down8(low)], dim=1))
        return low, middle, top, deep


class Head(nn.Module):
    """Class scores and box reaches for each cell of one feature map."""

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__()
        self.kind_conv, self.box_conv = _conv(width, width), _conv(width, width)
        self.kind_out, self.box_out = nn.Conv2d(width, kinds, 1), nn.Conv2d(width, 4, 1)
        nn.init.constant_(self.kind_out.bias, -4.5)  # type: ignore[arg-type]
        nn.init.constant_(self.box_out.bias, 0.7)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, width, rows, columns) to (batch, rows * columns, kinds + 4)."""
        kinds = self.kind_out(self.kind_conv(features))
        boxes = self.box_out(self.box_conv(features))
        return (
            torch.cat([kinds, boxes], dim=1).flatten(2).transpose(1, 2)
        )  # (batch, cells, kinds + 4)


@dataclass(frozen=True)
class RawPrediction:
    """What the network says about a batch, before any threshold.

    `kind_logits` (batch, cells, kinds), `boxes` (batch, cells, 4) in pixels of the square,
    `scene_logits` (batch, kinds).
    """

    kind_logits: Tensor
    boxes: Tensor
    scene_logits: Tensor


class Detector(nn.Module):
    """Proposes boxes for five kinds of things in a picture."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        n, kinds = config.neck_width, len(KINDS)
        self.pyramid = Pyramid(config)
        self.heads = nn.ModuleList([Head(n * 2 // 3, kinds), Head(n, kinds), Head(n, kinds)])
        self.scene = nn.Linear(config.widths[3] * 2, kinds)
        centres, steps = cell_centres(config.image_size)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self.centres: Tensor
        self.steps: Tensor

    def look_at(self, size: int) -> None:
        """Look at squares of another size from now on; the same weights serve all.

        Raises ConfigError for a size the network cannot look at.
        """
        self.config = replace(self.config, image_size=size)
        centres, steps = cell_centres(size)
        self.centres, self.steps = centres.to(self.centres), steps.to(self.steps)

    def forward(self, pixels: Tensor) -> RawPrediction:
        """Look at normalised pixels (batch, 3, size, size)."""
        *levels, deep = self.pyramid(pixels)
        raw = torch.cat(
            [head(level) for head, level in zip(self.heads, levels, strict=True)], dim=1
        ).float()
        kinds, reach = raw[..., : len(KINDS)], raw[..., len(KINDS) :]
        reach = reach.clamp(max=MAX_LOG_REACH).exp() * self.steps[:, None]  # left, up, right, down
        boxes = torch.cat([self.centres - reach[..., :2], self.centres + reach[..., 2:]], dim=-1)
        pooled = torch.cat([deep.mean(dim=(2, 3)), deep.amax(dim=(2, 3))], dim=1)
        return RawPrediction(kinds, boxes, self.scene(pooled).float())

    def scores(self, raw: RawPrediction) -> Tensor:
        """Turn logits into final scores (batch, cells, kinds), the whole picture included."""
        weight = self.config.scene_weight
        scene = raw.scene_logits.sigmoid()[:, None] ** weight
        return raw.kind_logits.sigmoid() ** (1 - weight) * scene

    def propose(
        self, rgb: NDArray[np.uint8], *, threshold: float | dict[str, float] | None = None
    ) -> list[Proposal]:
        """Propose boxes in a picture (height, width, 3), best first.

        `threshold` is one score for every kind, one per kind, or None for the calibrated ones.
        The model must be in eval mode, as load_detector() leaves it.
        """
        return self.propose_together([self.fit(rgb)], threshold=threshold)[0]

    def fit(self, rgb: NDArray[np.uint8]) -> "Fitted":
        """Bring a picture to the size that is looked at; any thread may."""
        return fit_square(rgb, self.config.image_size)

    @torch.inference_mode()
    def propose_together(
        self, fitted: "Sequence[Fitted]", *, threshold: float | dict[str, float] | None = None
    ) -> list[list[Proposal]]:
        """Propose boxes in several pictures in one pass, each within some 1e-4 pixels as alone."""
        squares = torch.from_numpy(np.stack([square for square, _ in fitted]))
        raw = self(normalise(squares.to(self.centres.device)))
        views = [view for _, view in fitted]
        return read_proposals(self.scores(raw), raw.boxes, views, self.config.limits(threshold))


def read_proposals(
    scores: Tensor, boxes: Tensor, views: "Sequence[SquareView]", limits: Mapping[str, float]
) -> list[list[Proposal]]:
    """Choose among scores (batch, cells, kinds) and boxes of the square (batch, cells, 4)."""
    return [
        _read(scores[index], view.to_picture(boxes[index]), limits)
        for index, view in enumerate(views)
    ]


def _read(scores: Tensor, boxes: Tensor, limits: Mapping[str, float]) -> list[Proposal]:
    """Choose among the scores (cells, kinds) and boxes (cells, 4) of one picture."""
    is_seen = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=-1)  # not all in the padding
    found: list[Proposal] = []
    for index, kind in enumerate(KINDS):
        limit = limits[kind]
        if kind in SHAPELESS:
            limit = max(limit, RELATIVE_FLOOR * float(scores[:, index].max()))
        chosen = torch.nonzero((scores[:, index] >= limit) & is_seen).flatten()
        ranked = chosen[scores[chosen, index].argsort(descending=True)][:MAX_RANKED]
        kept = ranked[suppress(boxes[ranked], cover_limit=COVER_LIMITS[kind])][:MAX_PROPOSALS]
        for (x1, y1, x2, y2), score in zip(
            boxes[kept].tolist(), scores[kept, index].tolist(), strict=True
        ):
            found.append(Proposal(kind, (x1, y1, x2, y2), min(1.0, score)))
    return sorted(found, key=lambda proposal: -proposal.score)


@dataclass(frozen=True)
class SquareView:
    """How a picture was padded and stretched; scales are its pixels per pixel of the square."""

    width: int
    height: int
    scale_x: float
    scale_y: float

    def to_picture(self, boxes: Tensor) -> Tensor:
        """Map boxes (n, 4) of the square into the picture, cut at its edges."""
        scales = boxes.new_tensor([self.scale_x, self.scale_y] * 2)
        edges = boxes.new_tensor([self.width, self.height] * 2)
        return torch.minimum((boxes * scales).clamp(min=0), edges)


Fitted = tuple[NDArray[np.uint8], SquareView]


def fit_square(rgb: NDArray[np.uint8], size: int) -> Fitted:
    """Pad a picture longer than 2:1 at the right or bottom, then stretch it to size x size."""
    height, width = rgb.shape[:2]
    full_width = max(width, math.ceil(height / MAX_ASPECT))
    full_height = max(height, math.ceil(width / MAX_ASPECT))
    image = Image.fromarray(rgb)
    if (full_width, full_height) != (width, height):
        grey = round(PIXEL_MEAN)
        padded = Image.new("RGB", (full_width, full_height), (grey, grey, grey))
        padded.paste(image, (0, 0))
        image = padded
    square = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(square), SquareView(width, height, full_width / size, full_height / size)


def normalise(pictures: Tensor) -> Tensor:
    """Turn (batch, height, width, 3) of 0..255 into centred (batch, 3, height, width) floats."""
    pixels = (pictures.permute(0, 3, 1, 2).float() - PIXEL_MEAN) / PIXEL_SPREAD
    return pixels.contiguous(memory_format=torch.channels_last)


def cell_centres(size: int) -> tuple[Tensor, Tensor]:
    """List the centres (cells, 2) and strides (cells,) of all cells, finest level first."""
    centres, steps = [], []
    for stride in STRIDES:
        middle = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(middle, middle, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()], dim=-1))
        steps.append(torch.full((x.numel(),), float(stride)))
    return torch.cat(centres), torch.cat(steps)


def save_detector(detector: Detector, folder: Path) -> None:
    """Write config.json and half-precision model.safetensors; each file is replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().half().contiguous()
        if tensor.is_floating_point()
        else tensor.cpu()
        for name, tensor in detector.state_dict().items()
    }
    weights = folder / "model.safetensors.part"
    save_file(state, weights, metadata={"format": "pt"})
    weights.replace(folder / "model.safetensors")
    draft = folder / "config.json.part"
    draft.write_text(
        json.dumps(describe_config(detector.config), indent=2) + "\n", encoding="utf-8"
    )
    draft.replace(folder / "config.json")


def describe_config(config: DetectorConfig) -> dict[str, Any]:
    """Write a config as the content of config.json."""
    return {"model_type": MODEL_TYPE, "kinds": list(KINDS), **asdict(config)}


def read_detector_config(content: dict[str, Any]) -> DetectorConfig:
    """Make a config from the content of config.json, taking the fields it declares and no others.

    Raises ConfigError for what describes no detector of ours.
    """
    if content.get("model_type") != MODEL_TYPE or tuple(content.get("kinds", ())) != KINDS:
        raise ConfigError(
            f"config.json is of type '{content.get('model_type')}'; expected '{MODEL_TYPE}' with "
            f"the kinds {', '.join(KINDS)}."
        )
    known: dict[str, Any] = {
        each.name: tuple(content[each.name]) if each.name in PER_STAGE else content[each.name]
        for each in fields(DetectorConfig)
        if each.name in content
    }
    if "calibration" in known:
        known["calibration"] = _read_calibration(known["calibration"])
    names = [each.name for each in fields(DetectorConfig) if each.name not in OPTIONAL]
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(f"The detector's config.json has no {', '.join(missing)}.")
    return DetectorConfig(**known)


def _read_calibration(content: object) -> dict[str, tuple[float, float]]:
    try:
        pairs = dict(content).items()  # type: ignore[call-overload]
        return {kind: (float(slope), float(offset)) for kind, (slope, offset) in pairs}
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "The detector's calibration cannot be read; expected two numbers for each kind."
        ) from error


def load_detector(folder: Path, *, device: str | torch.device = "cpu") -> Detector:
    """Read a detector saved by save_detector(), ready to propose, in single precision.

    Raises:
        CheckpointError: a file is missing or its tensors do not fit the config.
        ConfigError: config.json describes no detector of ours.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"No detector can be read from {folder.name}: {error}") from error
    detector = Detector(read_detector_config(content))
    try:
        detector.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise CheckpointError(f"The detector's tensors do not fit its config: {error}") from error
    return detector.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]
