"""Decoys are proposals where the labels rule the subject out, and only those."""

from pathlib import Path

import numpy as np
from PIL import Image

from qianyan.labels.photos import LabelledBox
from qianyan.models.detector import KINDS, Kind, Proposal
from qianyan.train.bundled.crops import CropBook
from qianyan.train.bundled.decoys import DECOYS_FILE, find_decoys, read_decoys
from qianyan.train.bundled.labelled import LabelledPicture

ALL = frozenset(KINDS)


def picture(
    *boxes: LabelledBox,
    looked_for: frozenset[Kind] = ALL,
    decoys: tuple[tuple[float, float, float, float], ...] = (),
) -> LabelledPicture:
    return LabelledPicture(Image.new("RGB", (200, 150)), boxes, looked_for, decoys)


def propose(rgb: np.ndarray) -> list[Proposal]:
    assert rgb.shape == (150, 200, 3)
    return [
        Proposal("fire", (10, 10, 40, 40), 0.3),
        Proposal("smoke", (100, 20, 180, 90), 0.6),
        Proposal("helmet", (60, 100, 80, 120), 0.2),
    ]


def test_proposals_without_a_labelled_subject_are_decoys_likeliest_first() -> None:
    fire = LabelledBox("fire", (5, 5, 45, 45))
    assert find_decoys(picture(fire), propose) == ((100, 20, 180, 90), (60, 100, 80, 120))


def test_a_proposal_on_the_other_hazard_is_no_decoy() -> None:
    smoke = LabelledBox("smoke", (10, 10, 30, 30))
    assert (10, 10, 40, 40) not in find_decoys(picture(smoke), propose)


def test_kinds_that_nobody_looked_for_give_no_decoys() -> None:
    fire = LabelledBox("fire", (150, 100, 190, 140))
    known = picture(fire, looked_for=frozenset({"fire"}))
    assert find_decoys(known, propose) == ()
    checked = picture(looked_for=frozenset({"fire", "smoke"}))
    assert find_decoys(checked, propose) == ((100, 20, 180, 90), (10, 10, 40, 40))


def test_a_proposed_person_is_looked_at_from_the_top() -> None:
    found = find_decoys(picture(), lambda _: [Proposal("person", (50, 20, 90, 120), 0.5)])
    assert found == ((50, 20, 90, 60),)


def test_a_run_without_mined_decoys_has_none(tmp_path: Path) -> None:
    assert read_decoys(tmp_path) == {}
    (tmp_path / DECOYS_FILE).write_text('{"a.jpg": [[1, 2, 3, 4]]}', encoding="utf-8")
    assert read_decoys(tmp_path) == {"a.jpg": ((1, 2, 3, 4),)}


def test_decoys_are_drawn_as_crops_without_the_subject() -> None:
    pixels = np.zeros((150, 200, 3), np.uint8)
    pixels[30:60, 100:130] = 255
    lamp = LabelledPicture(Image.fromarray(pixels), (), ALL, ((100, 30, 130, 60),))
    book = CropBook([lamp, picture()], np.random.default_rng(0), spoil=False)
    crops = [book.hazard("look_alike") for _ in range(40)]
    centred = [crop for crop in crops if crop.pixels[56, 56].min() > 200]
    assert {crop.meaning for crop in crops} == {"look_alike"}
    assert len(centred) >= 10
