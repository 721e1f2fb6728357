"""Which photos a training shows how often, and how they are changed before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qianyan.cli import run
from qianyan.errors import CheckpointError, ConfigError
from qianyan.labels.photos import LabelledBox, LabelledPhoto
from qianyan.models.detector import (
    KINDS,
    Detector,
    DetectorConfig,
    Kind,
    Proposal,
    load_detector,
    save_detector,
)
from qianyan.train.bundled.augment import FAR, Pixels, Sample, crop
from qianyan.train.bundled.detector import DetectorRecipe, DetectorTraining
from qianyan.train.bundled.samples import Mix, SampleSource
from qianyan.train.bundled.scene_store import draw_chunk

Proposals = Callable[[Pixels], list[Proposal]]
TINY = DetectorConfig(image_size=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), neck_width=24)
SIDE = 96
BOX = (24.0, 24.0, 72.0, 72.0)


def photo(folder: Path, level: int, *kinds: Kind, labelled: frozenset[Kind]) -> LabelledPhoto:
    """A photo of one grey; what it shows lies in its middle."""
    path = folder / f"{level}.png"
    Image.new("RGB", (SIDE, SIDE), (level,) * 3).save(path)
    boxes = tuple(LabelledBox(kind, BOX) for kind in kinds)
    return LabelledPhoto(path, SIDE, SIDE, labelled, boxes)


@pytest.fixture
def photos(tmp_path: Path) -> list[LabelledPhoto]:
    everything = frozenset(KINDS)
    return [
        photo(tmp_path, 40, "fire", labelled=everything),
        photo(tmp_path, 80, "person", labelled=everything),
        photo(tmp_path, 120, "person", labelled=frozenset({"person"})),
        photo(tmp_path, 160, labelled=everything),
    ]


def source(photos: list[LabelledPhoto], folder: Path, mix: Mix) -> SampleSource:
    return SampleSource(photos, folder / "no-scenes", drawn_share=0.0, mix=mix)


def always_fire(_: Pixels) -> list[Proposal]:
    return [Proposal("fire", BOX, 0.8), Proposal("fire", BOX, 0.3)]


def test_photos_with_what_is_not_there_are_shown_oftener(
    photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    taught = source(photos, tmp_path, Mix(hard=2.0))
    before = taught.chances.copy()
    assert taught.mine(always_fire) == 2
    gain = taught.chances / before
    fire, person, unknown, nothing = gain / gain[0]
    assert (fire, unknown) == (1.0, pytest.approx(1.0)), "there, or nobody looked for it"
    assert (person, nothing) == (pytest.approx(2.6), pytest.approx(2.6)), "1 + 2 x 0.8"
    assert taught.chances.sum() == pytest.approx(1.0)
    assert taught.is_mined


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn scenes, few in a chunk."""
    folder = tmp_path_factory.mktemp("drawn")
    for chunk in range(2):
        draw_chunk(folder, chunk, count=6)
    return folder


def misled_by_one(chunk: int, index: int, kind: Kind, mined: SampleSource) -> Proposals:
    """A detector that is sure of one thing in one corner of one scene."""
    wrong = np.asarray(mined.scenes[chunk].pictures[index])

    def propose(rgb: Pixels) -> list[Proposal]:
        is_it = rgb.shape == wrong.shape and np.array_equal(rgb, wrong)
        return [Proposal(kind, (0.0, 0.0, 3.0, 3.0), 0.9)] if is_it else []

    return propose


def drawn_pictures(source: SampleSource, count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [source._draw_scene(rng).rgb.tobytes() for _ in range(count)]


def test_a_drawn_scene_with_what_is_not_there_is_shown_oftener(scenes: Path) -> None:
    mined = SampleSource([], scenes, drawn_share=1.0, mix=Mix(hard=10.0))
    assert mined.mine(misled_by_one(1, 3, "fire", mined)) == 1
    wrong = np.asarray(mined.scenes[1].pictures[3]).tobytes()
    shown = drawn_pictures(mined, 600)
    assert shown.count(wrong) / 600 == pytest.approx(10 / 21, abs=0.07), "1 + 10 x 0.9 of 12 + 9"
    assert len(set(shown)) == 12, "no other goes missing"
    other = next(one for one in set(shown) if one != wrong)
    assert shown.count(other) / 600 == pytest.approx(1 / 21, abs=0.03)


def test_only_what_lies_where_nothing_of_its_kind_is_was_wrong(scenes: Path) -> None:
    mined = SampleSource([], scenes, drawn_share=1.0, mix=Mix(hard=2.0))
    labels = {
        np.asarray(rgb).tobytes(): boxes
        for chunk in mined.scenes
        for rgb, boxes in zip(chunk.pictures, chunk.boxes, strict=True)
    }
    assert any(labels.values())

    def right(rgb: Pixels) -> list[Proposal]:
        return [Proposal(box.kind, box.box, 0.9) for box in labels[rgb.tobytes()]]

    assert mined.mine(right) == 0
    assert not any(scores.any() for scores in mined.false_in_scenes)

    def swapped(rgb: Pixels) -> list[Proposal]:
        heads: dict[Kind, Kind] = {"helmet": "head", "head": "helmet"}
        return [Proposal(heads.get(one.kind, one.kind), one.box, one.score) for one in right(rgb)]

    is_head = [any(box.kind in ("head", "helmet") for box in boxes) for boxes in labels.values()]
    assert 0 < mined.mine(swapped) <= sum(is_head), "a hat taken for a bare head is not there"


def test_mined_scenes_are_the_same_when_a_training_goes_on(
    photos: list[LabelledPhoto], scenes: Path
) -> None:
    """And before anything is mined, `hard` changes nothing."""

    def begin(hard: float) -> SampleSource:
        return SampleSource(photos, scenes, drawn_share=0.6, mix=Mix(hard=hard))

    def batch(source: SampleSource, step: int) -> torch.Tensor:
        pictures, _ = source.batch(np.random.default_rng([7, step]), 8, 64)
        return pictures

    first, resumed, unmined = begin(5.0), begin(5.0), begin(0.0)
    for step in range(3):
        assert torch.equal(batch(first, step), batch(unmined, step))
    for source in (first, resumed):
        source.mine(misled_by_one(0, 2, "smoke", source))
    for step in range(3, 6):
        assert torch.equal(batch(first, step), batch(resumed, step))
    assert not all(torch.equal(batch(first, step), batch(unmined, step)) for step in range(3, 6))


def test_scenes_that_are_drawn_after_the_mining_are_shown_too(tmp_path: Path) -> None:
    draw_chunk(tmp_path, 0, count=2)
    mined = SampleSource([], tmp_path, drawn_share=1.0, mix=Mix(hard=4.0))
    mined.mine(misled_by_one(0, 0, "fire", mined))
    draw_chunk(tmp_path, 1, count=2)
    mined.refresh_scenes()
    later = {np.asarray(one).tobytes() for one in mined.scenes[1].pictures}
    assert later & set(drawn_pictures(mined, 100))


def test_a_far_picture_shows_things_at_half_their_size_or_less() -> None:
    rgb = np.full((SIDE, SIDE, 3), 200, np.uint8)
    sample = Sample(rgb, (LabelledBox("person", BOX),), frozenset(KINDS))
    for seed in range(20):
        far = crop(np.random.default_rng(seed), sample, 96, chance=1.0, is_far=True)
        (person,) = far.boxes
        wide = person.box[2] - person.box[0]
        assert 48 / FAR[1] - 1e-3 <= wide <= 48 / FAR[0] + 1e-3
        assert 0 <= person.box[0] < person.box[2] <= 96
        x1, y1, x2, y2 = (round(edge) for edge in person.box)
        assert abs(far.rgb[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].astype(int) - 200).mean() < 12


def test_only_people_are_shown_from_far(photos: list[LabelledPhoto], tmp_path: Path) -> None:
    mix = Mix(mosaic=0.0, paste_fire=0.0, paste_head=0.0, far=1.0)
    taught = source(photos[:2], tmp_path, mix)
    _, targets = taught.batch(np.random.default_rng(1), 24, 96)
    wide = targets.boxes[..., 2] - targets.boxes[..., 0]
    fire, person = (targets.kinds == KINDS.index(kind) for kind in ("fire", "person"))
    assert wide[person].max() <= 24 + 1e-3
    assert wide[fire].max() > 30


def test_chances_of_nothing_leave_photos_whole(photos: list[LabelledPhoto], tmp_path: Path) -> None:
    taught = source(photos[:1], tmp_path, Mix(mosaic=0.0, paste_fire=0.0, paste_head=0.0))
    pictures, targets = taught.batch(np.random.default_rng(3), 8, 64)
    assert pictures.shape == (8, 3, 64, 64)
    assert targets.boxes.shape[1] == 1, "no second photo joined, nothing pasted"


@pytest.mark.parametrize("wrong", [{"mosaic": 1.2}, {"far": -0.1}, {"hard": 99.0}], ids=str)
def test_a_mix_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Mix(**wrong)


def test_a_run_mines_once_when_its_share_has_come(
    photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    recipe = DetectorRecipe(
        minutes=1, steps=4, batch=2, warm_up_steps=1, config=TINY, mix=Mix(hard=3.0), mined_from=0.5
    )
    taught = source(photos, tmp_path, recipe.mix)
    training = DetectorTraining(recipe, taught, tmp_path / "run")
    mined: list[int] = []
    training.mine = lambda: (mined.append(training.progress.step), taught.mine(always_fire))
    training.run(lambda _: "", on_save=lambda: None)
    assert mined == [2]
    unmined = DetectorTraining(
        replace(recipe, mix=Mix()), source(photos, tmp_path, Mix()), tmp_path / "other"
    )
    unmined.run(lambda _: "", on_save=lambda: None)
    assert not unmined.source.is_mined


def test_what_a_detector_is_sure_of_is_mined_with_its_average(
    photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    taught = source(photos, tmp_path, Mix(hard=3.0))
    recipe = DetectorRecipe(minutes=1, config=TINY, mix=taught.mix)
    training = DetectorTraining(recipe, taught, tmp_path / "run")
    torch.nn.init.constant_(training.average.heads[2].kind_out.bias, 3.0)
    training.average.scene.bias.data.fill_(3.0)
    training.mine()
    assert taught.is_mined
    assert taught.chances[3] > taught.weights[3] / taught.weights.sum()


def test_a_training_starts_from_another_size_but_not_from_other_widths(
    photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    first = Detector(TINY)
    save_detector(first, tmp_path / "first")
    recipe = DetectorRecipe(minutes=1, config=replace(TINY, image_size=96))
    taught = source(photos, tmp_path, Mix())
    training = DetectorTraining(recipe, taught, tmp_path / "run")
    training.start_from(load_detector(tmp_path / "first"))
    for name, value in training.average.state_dict().items():
        assert torch.equal(value, training.detector.state_dict()[name])
        assert torch.allclose(value.float(), first.state_dict()[name].float(), atol=1e-3), name
    assert training.detector.config.image_size == 96
    other = Detector(replace(TINY, neck_width=48))
    with pytest.raises(CheckpointError, match="other widths"):
        training.start_from(other)


def test_the_verb_refuses_what_is_no_detector_before_it_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "detector", "--photos", str(tmp_path), "--run", str(tmp_path / "run")]
    assert run([*command, "--start", str(tmp_path)]) == 2
    assert "is no detector of ours" in capsys.readouterr().err
    assert run([*command, "--size", "100"]) == 2
    assert "multiple of 32" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
