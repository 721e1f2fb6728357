"""A detector as one ONNX file: its metadata, and what onnxruntime proposes from it."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from qianyan.cli import run
from qianyan.engine.checkpoint import BUNDLED_FOLDER
from qianyan.errors import CheckpointError, ConfigError
from qianyan.inputs.images import Photo
from qianyan.inspection.inspector import LookSettings, open_look
from qianyan.models.detector import KINDS, PIXEL_MEAN, PIXEL_SPREAD, Detector, load_detector
from qianyan.models.detector_onnx import OnnxDetector
from qianyan.train.bundled.scenes import UNSEEN_FROM, draw_scene

DETECTOR = BUNDLED_FOLDER / "detector"
PIXELS, SCORE = 1e-2, 1e-4  # a box's corners are sums of up to 640 pixels in single precision


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "new" / "detector.onnx"
    assert run(["models", "export-onnx", "bundled", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(DETECTOR)


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    """Drawn scenes of several shapes, one of them longer than 2:1."""
    shapes = ((480, 360), (360, 480), (640, 480), (640, 240))
    return [
        draw_scene(UNSEEN_FROM + 77 + n, width=width, height=height).rgb
        for n, (width, height) in enumerate(shapes)
    ]


def test_onnxruntime_proposes_what_pytorch_proposes(
    exported: Path, detector: Detector, scenes: list[np.ndarray]
) -> None:
    opened = OnnxDetector(exported)
    fitted = [detector.fit(scene) for scene in scenes]
    expected = detector.propose_together(fitted, threshold=0.1)
    found = opened.propose_together([opened.fit(scene) for scene in scenes], threshold=0.1)
    assert sum(map(len, expected)) > 20
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.kind for one in ours] == [one.kind for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.score == pytest.approx(other.score, abs=SCORE)
            assert one.box == pytest.approx(other.box, abs=PIXELS)


def test_a_batch_of_any_size_is_looked_at(exported: Path, scenes: list[np.ndarray]) -> None:
    opened = OnnxDetector(exported)
    alone = opened.propose_together([opened.fit(scenes[0])])[0]
    (*_, last) = opened.propose_together([opened.fit(scenes[n]) for n in (1, 2, 0)])
    assert [one.kind for one in last] == [one.kind for one in alone]
    assert [one.score for one in last] == pytest.approx([one.score for one in alone], abs=SCORE)


def test_the_file_says_what_it_takes_to_use_it(exported: Path, detector: Detector) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    config = detector.config
    assert json.loads(said["kinds"]) == list(KINDS)
    assert json.loads(said["thresholds"]) == config.thresholds
    assert json.loads(said["calibration"]) == {k: list(v) for k, v in config.calibration.items()}
    assert json.loads(said["image_size"]) == config.image_size
    assert (json.loads(said["pixel_mean"]), json.loads(said["pixel_spread"])) == (
        PIXEL_MEAN,
        PIXEL_SPREAD,
    )
    assert said["channels"] == "RGB"
    (pixels,) = session.get_inputs()
    assert pixels.shape == ["batch", 3, config.image_size, config.image_size]
    assert [one.name for one in session.get_outputs()] == ["scores", "boxes"]
    assert OnnxDetector(exported).config == config


def test_an_exported_file_looks_as_a_model(exported: Path, scenes: list[np.ndarray]) -> None:
    photo = Photo(Image.fromarray(scenes[0]))
    opened = open_look(LookSettings(model=str(exported)))
    expected = open_look(LookSettings(model="bundled-fast")).look(photo).detections
    assert expected
    found = opened.look(photo).detections
    assert [(one.label, one.sub_label) for one in found] == [
        (one.label, one.sub_label) for one in expected
    ]


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file 'none\.onnx'"):
        OnnxDetector(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read as ONNX"):
        OnnxDetector(broken)
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(exported.read_bytes().replace(b"qianyan_detector", b"another_detector"))
    with pytest.raises(ConfigError, match="another_detector"):
        OnnxDetector(foreign)


def test_onnx_files_run_on_the_processor_only(exported: Path) -> None:
    with pytest.raises(ConfigError, match="cpu only"):
        open_look(LookSettings(model=str(exported), device="cuda"))


def test_what_is_no_detector_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "export-onnx", "bundled", str(tmp_path / "detector.pt")]) == 2
    assert "ends in .onnx" in capsys.readouterr().err
    assert run(["models", "export-onnx", str(tmp_path), str(tmp_path / "d.onnx")]) == 2
    assert "is no detector" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
