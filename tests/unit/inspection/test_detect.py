"""Answers of models, good and damaged, become detections in photo pixels or a ReplyError."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qianyan.errors import ReplyError
from qianyan.inputs.grounding import Markup, Notation
from qianyan.inputs.images import Photo
from qianyan.inspection.answer_items import find_end
from qianyan.inspection.detect import Glance, Lister, Unread, detect, parse_detections, score_of
from qianyan.inspection.prompts import ListingForm
from qianyan.inspection.records import Detection, Hazard, Look, SubLabel, Usage
from qianyan.inspection.repetition import ends_in_loop, is_repeating
from qianyan.inspection.vision import Answer, Ask, TokenScore

CORPUS = json.loads((Path(__file__).parent / "malformed" / "answers.json").read_text("utf-8"))
SEEN_WH = (1000, 500)
PHOTO_WH = (2000, 1000)


def parse(
    reply: str, *, notation: Notation = Notation.RESIZED_PIXELS, max_objects: int = 10
) -> tuple[tuple[Detection, ...], tuple[str, ...]]:
    return parse_detections(
        reply, notation=notation, seen_wh=SEEN_WH, photo_wh=PHOTO_WH, max_objects=max_objects
    )


def parse_fails(reply: str) -> bool:
    try:
        parse(reply)
    except ReplyError:
        return True
    return False


def shown(detections: Sequence[Detection]) -> list[str]:
    return [
        f"{one.label.value}/{one.sub_label.value} {','.join(map(str, one.box.as_list()))}"
        for one in detections
    ]


@pytest.mark.parametrize("case", CORPUS, ids=[case["name"] for case in CORPUS])
def test_every_damaged_answer_is_read_as_written_down_in_the_corpus(case: dict) -> None:
    limit = case.get("max_objects", 10)
    if case["found"] is None:
        with pytest.raises(ReplyError) as caught:
            parse(case["reply"], max_objects=limit)
        assert str(caught.value).endswith(".")
        return
    detections, notes = parse(case["reply"], max_objects=limit)
    assert shown(detections) == case["found"]
    if "notes" in case:
        assert list(notes) == case["notes"]
    assert all(one.score is None and one.score_kind is None for one in detections)


def test_every_prefix_of_an_answer_gives_its_complete_objects_or_an_error() -> None:
    boxes = [[100, 50, 200, 150], [300, 50, 400, 150], [500, 50, 600, 150]]
    items = [{"bbox_2d": box, "label": "人员", "sub_label": "佩戴安全帽"} for box in boxes]
    reply = json.dumps(items, ensure_ascii=False)
    whole, _ = parse(reply)
    most = 0
    for size in range(len(reply)):
        try:
            detections, notes = parse(reply[:size])
        except ReplyError:
            assert most == 0
            continue
        assert len(detections) >= most
        assert detections == whole[: len(detections)]
        assert notes[0] == f"the answer was cut; {len(detections)} objects were read"
        most = len(detections)
    assert most == 3


@pytest.mark.parametrize(
    ("notation", "box"),
    [
        (Notation.RESIZED_PIXELS, [100, 50, 200, 150]),
        (Notation.SENT_PIXELS, [100, 50, 200, 150]),
        (Notation.RELATIVE_1000, [100, 100, 200, 300]),
        (Notation.RELATIVE_1, [0.1, 0.1, 0.2, 0.3]),
        (Notation.RELATIVE_1000_YX, [100, 100, 300, 200]),
        (Notation.RESIZED_PIXELS_YX, [50, 100, 150, 200]),
    ],
)
def test_the_same_place_is_found_in_every_notation(notation: Notation, box: list[float]) -> None:
    reply = json.dumps([{"bbox_2d": box, "label": "fire", "sub_label": "minor"}])
    detections, notes = parse(reply, notation=notation)
    assert shown(detections) == ["fire/minor 200,100,400,300"]
    assert notes == ()


PIECES = st.sampled_from(
    [
        *"[]{}()\"',: \n\\“”：，",
        *("\\u", "bbox_2d", '"bbox_2d": ', '"label": ', '"sub_label": ', '"火灾"', '"person"'),
        *('"severe"', "null", "true", "NaN", "Infinity", "-1e999", "9" * 30, "12", "-7.5", "1e5"),
        *('{"bbox_2d": [100, 50, 200, 150], "label": "fire"}', "<think>", "</think>", "```json\n"),
        *("100, 50", "0", "\ud800", "\x00", "🔥", "no hazards", "[]", "[100, 50, 200, 150]"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    reply=st.one_of(
        st.lists(PIECES, max_size=60).map("".join), st.text(max_size=200), st.binary().map(str)
    ),
    notation=st.sampled_from(list(Notation)),
    sizes=st.tuples(*[st.integers(1, 5000)] * 4),
    max_objects=st.integers(1, 12),
)
def test_any_text_is_an_error_or_boxes_inside_the_photo(
    reply: str, notation: Notation, sizes: tuple[int, int, int, int], max_objects: int
) -> None:
    photo_wh = sizes[2:]
    try:
        detections, notes = parse_detections(
            reply,
            notation=notation,
            seen_wh=sizes[:2],
            photo_wh=photo_wh,
            max_objects=max_objects,
        )
    except ReplyError:
        return
    assert len(detections) <= max_objects
    assert all(isinstance(note, str) for note in notes)
    for one in detections:
        assert 0 <= one.box.x1 < one.box.x2 <= photo_wh[0]
        assert 0 <= one.box.y1 < one.box.y2 <= photo_wh[1]
    if not detections:
        assert "[" in reply


@settings(max_examples=200, deadline=None)
@given(boxes=st.lists(st.tuples(*[st.integers(-3000, 3000)] * 4), min_size=1, max_size=15))
def test_any_four_numbers_end_inside_the_photo_or_in_a_count(
    boxes: list[tuple[int, int, int, int]],
) -> None:
    reply = json.dumps([{"bbox_2d": box, "label": "smoke", "sub_label": "minor"} for box in boxes])
    try:
        detections, notes = parse(reply, max_objects=100)
    except ReplyError:
        assert all(parse_fails(json.dumps([{"bbox_2d": box, "label": "fire"}])) for box in boxes)
        return
    left_out = sum(int(note.split()[0]) for note in notes if note.endswith("left out"))
    assert len(detections) + left_out == len(boxes)


@pytest.mark.parametrize(
    "reply",
    [
        "[" * 150_000,
        "{" * 150_000,
        '{"a":' * 30_000,
        '"' * 150_000,
        "[" + "'" * 150_000,
        '["\\' * 40_000,
        "[1," * 1 + "9" * 150_000,
        "[" + '{"bbox_2d": [1, 2, 3' * 8_000,
        "( " * 75_000,
        "[" + "a" * 150_000,
        "```json\n" * 15_000,
        "x []" * 37_500 + "x",
    ],
    ids=lambda reply: reply[:8],
)
def test_long_rubbish_is_refused_quickly(reply: str) -> None:
    started = time.process_time()
    with pytest.raises(ReplyError):
        parse(reply)
    assert time.process_time() - started < 5


def test_a_long_answer_is_read_in_linear_time() -> None:
    item = '{"bbox_2d": [100, 50, 200, 150], "label": "fire", "sub_label": "minor"}, '
    detections, notes = parse("[" + item * 2_500)
    assert shown(detections) == ["fire/minor 200,100,400,300"]
    assert "2499 repeating another left out" in notes


class Script:
    """Answers prepared beforehand, for what no model can be made to say on demand."""

    name = "script"
    notation = Notation.RESIZED_PIXELS
    markup = Markup.JSON

    def __init__(self, *answers: str, finish_reason: str = "stop") -> None:
        self.answers = list(answers)
        self.asks: list[Ask] = []
        self.finish_reason = finish_reason

    def seen_wh(
        self, photo_wh: tuple[int, int], visual_tokens: int | None = None
    ) -> tuple[int, int]:
        return SEEN_WH

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        return seen_wh[0] * seen_wh[1] // 784

    def ask(self, ask: Ask) -> Answer:
        self.asks.append(ask)
        return Answer(
            text=self.answers.pop(0),
            seen_wh=SEEN_WH,
            usage=Usage(prompt_tokens=100, completion_tokens=10, forwarded_tokens=8),
            finish_reason=self.finish_reason,
        )

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        return [self.ask(ask) for ask in asks]


@pytest.fixture(scope="module")
def photo() -> Photo:
    return Photo(Image.new("RGB", PHOTO_WH, "grey"))


GOOD = '[{"bbox_2d": [100, 50, 200, 150], "label": "fire", "sub_label": "severe"}]'
LOOP = "[" + ", ".join(
    json.dumps({"bbox_2d": [x, 50, x + 40, 150], "label": "person", "sub_label": "helmet"})
    for x in range(100, 900, 50)
)


def test_a_look_asks_once_for_all_hazards_and_keeps_the_raw_answer(photo: Photo) -> None:
    vision = Script(GOOD)
    look = detect(photo, vision, lang="en", max_objects=7)
    (ask,) = vision.asks
    assert ask.image is photo.rgb
    assert "at most 7 items" in ask.text
    assert "1000 pixels wide and 500 pixels high" in ask.text
    assert ask.schema is not None
    assert ask.schema["maxItems"] == 7
    assert ask.max_tokens == 7 * 60 + 100
    assert ask.temperature == 0
    assert shown(look.detections) == ["fire/severe 200,100,400,300"]
    assert look.raw == GOOD
    assert look.usage == Usage(100, 10, 8)
    assert look.notes == ()


def test_an_answer_in_a_loop_is_asked_for_once_more_and_warmer(photo: Photo) -> None:
    vision = Script(LOOP, GOOD)
    look = detect(photo, vision, lang="en")
    first, second = vision.asks
    assert (second.temperature, second.presence_penalty) == (0.5, 1.5)
    assert first.text == second.text
    assert shown(look.detections) == ["fire/severe 200,100,400,300"]
    assert look.raw == GOOD
    assert look.usage == Usage(200, 20, 16)
    assert look.notes[-1] == "the answer ran in a loop; the model was asked once more"


def test_the_first_answer_counts_when_the_second_is_no_better(photo: Photo) -> None:
    for second in (LOOP, "no idea"):
        look = detect(photo, Script(LOOP, second), lang="en")
        assert len(look.detections) == 10
        assert look.raw == LOOP
        assert any(note.startswith("the answer was cut") for note in look.notes)


def test_an_endless_unreadable_answer_is_asked_for_once_more(photo: Photo) -> None:
    runaway = '[{"bbox_2d": [1' + "9" * 500
    look = detect(photo, Script(runaway, GOOD, finish_reason="length"), lang="en")
    assert shown(look.detections) == ["fire/severe 200,100,400,300"]
    with pytest.raises(ReplyError) as caught:
        detect(photo, Script(runaway, runaway, finish_reason="length"), lang="en")
    assert caught.value.raw == runaway


def test_an_unreadable_answer_is_an_error_that_keeps_the_answer_for_the_record(
    photo: Photo,
) -> None:
    vision = Script("There are no hazards.")
    with pytest.raises(ReplyError) as caught:
        detect(photo, vision, lang="en")
    assert caught.value.raw == "There are no hazards."
    assert len(vision.asks) == 1


def test_an_answer_that_hit_its_length_limit_says_so(photo: Photo) -> None:
    look = detect(photo, Script(GOOD.strip("[]") + "\n", finish_reason="length"), lang="en")
    assert look.notes == ("the answer was cut; 1 objects were read",)


def test_loops_are_told_from_crowds() -> None:
    same = [("person", (10.0, 10.0, 20.0, 20.0))] * 4
    near = [("person", (10.0 + step, 10.0, 20.0, 20.0)) for step in (0, 1, 0, 2)]
    group = [("fire", (1.0, 2.0, 3.0, 4.0)), ("smoke", (50.0, 60.0, 70.0, 80.0))]
    crowd = [("person", (x, 10.0 + x % 7, x + 20.0, 60.0)) for x in (0.0, 31.0, 58.0, 93.0, 119.0)]
    assert is_repeating(same)
    assert is_repeating(near)
    assert is_repeating(group * 3)
    assert is_repeating([("person", (9.0 * k, 5.0, 9.0 * k + 8, 20.0)) for k in range(6)])
    assert not is_repeating(same[:3])
    assert not is_repeating(group * 2)
    assert not is_repeating(crowd)
    assert not is_repeating([])
    assert ends_in_loop("x" * 100)
    assert ends_in_loop("begin " + '{"bbox_2d": [1, 2, 3, 4]}, ' * 4)
    assert not ends_in_loop("x" * 20)
    assert not ends_in_loop(GOOD * 2)


class Qwen2VL(Script):
    """Counts to 999 and may fall back into marking places."""

    notation = Notation.RELATIVE_BELOW_1000
    markup = Markup.OBJECT_REF


class QwenVL(Script):
    """Counts to 1000, and marks places instead of writing JSON."""

    notation = Notation.RELATIVE_1000
    markup = Markup.REF


def test_qwen2_vl_is_asked_in_its_own_range_and_read_in_json(photo: Photo) -> None:
    vision = Qwen2VL('[{"bbox_2d": [100, 100, 200, 300], "label": "火灾", "sub_label": "严重"}]')
    look = detect(photo, vision, lang="zh")
    assert "从 0 到 999" in vision.asks[0].text
    assert shown(look.detections) == ["fire/severe 200,100,400,300"]


@pytest.mark.parametrize(
    "reply",
    [
        "<|object_ref_start|>火焰<|object_ref_end|><|box_start|>(100,100),(200,300)<|box_end|>"
        "<|object_ref_start|>未佩戴安全帽<|object_ref_end|>"
        "<|box_start|>(500,500),(600,700)<|box_end|>",
        "火焰(100,100),(200,300)\n未佩戴安全帽(500,500),(600,700)",
        "火焰(100,100),(200,300)、未佩戴安全帽(500,500),(600,700)。",
    ],
)
def test_qwen2_vl_is_read_in_its_own_marks_too(photo: Photo, reply: str) -> None:
    look = detect(photo, Qwen2VL(reply), lang="zh")
    assert shown(look.detections) == [
        "fire/uncertain 200,100,400,300",
        "person/no_helmet 1000,500,1200,700",
    ]
    assert look.raw == reply


@pytest.mark.parametrize(
    "reply",
    ["图中没有火灾。", "none", "没有", "The fire is at the left.", "fire(12,34)", "dog(1,2),(3,4)"],
)
def test_words_without_usable_boxes_never_mean_nothing_found(photo: Photo, reply: str) -> None:
    with pytest.raises(ReplyError) as caught:
        detect(photo, Qwen2VL(reply), lang="zh")
    assert caught.value.raw == reply


def test_qwen_vl_is_asked_for_one_thing_at_a_time_and_read_in_its_own_marks(photo: Photo) -> None:
    vision = QwenVL(
        "<ref>火焰</ref><box>(100,100),(200,300)</box><box>(500,100),(550,300)</box>",
        "没有。",
        "<ref>戴着安全帽的人</ref><box>(700,500),(800,900)</box>",
        "<ref>没有戴安全帽的人</ref><quad>(10,500),(90,500),(90,900),(10,900)</quad>",
    )
    look = detect(photo, vision, lang="zh")
    assert shown(look.detections) == [
        "fire/uncertain 200,100,400,300",
        "fire/uncertain 1000,100,1100,300",
        "person/helmet 1400,500,1600,900",
        "person/no_helmet 20,500,180,900",
    ]
    assert [ask.schema for ask in vision.asks] == [None] * 4
    assert all("只回答：没有" in ask.text for ask in vision.asks)
    assert ["火焰" in vision.asks[0].text, "烟雾" in vision.asks[1].text] == [True, True]
    assert look.usage == Usage(400, 40, 32)
    assert look.raw is not None
    assert look.raw.splitlines()[1] == "没有。"
    assert look.notes == ()
    assert all(one.score is None for one in look.detections)


def test_who_is_named_with_and_without_a_hard_hat_becomes_uncertain(photo: Photo) -> None:
    box = "<box>(100,100),(200,300)</box>"
    look = detect(photo, QwenVL("none", "No smoke.", box, box), lang="en")
    assert shown(look.detections) == ["person/uncertain 200,100,400,300"]
    assert "1 contradicting its repeat, read as uncertain" in look.notes


def test_nothing_is_found_only_when_every_answer_says_so(photo: Photo) -> None:
    quiet = QwenVL("none", "None.", "no person wearing a hard hat", "`none`")
    assert detect(photo, quiet, lang="en").detections == ()
    for prose in (
        "I see a nice building.",
        "",
        "none of the people wear hats",
        "<ref>flame</ref>",
        "没有",
        "[]",
        "<ref>flame</ref><box>(100,100),(2",
    ):
        with pytest.raises(ReplyError) as caught:
            detect(photo, QwenVL("none", "none", "none", prose), lang="en")
        assert caught.value.raw == prose


def test_a_box_for_something_else_than_asked_for_is_what_it_is_called(photo: Photo) -> None:
    box = "<box>(100,100),(200,300)</box>"
    look = detect(photo, QwenVL(f"<ref>smoke</ref>{box}", *["none"] * 3), lang="en")
    assert shown(look.detections) == ["smoke/uncertain 200,100,400,300"]
    with pytest.raises(ReplyError, match="1 with an unknown label left out"):
        detect(photo, QwenVL(f"<ref>the red door</ref>{box}", *["none"] * 3), lang="en")


def test_qwen_vl_in_a_loop_is_asked_the_same_question_once_more(photo: Photo) -> None:
    loop = "<ref>flame</ref>" + "<box>(100,100),(200,300)</box>" * 12
    vision = QwenVL(loop, *["none"] * 3, "<ref>flame</ref><box>(100,100),(200,300)</box>")
    look = detect(photo, vision, lang="en")
    assert vision.asks[4].text == vision.asks[0].text
    assert vision.asks[4].temperature == 0.5
    assert shown(look.detections) == ["fire/uncertain 200,100,400,300"]


def spell(*pieces: tuple[str | bytes, float]) -> tuple[TokenScore, ...]:
    tokens = []
    for piece, probability in pieces:
        data = piece if isinstance(piece, bytes) else piece.encode()
        text = data.decode(errors="replace")
        logprob = math.log(probability)
        tokens.append(TokenScore(text, logprob, {text: logprob, "else": -9.0}, data))
    return tuple(tokens)


def test_the_score_is_the_geometric_mean_over_label_and_sub_label() -> None:
    fire, severe = "火灾".encode(), "严重".encode()
    tokens = spell(
        ('[{"bbox_2d": [100, 50, 200, 150], "label": "', 0.5),
        (fire[:2], 0.9),  # a character may be spread over tokens
        (fire[2:], 0.8),
        ('", "sub_label": "', 0.1),
        (severe, 0.6),
        ('"}]', 0.1),
        ("<|im_end|>", 0.99),
    )
    reply = '[{"bbox_2d": [100, 50, 200, 150], "label": "火灾", "sub_label": "严重"}]'
    (found,), _ = parse_detections(
        reply,
        notation=Notation.RESIZED_PIXELS,
        seen_wh=SEEN_WH,
        photo_wh=PHOTO_WH,
        tokens=tokens,
    )
    assert (found.label, found.sub_label) == (Hazard.FIRE, SubLabel.SEVERE)
    assert found.score == pytest.approx((0.9 * 0.8 * 0.6) ** (1 / 3))
    assert found.score_kind == "logprob"


def test_forced_tokens_do_not_raise_the_score_and_other_texts_give_none() -> None:
    reply = '"fire"'
    free = TokenScore("fi", math.log(0.25), {"fi": math.log(0.25), "sm": -1.0}, b"fi")
    forced = TokenScore("re", 0.0, {"re": 0.0}, b"re")
    quotation = TokenScore('"', 0.0, {'"': 0.0}, b'"')
    tokens = (quotation, free, forced, quotation)
    assert score_of([(1, 5)], reply, tokens) == pytest.approx(0.25)
    assert score_of([(1, 5)], reply, (quotation, forced)) is None
    assert score_of([(1, 3)], '"re"', (quotation, forced, quotation)) is None
    assert score_of([], reply, tokens) is None


def test_rows_are_read_like_objects(photo: Photo) -> None:
    rows = '[[100,50,200,150,"fire","severe"],[10,20,60,120,"person","no helmet"]]'
    vision = Script(rows)
    lister = Lister(vision=vision, lang="en", form=ListingForm(answer="rows"))
    assert shown(lister.look(photo).detections) == [
        "fire/severe 200,100,400,300",
        "person/no_helmet 20,40,120,240",
    ]
    assert '[[x1,y1,x2,y2,"label","sub_label"]]' in vision.asks[0].text
    assert vision.asks[0].schema is not None
    assert "prefixItems" in vision.asks[0].schema["items"]["anyOf"][0]


def test_a_damaged_row_is_counted_and_never_passed_over(photo: Photo) -> None:
    for damaged in (
        '[1,2,3,"fire","severe"]',
        '[1,2,3,4,5,"fire","severe"]',
        '[1,2,3,4,"zebra","x"]',
        "[1,2,3,4]",
    ):
        look = detect(photo, Script(f'[{damaged},[100,50,200,150,"fire","severe"]]'), lang="en")
        assert len(look.detections) == 1
        assert any("left out" in note for note in look.notes)
        with pytest.raises(ReplyError):
            detect(photo, Script(f"[{damaged}]"), lang="en")


def test_an_answer_cut_behind_its_last_wanted_object_is_whole(photo: Photo) -> None:
    look = detect(photo, Script(GOOD.removesuffix("]"), finish_reason="enough"), lang="en")
    assert shown(look.detections) == ["fire/severe 200,100,400,300"]
    assert look.notes == ()


def test_the_end_of_the_nth_object_is_found_in_an_answer_that_goes_on() -> None:
    one = '{"bbox_2d": [1, 2, 3, 4], "label": "fire", "sub_label": "severe"}'
    row = '[1,2,3,4,"fire","severe"]'
    for first, rest in ((one, f", {one}, "), (row, f",{row},[5")):
        text = f"```json\n[{first}{rest}"
        assert find_end(text, 1) == len(f"```json\n[{first}")
        assert find_end(text, 2) == len(f"```json\n[{first}, {first}") - (first is row)
        assert find_end(text, 3) is None
        assert find_end(text, 1, start=len(text) - 2) is None
    assert find_end(f"<think>[{one}]", 1) is None
    assert find_end(f"<think>[{one}]</think>[{one}", 1) is not None
    assert find_end('[{"bbox_2d": [1, 2, 3, 4]', 1) is None


def test_pictures_are_listed_in_one_batch_and_each_keeps_its_own_error(photo: Photo) -> None:
    vision = Script(GOOD, "no idea", "[]")
    looks = Lister(vision=vision, lang="en").list_all([Glance(photo.rgb, 100)] * 3)
    assert len(vision.asks) == 3
    assert {one.visual_tokens for one in vision.asks} == {100}
    assert isinstance(looks[1], Unread)
    assert (looks[1].raw, looks[1].usage) == ("no idea", Usage(100, 10, 8))
    assert [len(one.detections) for one in looks if isinstance(one, Look)] == [1, 0]
