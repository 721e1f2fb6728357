"""Drawn scenes: the same for the same seed, and labelled as painted."""

import numpy as np
import pytest
from PIL import Image

from qianyan.train.bundled.scene_plan import SceneKind
from qianyan.train.bundled.scene_store import draw_chunk, read_chunk, scene_boxes, whole_chunks
from qianyan.train.bundled.scenes import (
    EXAMPLES,
    UNSEEN_FROM,
    draw_examples,
    draw_scene,
    severity,
    training_seed,
)

SMALL = {"width": 240, "height": 180}


def test_the_same_seed_draws_the_same_picture():
    first, second = (draw_scene(11, **SMALL) for _ in range(2))
    assert np.array_equal(first.rgb, second.rgb)
    assert first.objects == second.objects


def test_drawing_does_not_depend_on_global_random_state():
    np.random.seed(1)  # the point is that nobody listens to it
    first = draw_scene(12, **SMALL)
    np.random.seed(2)
    assert np.array_equal(first.rgb, draw_scene(12, **SMALL).rgb)


def test_different_seeds_draw_different_pictures():
    assert not np.array_equal(draw_scene(1, **SMALL).rgb, draw_scene(2, **SMALL).rgb)


@pytest.mark.parametrize("seed", range(20, 32))
def test_every_box_lies_inside_the_picture(seed: int):
    scene = draw_scene(seed, **SMALL)
    assert scene.rgb.shape == (180, 240, 3)
    assert scene.rgb.dtype == np.uint8
    for thing in scene.objects:
        for x1, y1, x2, y2 in filter(None, (thing.box, thing.head_box)):
            assert 0 <= x1 < x2 <= 240
            assert 0 <= y1 < y2 <= 180


def test_heads_belong_to_persons_and_lie_at_the_top_of_them():
    people = [o for s in range(40, 50) for o in draw_scene(s, **SMALL, kind="helmets").objects]
    assert people
    for person in people:
        assert person.kind == "person"
        assert person.head_box is not None
        middle_x = (person.head_box[0] + person.head_box[2]) / 2
        middle_y = (person.head_box[1] + person.head_box[3]) / 2
        assert person.box[0] - 2 <= middle_x <= person.box[2] + 2
        assert person.box[1] - 2 <= middle_y <= (person.box[1] + person.box[3]) / 2 + 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("clean", set()),
        ("lookalikes", set()),
        ("fire", {"fire"}),
        ("fire_and_smoke", {"fire", "smoke"}),
    ],
)
def test_a_kind_of_scene_holds_only_what_it_says(kind: SceneKind, expected: set[str]):
    seen = set()
    for seed in range(60, 66):
        seen |= {o.kind for o in draw_scene(seed, **SMALL, kind=kind).objects} - {"person"}
    assert seen == expected


def test_helmets_and_bare_heads_are_labelled_as_asked():
    for kind, label in (("helmets", "helmet"), ("bare_heads", "no_helmet")):
        labels = {o.sub_label for s in range(6) for o in draw_scene(s, **SMALL, kind=kind).objects}
        assert labels == {label}


def test_fire_changes_the_picture_where_its_box_is():
    """A fire's box holds far more orange than the same picture's rest."""
    for seed in range(70, 76):
        scene = draw_scene(seed, **SMALL, kind="fire", place="hall")
        flames = [o for o in scene.objects if o.kind == "fire"]
        assert flames
        red, _, blue = (scene.rgb[..., c].astype(int) for c in range(3))
        orange = red - blue > 90
        x1, y1, x2, y2 = (int(v) for v in flames[0].box)
        assert orange[y1:y2, x1:x2].mean() > 0.2


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 9, 10), "minor"),
        ((0, 0, 10, 10), "moderate"),
        ((0, 0, 100, 10), "moderate"),
        ((0, 0, 101, 10), "severe"),
    ],
)
def test_severity_is_the_share_of_the_picture(box: tuple[float, ...], expected: str):
    assert severity(box, width=100, height=100) == expected


def test_examples_have_seeds_that_training_never_uses():
    assert len({(r.seed, r.kind) for r in EXAMPLES}) == len(EXAMPLES) >= 8
    assert all(recipe.seed >= UNSEEN_FROM for recipe in EXAMPLES)
    assert all(training_seed(i, seed=s) < UNSEEN_FROM for i in (0, 10**7) for s in (0, 10**9))


def test_example_pictures_are_written_in_order_and_can_be_opened(tmp_path):
    paths = draw_examples(tmp_path / "photos", width=160, height=120)
    assert [path.stem for path in paths] == [recipe.name for recipe in EXAMPLES]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (160, 120)


def test_example_pictures_show_each_hazard_and_its_absence():
    found = {
        recipe.name: {
            (o.kind, o.sub_label if o.kind == "person" else "")
            for o in draw_scene(recipe.seed, kind=recipe.kind, place=recipe.place).objects
        }
        for recipe in EXAMPLES
    }
    assert found["clean-site"] == found["lookalikes-street"] == set()
    assert found["fire-hall"] == {("fire", "")}
    assert found["smoke-field"] == {("smoke", "")}
    assert found["fire-and-smoke-site"] == {("fire", ""), ("smoke", "")}
    assert found["helmets-on-site"] == {("person", "helmet")}
    assert found["helmets-off-hall"] == {("person", "no_helmet")}
    assert ("fire", "") in found["night-street"]


def test_a_stored_chunk_reads_as_it_was_drawn(tmp_path):
    draw_chunk(tmp_path, 0, count=3)
    assert whole_chunks(tmp_path) == [0]
    stored = read_chunk(tmp_path, 0)
    height, width = stored.pictures.shape[1:3]
    for index in range(3):
        scene = draw_scene(training_seed(index), width=width, height=height)
        assert np.array_equal(stored.pictures[index], scene.rgb)
        assert stored.boxes[index] == scene_boxes(scene)


def test_heads_become_boxes_of_their_own():
    scene = draw_scene(41, **SMALL, kind="helmets")
    kinds = [box.kind for box in scene_boxes(scene)]
    assert kinds.count("helmet") == kinds.count("person") == len(scene.objects) > 0
