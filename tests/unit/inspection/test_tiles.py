"""A detector that looks at the parts of a large photo as well: nothing twice, nothing cut off."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from qianyan.errors import ConfigError
from qianyan.inputs.images import Photo
from qianyan.inspection.inspector import LookSettings, open_look
from qianyan.inspection.tiles import OVERLAP, propose_in_tiles, tile_regions
from qianyan.models.detector import Proposal

Look = Callable[[NDArray[np.uint8]], Sequence[Proposal]]


def whites(*, least: float) -> Look:
    """Propose the one white thing of a picture, unless it is too small beside the picture."""

    def propose(rgb: NDArray[np.uint8]) -> list[Proposal]:
        rows, columns = np.nonzero(rgb[..., 0] == 255)
        if rows.size == 0:
            return []
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        share = (box[2] - box[0]) / rgb.shape[1]
        return [Proposal("head", tuple(map(float, box)), 0.5 + share)] if share >= least else []

    return propose


def picture(box: tuple[int, int, int, int], size: tuple[int, int] = (600, 800)) -> np.ndarray:
    rgb = np.full((*size, 3), 90, np.uint8)
    rgb[box[1] : box[3], box[0] : box[2]] = 255
    return rgb


@given(st.integers(330, 5000), st.integers(1, 5000), st.integers(2, 4))
def test_parts_cover_the_photo_and_overlap(width: int, height: int, num_tiles: int) -> None:
    regions = tile_regions((width, height), num_tiles, seen_side=320)
    assert len(regions) == num_tiles * (num_tiles if height > 320 else 1)
    columns = sorted({(x1, x2) for x1, _, x2, _ in regions})
    assert (columns[0][0], columns[-1][1]) == (0, width)
    for (_, end), (start, stop) in pairwise(columns):
        assert end - start >= OVERLAP * (stop - start) - 2
    assert all(0 <= y1 < y2 <= height for _, y1, _, y2 in regions)


def test_a_photo_no_larger_than_the_detector_sees_is_looked_at_whole() -> None:
    assert tile_regions((320, 200), 3, seen_side=320) == []
    assert tile_regions((4000, 3000), 1, seen_side=320) == []


@pytest.mark.parametrize("place", [(30, 20), (390, 280), (700, 500)], ids=str)
def test_what_is_too_small_in_the_whole_is_found_in_a_part_and_once(
    place: tuple[int, int],
) -> None:
    x, y = place
    rgb = picture((x, y, x + 40, y + 40))
    look = whites(least=0.08)
    assert look(rgb) == []
    (found,) = propose_in_tiles(look, rgb, 2, seen_side=320)
    assert found.box == (x, y, x + 40, y + 40)


def test_what_is_too_large_for_a_part_stays_as_the_whole_shows_it() -> None:
    rgb = picture((100, 100, 700, 500))
    (found,) = propose_in_tiles(whites(least=0.0), rgb, 2, seen_side=320)
    assert found.box == (100, 100, 700, 500), "its halves are cut off and left out"


def test_the_surer_of_two_looks_at_one_thing_stays() -> None:
    rgb = picture((40, 40, 120, 120))
    (found,) = propose_in_tiles(whites(least=0.0), rgb, 2, seen_side=320)
    assert found.score > 0.5 + 80 / 800


def test_tiles_are_a_setting_of_whoever_lets_a_detector_look(tiny_pair: Path) -> None:
    photo = Photo(Image.new("RGB", (300, 200), (200, 90, 0)))
    settings = {"model": str(tiny_pair), "look": "detector", "max_objects": 10}
    once, more = (
        open_look(LookSettings.from_options({**settings, "tiles": n})).look(photo) for n in (1, 2)
    )
    assert once.detections
    assert more.detections != once.detections
    assert LookSettings(tiles=2).for_resume() != LookSettings().for_resume()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"tiles": 5}, "expected 1 to 4"), ({"tiles": 0}, "expected 1 to 4")],
    ids=str,
)
def test_parts_that_there_are_not_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LookSettings.from_options(settings)


def test_who_lists_has_no_parts() -> None:
    with pytest.raises(ConfigError, match="no detector looks"):
        open_look(LookSettings(base_url="http://h/v1", model="qwen2.5-vl", tiles=2))
