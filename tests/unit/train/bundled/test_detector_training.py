"""Batches follow from seed and step, losses mean something, and runs resume where they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qianyan.errors import CheckpointError, ConfigError
from qianyan.labels.photos import LabelledBox
from qianyan.models.detector import KINDS, Detector, DetectorConfig, cell_centres, normalise
from qianyan.train.bundled.augment import Sample, crop, paste_fire, paste_head
from qianyan.train.bundled.detector import DetectorRecipe, DetectorTraining, calibrate, propose_all
from qianyan.train.bundled.detector_loss import Targets, assign_cells, complete_iou, detector_loss
from qianyan.train.bundled.detector_scores import (
    Judged,
    alarm_rate,
    box_score,
    choose_thresholds,
    head_score,
    threshold_for,
)
from qianyan.train.bundled.samples import SampleSource, make_targets
from qianyan.train.bundled.scene_store import draw_chunk

TINY = DetectorConfig(image_size=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), neck_width=24)
RECIPE = DetectorRecipe(minutes=1, steps=6, batch=2, warm_up_steps=2, config=TINY)


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    draw_chunk(folder, 0, count=6)
    return folder


@pytest.fixture
def source(scene_folder) -> SampleSource:
    return SampleSource([], scene_folder, drawn_share=1.0)


def take(training: DetectorTraining, steps: int) -> list[float]:
    training.detector.train()
    batches = training.batches()
    losses = [training.step(*next(batches)) for _ in range(steps)]
    batches.close()
    return losses


def square_sample(box=(30.0, 20.0, 70.0, 60.0), size=100, kind="fire") -> Sample:
    """A grey picture with a white rectangle, which is the label."""
    rgb = np.full((size, size, 3), 90, dtype=np.uint8)
    x1, y1, x2, y2 = (int(v) for v in box)
    rgb[y1:y2, x1:x2] = 255
    return Sample(rgb, (LabelledBox(kind, box),), frozenset(KINDS))


def test_a_batch_follows_from_seed_and_step(source: SampleSource):
    first, _ = source.batch(np.random.default_rng([0, 4]), 3, 64)
    again, _ = source.batch(np.random.default_rng([0, 4]), 3, 64)
    other, _ = source.batch(np.random.default_rng([0, 5]), 3, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_resumed_training_equals_one_that_was_not_interrupted(source: SampleSource, tmp_path):
    whole = DetectorTraining(RECIPE, source, tmp_path / "whole")
    expected = take(whole, 6)
    first = DetectorTraining(RECIPE, source, tmp_path / "run")
    losses = take(first, 3)
    first.save()
    second = DetectorTraining(replace(RECIPE, seed=0), source, tmp_path / "run")
    second.resume()
    losses += take(second, 3)
    assert losses == expected
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, second.average.state_dict()[name]), name


def test_a_training_at_several_sizes_resumes_as_it_was_and_keeps_its_own_size(
    source: SampleSource, tmp_path
):
    recipe = replace(RECIPE, sizes=(64, 96, 128))
    whole = DetectorTraining(recipe, source, tmp_path / "whole")
    expected = take(whole, 6)
    seen = [whole._make_batch(step)[0].shape[-1] for step in range(6)]
    first = DetectorTraining(recipe, source, tmp_path / "run")
    losses = take(first, 3)
    first.save()
    second = DetectorTraining(recipe, source, tmp_path / "run")
    second.resume()
    losses += take(second, 3)
    assert losses == expected
    assert len(set(seen)) > 1
    assert whole.detector.config.image_size == seen[-1]
    assert whole.average.config.image_size == 64


def test_sizes_that_the_network_cannot_look_at_are_refused():
    with pytest.raises(ConfigError, match="image_size is 100"):
        replace(RECIPE, sizes=(64, 100))


def test_a_run_ends_after_its_steps_and_leaves_a_checkpoint(source: SampleSource, tmp_path):
    training = DetectorTraining(replace(RECIPE, steps=2), source, tmp_path)
    training.run(lambda _: "", on_save=lambda: None)
    assert training.progress.step == 2
    assert (tmp_path / "last.pt").exists()


def test_a_run_by_the_clock_ends_when_its_minutes_are_over(source: SampleSource, tmp_path):
    training = DetectorTraining(replace(RECIPE, steps=None, minutes=0.01), source, tmp_path)
    training.run(lambda _: "", on_save=lambda: None)
    assert 1 <= training.progress.step < 100
    assert training.progress.elapsed_s >= 0.6


def test_resuming_without_a_checkpoint_says_so(source: SampleSource, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        DetectorTraining(RECIPE, source, tmp_path).resume()


def test_a_damaged_checkpoint_says_so(source: SampleSource, tmp_path):
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged"):
        DetectorTraining(RECIPE, source, tmp_path).resume()


def test_training_learns_one_picture_by_heart(source: SampleSource, tmp_path):
    recipe = replace(RECIPE, steps=70, learning_rate=5e-3, warm_up_steps=5)
    training = DetectorTraining(recipe, source, tmp_path)
    sample = square_sample((16.0, 16.0, 48.0, 48.0), size=64)
    pictures = normalise(torch.from_numpy(np.stack([sample.rgb] * 2)))
    targets = make_targets([sample] * 2)
    losses = [training.step(pictures, targets) for _ in range(70)]
    assert losses[-1] < 0.4 * losses[0]
    best = training.average.propose(sample.rgb, threshold=0.02)[0]
    assert best.kind == "fire"
    assert complete_iou(torch.tensor([best.box]), torch.tensor([[16.0, 16, 48, 48]])) > 0.5


def test_kinds_that_nobody_labelled_are_not_taught_as_absent():
    torch.manual_seed(0)
    detector = Detector(TINY)
    empty = Sample(np.zeros((64, 64, 3), dtype=np.uint8), (), frozenset({"fire"}))
    raw = detector(normalise(torch.from_numpy(empty.rgb[None])))
    raw.kind_logits.retain_grad()
    raw.scene_logits.retain_grad()
    detector_loss(raw, make_targets([empty]), detector.centres).backward()
    for gradient in (raw.kind_logits.grad, raw.scene_logits.grad):
        assert gradient[..., KINDS.index("fire")].abs().sum() > 0
        assert gradient[..., 1:].abs().sum() == 0


def test_the_cells_that_own_a_box_lie_inside_it():
    torch.manual_seed(0)
    detector = Detector(TINY).eval()
    raw = detector(torch.zeros(1, 3, 64, 64))
    targets = make_targets([square_sample((8.0, 8.0, 40.0, 40.0), size=64)])
    owner, score = assign_cells(raw, targets, detector.centres)
    centres, _ = cell_centres(64)
    owned = centres[owner[0] >= 0]
    assert 1 <= len(owned) <= 10
    assert ((owned > 8) & (owned < 40)).all()
    assert (score[0][owner[0] < 0] == 0).all()
    assert (score[0][owner[0] >= 0] > 0).all()


def test_a_batch_without_any_box_has_a_finite_loss():
    raw = Detector(TINY)(torch.zeros(2, 3, 64, 64))
    zeros = torch.zeros(2, len(KINDS))
    kinds = torch.full((2, 1), -1, dtype=torch.long)
    targets = Targets(torch.zeros(2, 1, 4), kinds, zeros + 1, zeros, zeros + 1)
    assert torch.isfinite(detector_loss(raw, targets, cell_centres(64)[0]))


@pytest.mark.parametrize("seed", range(12))
def test_a_crop_moves_boxes_with_the_pixels(seed: int):
    """After any crop, stretch and mirroring the white rectangle fills its box and little else."""
    sample = crop(np.random.default_rng(seed), square_sample(), 80, chance=1.0)
    assert sample.rgb.shape == (80, 80, 3)
    for each in sample.boxes:
        x1, y1, x2, y2 = (round(v) for v in each.box)
        assert 0 <= x1 < x2 <= 80
        assert 0 <= y1 < y2 <= 80
        inside = sample.rgb[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
        assert inside.size == 0 or inside.mean() > 225
        outside = sample.rgb.astype(float)
        outside[max(0, y1 - 4) : y2 + 4, max(0, x1 - 4) : x2 + 4] = 0
        assert outside.max() < 200
    assert sample.boxes or "fire" in sample.doubtful or sample.rgb.max() < 255


def test_what_a_crop_cut_off_is_neither_present_nor_absent():
    """A sliver of a person is no box, and no proof that nobody is there."""
    person = square_sample((0.0, 0.0, 100.0, 100.0), kind="person")
    cut = replace(person, boxes=(), doubtful=frozenset({"person"}))
    targets = make_targets([cut])
    index = KINDS.index("person")
    assert targets.scene_known[0, index] == 0
    assert targets.scene_known[0, KINDS.index("fire")] == 1


def test_a_pasted_flame_is_labelled_where_it_shines():
    rng = np.random.default_rng(2)
    flame = np.full((40, 30, 3), (255, 160, 40), dtype=np.uint8)
    dark = Sample(np.zeros((120, 160, 3), dtype=np.uint8), (), frozenset({"fire"}))
    pasted = paste_fire(rng, dark, flame)
    x1, y1, x2, y2 = (int(v) for v in pasted.boxes[0].box)
    assert pasted.rgb[y1:y2, x1:x2].mean() > 40
    assert pasted.rgb.sum() == pasted.rgb[y1:y2, x1:x2].sum()
    assert dark.rgb.sum() == 0


def test_a_pasted_bare_head_turns_the_helmet_label():
    sample = square_sample(kind="helmet")
    bare = paste_head(np.random.default_rng(0), sample, [np.zeros((30, 20, 3), dtype=np.uint8)])
    assert [(b.kind, b.box) for b in bare.boxes] == [("head", sample.boxes[0].box)]
    assert bare.rgb[40, 50].mean() < sample.rgb[40, 50].mean()


def judged(kind, scores, box=(0.0, 0.0, 10.0, 10.0), truth=None) -> Judged:
    from qianyan.models.detector import Proposal

    proposals = tuple(Proposal(kind, box, score) for score in scores)
    boxes = () if truth is None else (LabelledBox(truth, box),)
    return Judged(proposals, boxes, frozenset(KINDS))


def test_found_and_false_alarms_are_counted_per_picture():
    pictures = [
        judged("fire", [0.9], truth="fire"),
        judged("fire", [0.3], truth="fire"),
        judged("fire", [0.6, 0.5]),
        judged("fire", []),
        Judged((), (), frozenset()),  # nobody looked for fire here
    ]
    rate = alarm_rate(pictures, "fire", 0.5)
    assert (rate.recall, rate.false_alarms) == (0.5, 0.5)
    assert (rate.with_kind, rate.without_kind) == (2, 2)


def test_the_threshold_keeps_false_alarms_within_the_budget():
    pictures = [judged("fire", [score / 10]) for score in range(10)]
    limit = threshold_for(pictures, "fire", false_alarms=0.2)
    assert alarm_rate(pictures, "fire", limit).false_alarms <= 0.2
    assert alarm_rate(pictures, "fire", limit - 0.02).false_alarms > 0.2


def test_boxes_count_once_and_the_rest_are_false():
    score = box_score([judged("person", [0.9, 0.8], truth="person")], "person", 0.5)
    assert (score.right, score.missed, score.false) == (1, 0, 1)
    assert score.f1 == pytest.approx(2 / 3)


def test_heads_are_matched_first_and_told_apart_then():
    pictures = [judged("helmet", [0.9], truth="helmet"), judged("helmet", [0.9], truth="head")]
    score = head_score(pictures, 0.5)
    assert (score.helmets, score.helmets_found, score.helmets_right) == (1, 1, 1)
    assert (score.bare, score.bare_found, score.bare_right) == (1, 1, 0)


def test_chosen_thresholds_name_every_kind():
    pictures = [judged("person", [0.55], truth="person"), judged("person", [0.35])]
    thresholds = choose_thresholds(pictures, pictures)
    assert set(thresholds) == set(KINDS)
    assert 0.35 < thresholds["person"] <= 0.55


def test_calibration_changes_thresholds_and_nothing_else():
    torch.manual_seed(1)
    detector = Detector(TINY).eval()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    calibrate(detector, [], scenes=3)
    assert detector.config.thresholds != TINY.thresholds
    assert set(detector.config.calibration) == set(KINDS)
    told = {"thresholds": TINY.thresholds, "calibration": TINY.calibration}
    assert replace(detector.config, **told) == TINY
    assert all(torch.equal(before[n], v) for n, v in detector.state_dict().items())


def test_proposals_come_with_their_photo(shared):
    from qianyan.train.bundled.photos import read_photos

    photos = read_photos(shared / "data" / "dev", "val")[:2]
    torch.manual_seed(1)
    pairs = list(propose_all(Detector(TINY).eval(), photos, threshold=0.0))
    assert [photo for photo, _ in pairs] == photos
    assert all(proposals for _, proposals in pairs)
