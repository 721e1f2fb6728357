"""Places of answers in every space, for every generation's numbers and marks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.inputs.grounding import Notation, to_model_box
from qianyan.inputs.media import SeenImage
from qianyan.server.places import MAX_PLACES, CoordinateSpace, read_places

IMAGE = SeenImage((1920, 1080), (960, 540))
ORIGINAL = CoordinateSpace.ORIGINAL_PIXELS


@pytest.mark.parametrize(
    ("notation", "answer"),
    [
        (Notation.RESIZED_PIXELS, '[{"bbox_2d": [96, 54, 480, 270], "label": "fire"}]'),
        (Notation.RELATIVE_1000, '```json\n{"fires": [{"box": [100,100,500,500], "label": "fire"'
                                 "}]}\n```"),
        (Notation.RELATIVE_1000, "<ref>fire</ref><box>(100,100),(500,500)</box>"),
        (Notation.RELATIVE_BELOW_1000, "<|object_ref_start|>fire<|object_ref_end|><|box_start|>"
                                       "(100,100),(500,500)<|box_end|>"),
        (Notation.RELATIVE_BELOW_1000, "fire(100,100),(500,500)"),
        (Notation.RELATIVE_1000, "<ref>fire</ref><quad>(100,100),(500,100),(500,500),(100,500)"
                                 "</quad>"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("space", "box"),
    [
        (ORIGINAL, [192, 108, 960, 540]),
        (CoordinateSpace.NORMALIZED_1000, [100, 100, 500, 500]),
        (CoordinateSpace.MODEL_PIXELS, [96, 54, 480, 270]),
    ],
)
def test_boxes_are_told_in_the_space_asked_for(
    notation: Notation, answer: str, space: CoordinateSpace, box: list[int]
) -> None:
    found = read_places(answer, IMAGE, notation=notation, space=space)
    assert found.places == [{"label": "fire", "bbox_2d": box}]
    assert found.notes == ()


def test_points_and_unnamed_places_are_told() -> None:
    answer = '[{"point_2d": [480, 270], "label": "exit"}, {"bbox_2d": [0, 0, 96, 54]}]'
    found = read_places(answer, IMAGE, notation=Notation.RESIZED_PIXELS, space=ORIGINAL)
    assert found.places == [
        {"label": "exit", "point_2d": [960, 540]},
        {"label": None, "bbox_2d": [0, 0, 192, 108]},
    ]


@pytest.mark.parametrize("answer", ["[]", "There is no fire.", "```json\n[]\n```", ""])
def test_an_answer_without_places_has_none(answer: str) -> None:
    found = read_places(answer, IMAGE, notation=Notation.RESIZED_PIXELS, space=ORIGINAL)
    assert (found.places, found.notes) == ([], ())


def test_what_is_left_out_is_said() -> None:
    entry = '{"bbox_2d": [0, 0, 96, 54], "label": "a"}'
    cut = read_places(
        f'[{entry}, {{"bbox_2d": [1, 2', IMAGE, notation=Notation.RESIZED_PIXELS, space=ORIGINAL
    )
    assert len(cut.places) == 1
    assert cut.notes == ("places: the answer ends inside one, which is left out",)
    outside = '[{"bbox_2d": [2000, 2000, 2100, 2100], "label": "a"}]'
    none = read_places(outside, IMAGE, notation=Notation.RESIZED_PIXELS, space=ORIGINAL)
    assert none.places == []
    assert none.notes == ("places: 1 lie outside the picture and are left out",)
    many = f"[{', '.join([entry] * (MAX_PLACES + 1))}]"
    found = read_places(many, IMAGE, notation=Notation.RESIZED_PIXELS, space=ORIGINAL)
    assert len(found.places) == MAX_PLACES
    assert found.notes == (f"places: {MAX_PLACES + 1} are marked, the first {MAX_PLACES} are told",)


@given(
    photo=st.tuples(st.integers(28, 8000), st.integers(28, 8000)),
    shrink=st.floats(0.1, 1.0),
    notation=st.sampled_from([Notation.RESIZED_PIXELS, Notation.RELATIVE_1000]),
    corners=st.tuples(*[st.floats(0.0, 1.0)] * 4),
)
def test_a_box_drawn_anywhere_comes_back_within_a_step_of_the_models_numbers(
    photo: tuple[int, int],
    shrink: float,
    notation: Notation,
    corners: tuple[float, float, float, float],
) -> None:
    width, height = photo
    seen = max(28, int(width * shrink)), max(28, int(height * shrink))
    xs, ys = sorted(corners[::2]), sorted(corners[1::2])
    box = (
        int(xs[0] * (width - 4)),
        int(ys[0] * (height - 4)),
        int(xs[1] * (width - 4)) + 4,
        int(ys[1] * (height - 4)) + 4,
    )
    written = to_model_box(box, notation=notation, seen_wh=seen, photo_wh=photo)
    answer = f'[{{"bbox_2d": {list(written)}, "label": "a"}}]'
    image = SeenImage(photo, seen)
    (place,) = read_places(answer, image, notation=notation, space=ORIGINAL).places or [None]
    if place is None:  # thinner than a step of the model's own numbers
        assert min(written[2] - written[0], written[3] - written[1]) == 0
        return
    span = seen if notation is Notation.RESIZED_PIXELS else (1000, 1000)
    for at, (told, drawn) in enumerate(zip(place["bbox_2d"], box, strict=True)):
        assert abs(told - drawn) <= photo[at % 2] / span[at % 2] + 1
