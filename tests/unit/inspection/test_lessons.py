"""What is taught from labels reads back as the labels, in every generation's notation."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.errors import InputError
from qianyan.inputs.grounding import Notation, find_notation, to_photo_box
from qianyan.inspection.answer_items import read_listing
from qianyan.inspection.lessons import find_teacher
from qianyan.inspection.references import REFERENCES, read_reference
from qianyan.labels.photos import KINDS, Kind, LabelledBox, LabelledPhoto

PHOTO_WH = (800, 600)
SEEN_WH = (420, 308)
FLAME = LabelledBox("fire", (100, 100, 300, 250))
WORKER = LabelledBox("person", (400, 100, 500, 500))
HELMET = LabelledBox("helmet", (430, 95, 470, 125), head_box=(430, 95, 470, 145))


def photo(*boxes: LabelledBox, labelled: frozenset[Kind] = frozenset(KINDS)) -> LabelledPhoto:
    return LabelledPhoto(Path("a.jpg"), *PHOTO_WH, labelled, boxes)


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize(
    "architecture", ["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"]
)
def test_a_listing_reads_back_as_the_labels(architecture: str, lang: str) -> None:
    teach = find_teacher(architecture, lang=lang)  # type: ignore[arg-type]
    ((question, answer),) = teach(photo(FLAME, WORKER, HELMET), SEEN_WH)
    words = {"zh": ["人员", "火灾"], "en": ["person", "fire"]}[lang]
    items = read_listing(answer).items
    assert [item.label for item in items] == words
    assert [item.sub_label for item in items] == (
        ["佩戴安全帽", "中等"] if lang == "zh" else ["helmet", "moderate"]
    )
    notation = find_notation(architecture)
    assert notation is not None
    for item, label in zip(items, (WORKER, FLAME), strict=True):
        assert item.boxes[0] is not None
        box = to_photo_box(item.boxes[0], notation=notation, seen_wh=SEEN_WH, photo_wh=PHOTO_WH)
        assert box == pytest.approx(label.box, abs=2)
    assert "只找" not in question
    assert "only." not in question


def test_what_nobody_looked_for_is_not_asked_about() -> None:
    teach = find_teacher("Qwen2_5_VLForConditionalGeneration", lang="en")
    labelled = photo(FLAME, WORKER, labelled=frozenset({"fire", "smoke", "person"}))
    ((question, answer),) = teach(labelled, SEEN_WH)
    assert question.endswith("This time look for fire, smoke only.")
    assert [item.label for item in read_listing(answer).items] == ["fire"]


def test_nothing_there_is_an_empty_list() -> None:
    teach = find_teacher("Qwen2_5_VLForConditionalGeneration", lang="zh")
    assert teach(photo(), SEEN_WH)[0][1] == "[]"


def test_the_first_generation_is_asked_for_one_kind_at_a_time() -> None:
    teach = find_teacher("QWenLMHeadModel", lang="zh")
    turns = teach(photo(FLAME, WORKER, HELMET), SEEN_WH)
    assert len(turns) == len(REFERENCES)
    found = [
        [item.label for item in read_reference(answer, reference, lang="zh").items]
        for reference, (_, answer) in zip(REFERENCES, turns, strict=True)
    ]
    assert found == [["火灾"], [], ["人员"], []]
    assert turns[0][1] == "<ref>火焰</ref><box>(125,167),(375,417)</box>"
    assert turns[1][1] == "没有"


@given(st.tuples(st.floats(0, 790), st.floats(0, 590), st.floats(2, 800), st.floats(2, 600)))
def test_boxes_survive_the_way_there_and_back(numbers: tuple[float, ...]) -> None:
    x, y, width, height = numbers
    box = (x, y, min(x + width, 800.0), min(y + height, 600.0))
    teach = find_teacher("Qwen2_5_VLForConditionalGeneration", lang="en")
    (item,) = read_listing(teach(photo(LabelledBox("smoke", box)), SEEN_WH)[0][1]).items
    assert item.boxes[0] is not None
    back = to_photo_box(
        item.boxes[0], notation=Notation.RESIZED_PIXELS, seen_wh=SEEN_WH, photo_wh=PHOTO_WH
    )
    assert back == pytest.approx(box, abs=3)


def test_labels_that_tell_nothing_and_models_without_boxes_are_refused() -> None:
    teach = find_teacher("Qwen2_5_VLForConditionalGeneration", lang="en")
    with pytest.raises(InputError, match="tell about neither fire nor smoke"):
        teach(photo(labelled=frozenset({"helmet"})), SEEN_WH)
    with pytest.raises(InputError, match="'Qwen3ForCausalLM' writes boxes is not known"):
        find_teacher("Qwen3ForCausalLM", lang="en")


def test_stated_severity_is_taken_over() -> None:
    teach = find_teacher("Qwen2_5_VLForConditionalGeneration", lang="en")
    severe = LabelledBox("fire", (0, 0, 20, 20), sub_label="severe")
    assert read_listing(teach(photo(severe), SEEN_WH)[0][1]).items[0].sub_label == "severe"


def test_people_whose_heads_are_told_beside_them_need_no_boxes_of_heads() -> None:
    teach = find_teacher("Qwen2_5_VLForConditionalGeneration", lang="en")
    seen: frozenset[Kind] = frozenset({"fire", "smoke", "person"})
    worker = LabelledBox("person", WORKER.box, None, "no_helmet")
    ((question, answer),) = teach(photo(worker, labelled=seen), SEEN_WH)
    assert "look for" not in question.splitlines()[-1]
    assert [(item.label, item.sub_label) for item in read_listing(answer).items] == [
        ("person", "no helmet")
    ]


def test_boxes_of_heads_count_where_nothing_is_told_beside_people() -> None:
    teach = find_teacher("Qwen2_5_VLForConditionalGeneration", lang="en")
    ((_, answer),) = teach(photo(HELMET), SEEN_WH)
    assert [item.sub_label for item in read_listing(answer).items] == ["helmet"]


@pytest.mark.parametrize("kind", ["fire", "person"])
def test_a_sub_label_that_its_kind_has_not_is_an_error(kind: Kind) -> None:
    teach = find_teacher("Qwen2_5_VLForConditionalGeneration", lang="en")
    with pytest.raises(InputError, match="'huge' beside a"):
        teach(photo(LabelledBox(kind, FLAME.box, None, "huge")), SEEN_WH)
