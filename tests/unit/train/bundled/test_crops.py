"""Crops are labelled by what is inside them, and never by what nobody looked for."""

import numpy as np
import pytest
from PIL import Image

from qianyan.inputs.crops import crop_region, upper_body
from qianyan.labels.photos import LabelledBox
from qianyan.models.detector import KINDS, Kind
from qianyan.train.bundled.crops import CROP_SIDE, CropBook, colour_jitter
from qianyan.train.bundled.labelled import (
    Box,
    LabelledPicture,
    boxes_of,
    cells_of,
    contents_of,
    hazard_in,
    headgear_of,
    overlap,
)
from qianyan.train.bundled.sentences import load_questions

COLOURS: dict[Kind, tuple[int, int, int]] = {
    "fire": (255, 0, 0),
    "smoke": (0, 0, 255),
    "person": (0, 170, 0),
    "helmet": (255, 255, 0),
    "head": (255, 0, 255),
}


def picture(
    *boxes: tuple[Kind, Box],
    looked_for: frozenset[Kind] = frozenset(KINDS),
    decoys: tuple[Box, ...] = (),
) -> LabelledPicture:
    """Paint every labelled box in its kind's colour on black."""
    image = Image.new("RGB", (200, 160))
    for kind, box in boxes:
        image.paste(COLOURS[kind], tuple(int(edge) for edge in box))
    labelled = tuple(LabelledBox(kind, box) for kind, box in boxes)
    return LabelledPicture(image, labelled, looked_for, decoys)


SCENES = [
    picture(("fire", (20, 20, 60, 60))),
    picture(("smoke", (100, 30, 190, 120))),
    picture(("fire", (50, 80, 100, 140)), ("smoke", (50, 20, 110, 110))),
    picture(("person", (30, 20, 70, 150)), ("helmet", (40, 20, 60, 45))),
    picture(("person", (90, 20, 130, 150)), ("head", (100, 22, 120, 44))),
    picture(("person", (90, 20, 130, 150))),
    picture(decoys=((10, 10, 50, 50),)),
]


def book(*, seed: int = 0, spoil: bool = False) -> CropBook:
    return CropBook(SCENES, np.random.default_rng(seed), spoil=spoil)


def share_of(pixels: np.ndarray, kind: Kind) -> float:
    """Measure how much of a crop has a kind's colour."""
    return float((np.abs(pixels.astype(int) - COLOURS[kind]).sum(axis=2) < 120).mean())


@pytest.mark.parametrize(("meaning", "kind"), [("fire", "fire"), ("smoke", "smoke")])
def test_a_hazard_crop_shows_the_hazard_it_is_labelled_with(meaning: str, kind: Kind) -> None:
    drawn = book()
    for _ in range(30):
        crop = drawn.hazard(meaning)
        assert crop.pixels.shape == (CROP_SIDE, CROP_SIDE, 3)
        if crop.meaning == meaning:
            assert share_of(crop.pixels, kind) > 0.03


def test_a_crop_of_both_shows_both() -> None:
    drawn = book()
    crops = [crop for _ in range(30) if (crop := drawn.hazard("both")).meaning == "both"]
    assert len(crops) > 20
    assert all(share_of(crop.pixels, "smoke") > 0.02 for crop in crops)


def test_a_look_alike_crop_shows_no_hazard() -> None:
    drawn = book()
    for _ in range(40):
        crop = drawn.hazard("look_alike")
        assert crop.meaning == "look_alike"
        assert share_of(crop.pixels, "fire") < 0.02
        assert share_of(crop.pixels, "smoke") < 0.02


@pytest.mark.parametrize(("meaning", "kind"), [("helmet", "helmet"), ("no_helmet", "head")])
def test_a_head_crop_shows_the_headgear_it_is_labelled_with(meaning: str, kind: Kind) -> None:
    drawn = book()
    for _ in range(30):
        crop = drawn.head(meaning)
        assert crop.meaning == meaning
        assert share_of(crop.pixels, kind) > 0.01


def test_a_crop_that_is_no_person_shows_none() -> None:
    drawn = book()
    for _ in range(40):
        crop = drawn.head("not_a_person")
        assert max(share_of(crop.pixels, kind) for kind in ("person", "helmet", "head")) < 0.02


def test_an_unreadable_crop_is_dark_or_has_no_detail() -> None:
    drawn = book()
    for _ in range(20):
        crop = drawn.hazard("uncertain")
        assert crop.meaning == "uncertain"
        steps = np.abs(np.diff(crop.pixels.astype(int), axis=1))
        assert crop.pixels.max() < 20 or steps.max() < 60


def test_severity_follows_the_share_that_the_hazard_covers() -> None:
    drawn = book(seed=4)
    shares: dict[str, list[float]] = {}
    for _ in range(120):
        crop = drawn.severity()
        share = max(share_of(crop.pixels, "fire"), share_of(crop.pixels, "smoke"))
        shares.setdefault(crop.meaning, []).append(share)
    assert set(shares) == set(load_questions()["severity"].options.values())
    assert np.mean(shares["minor"]) < np.mean(shares["moderate"]) < np.mean(shares["severe"])


def test_kinds_that_nobody_looked_for_are_unknown_in_the_cells() -> None:
    scene = picture(("fire", (0, 0, 100, 160)), looked_for=frozenset({"fire"}))
    cells = cells_of(scene, (0, 0, 200, 160))
    assert np.isnan(cells[KINDS.index("smoke")]).all()
    np.testing.assert_allclose(cells[KINDS.index("fire")], [[1, 1, 0, 0]] * 4)


def test_crops_are_never_negatives_of_a_kind_that_nobody_looked_for() -> None:
    unlabelled = picture(("person", (0, 0, 200, 160)), looked_for=frozenset({"person"}))
    drawn = CropBook([unlabelled, SCENES[6]], np.random.default_rng(0), spoil=False)
    assert drawn.free_of_hazard == [1]
    for _ in range(20):
        assert share_of(drawn.hazard("look_alike").pixels, "person") == 0


def test_the_hazards_of_a_region_are_those_mostly_inside_it() -> None:
    scene = SCENES[2]
    assert hazard_in(scene, (40, 10, 120, 150)) == "both"
    assert hazard_in(scene, (50, 20, 110, 60)) == "smoke"
    assert hazard_in(scene, (150, 0, 200, 50)) == "nothing"


def test_a_persons_headgear_is_that_of_the_head_at_the_top() -> None:
    assert headgear_of(SCENES[3], (30, 20, 70, 150)) == "helmet"
    assert headgear_of(SCENES[4], (90, 20, 130, 150)) == "no_helmet"
    assert headgear_of(SCENES[5], (90, 20, 130, 150)) == "uncertain"


def test_a_picture_of_people_nobody_labelled_gets_no_description() -> None:
    assert contents_of(picture(looked_for=frozenset({"fire", "smoke"}))) is None
    assert contents_of(SCENES[5]) is None  # a person, but nobody knows about the head
    told = contents_of(SCENES[3])
    assert told is not None
    assert (told.helmets, told.bare_heads, told.fire) == (1, 0, False)


def test_the_same_seed_draws_the_same_crops() -> None:
    one, other = book(seed=7, spoil=True), book(seed=7, spoil=True)
    for _ in range(10):
        np.testing.assert_array_equal(one.hazard("fire").pixels, other.hazard("fire").pixels)


def test_colour_jitter_keeps_shape_and_kind_and_changes_pixels() -> None:
    batch = np.stack([book().hazard("fire").pixels] * 4)
    changed = colour_jitter(batch, np.random.default_rng(0))
    assert (changed.shape, changed.dtype) == (batch.shape, np.uint8)
    assert not np.array_equal(changed, batch)


def test_the_upper_body_lies_at_the_top_of_the_person() -> None:
    box = upper_body((10, 20, 50, 120))
    assert box == (10, 20, 50, 60)
    region = crop_region(box, (200, 160))
    assert overlap(box, region) == 40 * 40


def test_boxes_are_listed_by_kind() -> None:
    assert boxes_of(SCENES[3], "helmet") == [(40, 20, 60, 45)]
