"""The detector's files, its geometry, and what it proposes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from qianyan.errors import CheckpointError, ConfigError
from qianyan.models.boxes import box_overlap, suppress
from qianyan.models.detector import (
    KINDS,
    Detector,
    DetectorConfig,
    cell_centres,
    fit_square,
    load_detector,
    normalise,
    save_detector,
)

TINY = DetectorConfig(image_size=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), neck_width=24)


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(3)
    made = Detector(TINY)
    for module in made.modules():  # a fresh network's output hardly depends on the picture
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return made.eval()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def test_one_prediction_per_cell(detector: Detector):
    raw = detector(normalise(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)))
    cells = 8 * 8 + 4 * 4 + 2 * 2
    assert raw.kind_logits.shape == (2, cells, len(KINDS))
    assert raw.boxes.shape == (2, cells, 4)
    assert raw.scene_logits.shape == (2, len(KINDS))


def test_boxes_contain_the_centre_of_their_cell(detector: Detector):
    raw = detector(normalise(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)))
    centres, _ = cell_centres(64)
    assert (raw.boxes[0, :, :2] < centres).all()
    assert (raw.boxes[0, :, 2:] > centres).all()


def test_proposals_lie_inside_the_picture_best_first(detector: Detector, picture: np.ndarray):
    found = detector.propose(picture, threshold=0.0)
    assert len(found) > len(KINDS)
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    json.dumps([proposal.box for proposal in found])  # plain numbers, fit for a results file
    for proposal in found:
        x1, y1, x2, y2 = proposal.box
        assert 0 <= x1 < x2 <= 120
        assert 0 <= y1 < y2 <= 90
        assert 0 <= proposal.score <= 1


def test_boxes_of_one_kind_hardly_overlap(detector: Detector, picture: np.ndarray):
    found = [p for p in detector.propose(picture, threshold=0.0) if p.kind == "fire"]
    boxes = torch.tensor([p.box for p in found])
    assert (box_overlap(boxes, boxes) - torch.eye(len(found))).max() <= 0.5 + 1e-5


def test_a_higher_threshold_proposes_a_subset(detector: Detector, picture: np.ndarray):
    everything = detector.propose(picture, threshold=0.0)
    limit = everything[len(everything) // 2].score
    fewer = detector.propose(picture, threshold=limit)
    assert 0 < len(fewer) < len(everything)
    assert all(p.score >= limit for p in fewer)


def test_each_kind_may_have_its_own_threshold(detector: Detector, picture: np.ndarray):
    limits = dict.fromkeys(KINDS, 1.1) | {"smoke": 0.0}
    assert {p.kind for p in detector.propose(picture, threshold=limits)} == {"smoke"}


def test_an_exported_model_reloads_and_proposes_the_same(
    tmp_path, detector: Detector, picture: np.ndarray
):
    """Weights are stored in half precision: what was loaded, saved and loaded again is equal."""
    save_detector(detector, tmp_path / "first")
    once = load_detector(tmp_path / "first")
    save_detector(once, tmp_path / "second")
    twice = load_detector(tmp_path / "second")
    assert once.propose(picture, threshold=0.0) == twice.propose(picture, threshold=0.0)
    assert not twice.training
    assert next(twice.parameters()).dtype == torch.float32
    assert once.config == detector.config


def test_half_precision_hardly_changes_the_scores(tmp_path, detector: Detector):
    save_detector(detector, tmp_path)
    pixels = normalise(torch.randint(0, 255, (1, 64, 64, 3), dtype=torch.uint8))
    exact, rounded = detector(pixels), load_detector(tmp_path)(pixels)
    torch.testing.assert_close(exact.kind_logits, rounded.kind_logits, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((60, 80), (80 / 64, 60 / 64)),
        ((20, 100), (100 / 64, 50 / 64)),
        ((100, 20), (50 / 64, 100 / 64)),
    ],
)
def test_long_pictures_are_padded_to_two_to_one(shape, scales):
    square, view = fit_square(np.full((*shape, 3), 200, dtype=np.uint8), 64)
    assert square.shape == (64, 64, 3)
    assert (view.scale_x, view.scale_y) == pytest.approx(scales)
    assert view.to_picture(torch.tensor([[0, 0, 64, 64.0]])).tolist() == [
        [0, 0, shape[1], shape[0]]
    ]


def test_what_lies_in_the_padding_is_not_proposed(detector: Detector):
    """Every cell scores above zero, yet none of the padding's cells becomes a flat box."""
    found = detector.propose(np.zeros((12, 120, 3), dtype=np.uint8), threshold=0.0)
    assert found
    for proposal in found:
        x1, y1, x2, y2 = proposal.box
        assert x2 - x1 >= 1
        assert 1 <= y2 - y1 <= 12


def test_suppression_keeps_the_best_of_each_heap():
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [0, 0, 10, 9.0]])
    assert suppress(boxes).tolist() == [0, 2]
    assert suppress(torch.zeros(0, 4)).tolist() == []


def test_a_part_of_the_same_flame_is_suppressed_but_not_a_person_before_another():
    boxes = torch.tensor([[0, 0, 20, 20], [2, 2, 8, 8.0]])
    assert suppress(boxes, cover_limit=0.7).tolist() == [0]
    assert suppress(boxes).tolist() == [0, 1]


def test_weak_flames_beside_a_sure_one_are_left_out(detector: Detector, picture: np.ndarray):
    scores = [p.score for p in detector.propose(picture, threshold=0.0) if p.kind == "fire"]
    assert min(scores) >= 0.6 * max(scores)


def test_looking_at_another_size_is_what_a_detector_made_for_it_does(
    detector: Detector, picture: np.ndarray
):
    larger = Detector(replace(detector.config, image_size=160)).eval()
    larger.load_state_dict(detector.state_dict())
    expected = larger.propose(picture, threshold=0.0)
    moved = Detector(detector.config).eval()
    moved.load_state_dict(detector.state_dict())
    moved.look_at(160)
    assert moved.propose(picture, threshold=0.0) == expected


def test_a_size_that_the_network_cannot_halve_is_refused():
    with pytest.raises(ConfigError, match="image_size is 100"):
        DetectorConfig(image_size=100)


def test_thresholds_must_name_every_kind():
    with pytest.raises(ConfigError, match="thresholds"):
        DetectorConfig(thresholds={"fire": 0.5})


def test_a_folder_without_a_model_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="No detector"):
        load_detector(tmp_path)


def test_another_models_config_is_refused(tmp_path, detector: Detector):
    save_detector(detector, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(ConfigError, match="qwen2_5_vl"):
        load_detector(tmp_path)


def test_an_incomplete_config_names_what_is_missing(tmp_path, detector: Detector):
    save_detector(detector, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["neck_width"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="neck_width"):
        load_detector(tmp_path)


def test_tensors_of_another_size_are_a_checkpoint_error(tmp_path, detector: Detector):
    save_detector(detector, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"neck_width": 48}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_detector(tmp_path)


def test_several_pictures_in_one_pass_have_the_proposals_of_each_alone(detector: Detector):
    random = np.random.default_rng(6)
    sizes = ((90, 120), (64, 64), (40, 200))
    pictures = [random.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    together = detector.propose_together([detector.fit(one) for one in pictures], threshold=0.3)
    for picture, found in zip(pictures, together, strict=True):
        alone = detector.propose(picture, threshold=0.3)
        assert [one.kind for one in found] == [one.kind for one in alone]
        for one, other in zip(found, alone, strict=True):
            assert one.box == pytest.approx(other.box, abs=1e-3)
            assert one.score == pytest.approx(other.score, abs=1e-5)


def test_a_calibrated_score_is_a_share_that_grows_with_the_score():
    config = replace(TINY, calibration={**TINY.calibration, "fire": (2.0, -0.5)})
    shares = [config.probability("fire", score) for score in (0.0, 0.3, 0.5, 0.9, 1.0)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    assert shares[2] == pytest.approx(1 / (1 + np.exp(0.5)))
    assert config.probability("smoke", 0.3) == pytest.approx(0.3), "uncalibrated: the score itself"


def test_calibration_is_saved_and_may_be_missing(tmp_path, detector: Detector):
    detector.config = replace(TINY, calibration={**TINY.calibration, "head": (1.5, -2.0)})
    save_detector(detector, tmp_path)
    assert load_detector(tmp_path).config == detector.config
    config = json.loads((tmp_path / "config.json").read_text())
    del config["calibration"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_detector(tmp_path).config == TINY


@pytest.mark.parametrize(
    "calibration",
    [{"fire": [1, 0]}, {key: [-1, 0] for key in KINDS}, {key: [1] for key in KINDS}, 3, [1, 2]],
    ids=str,
)
def test_a_calibration_that_is_none_is_refused(tmp_path, detector: Detector, calibration: object):
    save_detector(detector, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "calibration": calibration}))
    with pytest.raises(ConfigError, match="calibration"):
        load_detector(tmp_path)
