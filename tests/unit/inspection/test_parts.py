"""Parts for a second look: small and doubtful findings, tiles for lost heads, never too many."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.inputs.images import smart_resize
from qianyan.inspection.parts import (
    GAIN,
    MAX_PARTS,
    SECOND_LOOK_TOKENS,
    Showing,
    choose_parts,
)
from qianyan.inspection.records import Box, Detection, Hazard, SubLabel

USUAL_TOKENS = 1280


def seen_wh(photo_wh: tuple[int, int], visual_tokens: int | None) -> tuple[int, int]:
    most = (visual_tokens or USUAL_TOKENS) * 784
    height, width = smart_resize(
        photo_wh[1], photo_wh[0], factor=28, min_pixels=min(3136, most // 4), max_pixels=most
    )
    return width, height


def count_tokens(wh: tuple[int, int]) -> int:
    return wh[0] * wh[1] // 784


def showing(width: int, height: int, tokens: int = 432, room: int = SECOND_LOOK_TOKENS) -> Showing:
    shown_wh = seen_wh((width, height), tokens)
    return Showing((width, height), shown_wh, seen_wh, count_tokens, room)


def person(x: int, y: int, width: int, height: int, **more: object) -> Detection:
    sub_label = more.pop("sub_label", SubLabel.HELMET)
    return Detection(Hazard.PERSON, sub_label, Box(x, y, x + width, y + height), **more)  # type: ignore[arg-type]


def fire(x: int, y: int, side: int, **more: object) -> Detection:
    sub_label = more.pop("sub_label", SubLabel.MINOR)
    return Detection(Hazard.FIRE, sub_label, Box(x, y, x + side, y + side), **more)  # type: ignore[arg-type]


def test_what_is_large_and_sure_is_not_looked_at_again() -> None:
    large = [fire(100, 100, 400), person(700, 100, 250, 600, score=0.9)]
    assert choose_parts(large, showing(1280, 960)) == ((), 0)


@pytest.mark.parametrize(
    "found",
    [
        fire(100, 100, 60),
        person(600, 200, 60, 180),
        fire(100, 100, 150, sub_label=SubLabel.UNCERTAIN),
        person(600, 200, 160, 200, sub_label=SubLabel.UNCERTAIN),
        fire(100, 100, 150, score=0.4),
    ],
    ids=str,
)
def test_what_is_small_or_doubtful_is_looked_at_again_with_its_surroundings(
    found: Detection,
) -> None:
    (part,), left_out = choose_parts([found], showing(1600, 1200))
    assert part.targets == (0,)
    assert part.region.overlap(found.box) == found.box.area
    assert min(part.region.width, part.region.height) >= 300
    assert left_out == 0


def test_of_a_tall_uncertain_person_the_upper_body_is_enlarged() -> None:
    tall = person(600, 100, 200, 1000, sub_label=SubLabel.UNCERTAIN)
    (part,), _ = choose_parts([tall], showing(1600, 1200))
    assert part.region.y2 < 700
    assert part.region.x1 < 600 < 800 < part.region.x2


def test_neighbours_share_a_part() -> None:
    group = [person(600 + 70 * n, 300, 50, 120) for n in range(3)]
    (part,), _ = choose_parts(group, showing(1600, 1200))
    assert sorted(part.targets) == [0, 1, 2]


def test_a_photo_shown_at_its_own_size_gains_nothing() -> None:
    doubtful = [fire(10, 10, 20, sub_label=SubLabel.UNCERTAIN)]
    assert choose_parts(doubtful, showing(560, 420)) == ((), 0)


def test_fire_comes_first_when_the_tokens_do_not_suffice_for_all() -> None:
    crowd = [person(300 * n, 100, 40, 100) for n in range(5)]
    found = [*crowd, fire(200, 900, 30)]
    parts, left_out = choose_parts(found, showing(1600, 1200, room=300))
    assert parts[0].targets == (5,)
    assert sum(count_tokens(seen_wh((p.region.width, p.region.height), 256)) for p in parts) <= 300
    assert left_out == 6 - sum(len(part.targets) for part in parts)


def test_tiles_cover_a_photo_in_which_heads_vanished_and_those_with_people_come_first() -> None:
    shown = showing(4000, 3000, room=100_000)
    parts, left_out = choose_parts([person(3500, 2500, 300, 450, score=0.9)], shown)
    tiles = [part for part in parts if part.name.startswith("tile")]
    assert len(tiles) + left_out >= 12
    assert tiles[0].region.overlap(Box(3500, 2500, 3800, 2950)) > 0
    assert all(shown.part_shrink(tile.region) <= 40 / 14 * 1.05 for tile in tiles)
    assert not any(
        part.name.startswith("tile") for part in choose_parts([], showing(1600, 1200))[0]
    )


def test_tiles_leave_no_gap() -> None:
    shown = showing(2400, 1800, tokens=128, room=100_000)
    parts, left_out = choose_parts([], shown)
    assert left_out == 0
    covered = {
        (x, y)
        for part in parts
        for x in range(0, 2400, 40)
        for y in range(0, 1800, 40)
        if part.region.x1 <= x < part.region.x2 and part.region.y1 <= y < part.region.y2
    }
    assert len(covered) == 60 * 45


boxes = st.builds(
    lambda x, y, w, h: (x, y, min(x + w, 1.0), min(y + h, 1.0)),
    st.floats(0, 0.95), st.floats(0, 0.95), st.floats(0.004, 0.9), st.floats(0.004, 0.9),
)  # fmt: skip


@given(
    width=st.integers(64, 6000),
    ratio=st.floats(0.2, 5),
    tokens=st.sampled_from([64, 128, 256, 432, 900]),
    room=st.integers(-100, 2000),
    placed=st.lists(st.tuples(st.sampled_from(list(Hazard)), boxes), max_size=12),
)
def test_parts_lie_in_the_photo_enlarge_it_and_keep_within_every_limit(
    width: int,
    ratio: float,
    tokens: int,
    room: int,
    placed: list[tuple[Hazard, tuple[float, float, float, float]]],
) -> None:
    height = max(int(width / ratio), 32)
    shown = showing(width, height, tokens, room)
    found = []
    for hazard, (x1, y1, x2, y2) in placed:
        box = Box(
            min(int(x1 * width), width - 1),
            min(int(y1 * height), height - 1),
            max(math.ceil(x2 * width), min(int(x1 * width), width - 1) + 1),
            max(math.ceil(y2 * height), min(int(y1 * height), height - 1) + 1),
        )
        found.append(Detection(hazard, SubLabel.UNCERTAIN, box))
    parts, left_out = choose_parts(found, shown)
    assert len(parts) <= MAX_PARTS
    assert left_out >= 0
    assert sum(map(shown.tokens, (part.region for part in parts))) <= max(room, 0)
    targets = [target for part in parts for target in part.targets]
    assert len(targets) == len(set(targets))
    for part in parts:
        region = part.region
        assert 0 <= region.x1 < region.x2 <= width
        assert 0 <= region.y1 < region.y2 <= height
        if part.targets:
            assert shown.part_shrink(region) * GAIN <= shown.shrink
