"""The small detector as one ONNX file, for run-times other than PyTorch, and run by onnxruntime.

The graph maps `pixels` (batch, 3, size, size), RGB, centred and scaled as `normalise` does, to
`scores` (batch, cells, kinds), the whole picture's share included, and `boxes` (batch, cells, 4) in
pixels of the square. What it takes to use them lies in the file's metadata, so that a program of
another language needs nothing else: names and order of the kinds, thresholds and calibration, the
square's size, mean and spread of the pixels, how a picture is brought to a square. Choosing among
overlapping boxes is left to the reader of the graph, as here.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qianyan.errors import CheckpointError, ConfigError, quote
from qianyan.models.detector import (
    KINDS,
    PIXEL_MEAN,
    PIXEL_SPREAD,
    Detector,
    DetectorConfig,
    Fitted,
    Proposal,
    describe_config,
    fit_square,
    normalise,
    read_detector_config,
    read_proposals,
)

SUFFIX = ".onnx"
FIT = "pad at the right or bottom to at most 2:1 with pixel_mean, then stretch (bilinear)"
HOW_TO_GET = "Install it: pip install 'qianyan[detect]'."


class _Graph(nn.Module):
    """What is exported: scores and boxes, without the choice among them."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (batch, 3, size, size) to scores and boxes of every cell."""
        raw = self.detector(pixels)
        return self.detector.scores(raw), raw.boxes


def export_onnx(detector: Detector, path: Path) -> None:
    """Write a detector as one ONNX file with its metadata; the batch is open, the size is not.

    The file is replaced whole. The detector must be in eval mode, as load_detector() leaves it.

    Raises ConfigError where what it takes to export is not installed.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415  (extra: detect)
    except ImportError as error:
        raise ConfigError(f"Exporting to ONNX needs onnxscript. {HOW_TO_GET}") from error
    size = detector.config.image_size
    sample = torch.zeros(2, 3, size, size, device=detector.centres.device)
    with _quiet():
        program = torch.onnx.export(
            _Graph(detector).eval(),
            (sample,),
            input_names=["pixels"],
            output_names=["scores", "boxes"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata(detector.config))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    program.save(draft, external_data=False)
    draft.replace(path)


def metadata(config: DetectorConfig) -> dict[str, str]:
    """Say in words and JSON what it takes to use the graph; `config` is config.json itself."""
    said: dict[str, Any] = {
        "kinds": list(KINDS),
        "thresholds": config.thresholds,
        "calibration": config.calibration,
        "image_size": config.image_size,
        "pixel_mean": PIXEL_MEAN,
        "pixel_spread": PIXEL_SPREAD,
        "config": describe_config(config),
    }
    return {"channels": "RGB", "fit": FIT, **{name: json.dumps(said[name]) for name in said}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporter says of its own insides and of torchvision."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


class OnnxDetector:
    """A detector that onnxruntime runs, on the processor; it proposes what `Detector` proposes."""

    def __init__(self, path: Path) -> None:
        """Open an exported file.

        Raises:
            ConfigError: onnxruntime is missing, or the file's metadata are not ours.
            CheckpointError: the file cannot be read.
        """
        try:
            import onnxruntime  # noqa: PLC0415  (extra: detect)
            from onnxruntime.capi import onnxruntime_pybind11_state as faults  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(f"{quote(path.name)} needs onnxruntime. {HOW_TO_GET}") from error
        if not path.is_file():
            raise CheckpointError(f"There is no file {quote(path.name)}; expected a detector.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except (
            faults.Fail,
            faults.InvalidArgument,
            faults.InvalidGraph,
            faults.InvalidProtobuf,
            faults.NotImplemented,
            faults.RuntimeException,
        ) as error:
            raise CheckpointError(
                f"{quote(path.name)} cannot be read as ONNX; expected a file written by "
                "`qianyan models export-onnx`."
            ) from error
        said = self._session.get_modelmeta().custom_metadata_map
        try:
            content = json.loads(said.get("config", "{}"))
        except ValueError as error:
            raise ConfigError(f"The metadata of {quote(path.name)} are no JSON.") from error
        self.config = read_detector_config(content)

    def fit(self, rgb: NDArray[np.uint8]) -> Fitted:
        """Bring a picture to the size that is looked at; any thread may."""
        return fit_square(rgb, self.config.image_size)

    def propose_together(
        self, fitted: Sequence[Fitted], *, threshold: float | dict[str, float] | None = None
    ) -> list[list[Proposal]]:
        """Propose boxes in several pictures in one pass, best first.

        `threshold` is one score for every kind, one per kind, or None for the calibrated ones.
        """
        squares = torch.from_numpy(np.stack([square for square, _ in fitted]))
        pixels = normalise(squares).contiguous(memory_format=torch.contiguous_format).numpy()
        scores, boxes = self._session.run(["scores", "boxes"], {"pixels": pixels})
        views = [view for _, view in fitted]
        return read_proposals(
            torch.from_numpy(scores), torch.from_numpy(boxes), views, self.config.limits(threshold)
        )
