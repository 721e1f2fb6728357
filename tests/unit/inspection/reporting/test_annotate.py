import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from qianyan.inspection.records import SUB_LABELS, Box, Detection, Hazard, SubLabel
from qianyan.inspection.reporting.annotate import (
    FIRE_RED,
    FRAME_COLOURS,
    PERSON_GREEN,
    SMOKE_BLUE,
    TEXT_CONTRAST,
    WHITE,
    contrast,
    line_width,
    mark,
    tag_colour,
)
from qianyan.inspection.reporting.fonts import FONT_FILE, missing_glyphs
from qianyan.inspection.reporting.tags import Tag, place_tags
from qianyan.inspection.words import LABELS, SHORT_WORDS, SUB_LABEL_WORDS, Lang, caption

SIZES = [(8, 8), (32, 32), (64, 48), (200, 10), (10, 200), (640, 480), (1920, 1080), (8000, 6000)]
GREY = (128, 128, 128)


def detection(
    label: Hazard, sub_label: SubLabel, box: tuple[int, int, int, int], score: float | None = 0.91
) -> Detection:
    return Detection(label, sub_label, Box(*box), score, None if score is None else "logprob")


def random_detections(seed: int, photo_wh: tuple[int, int], count: int) -> list[Detection]:
    rng = random.Random(seed)  # noqa: S311  (test pictures, not secrets)
    width, height = photo_wh
    found = []
    for _ in range(count):
        label = rng.choice(list(Hazard))
        x1, y1 = rng.randrange(width), rng.randrange(height)
        x2, y2 = rng.randint(x1 + 1, width), rng.randint(y1 + 1, height)
        score = rng.choice([None, rng.random()])
        found.append(detection(label, rng.choice(SUB_LABELS[label]), (x1, y1, x2, y2), score))
    return found


def overlapping(tags: Sequence[Tag]) -> int:
    return sum(
        1
        for index, one in enumerate(tags)
        for other in tags[index + 1 :]
        if one.area.overlap(other.area)
    )


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(8, 900),
    height=st.integers(8, 900),
    count=st.integers(1, 10),
    seed=st.integers(0, 10_000),
    lang=st.sampled_from(["zh", "en"]),
)
def test_no_tag_leaves_the_picture(
    width: int, height: int, count: int, seed: int, lang: Lang
) -> None:
    detections = random_detections(seed, (width, height), count)
    for tag in place_tags((width, height), detections, lang=lang):
        assert tag.area.x1 >= 0
        assert tag.area.y1 >= 0
        assert tag.area.x2 <= width
        assert tag.area.y2 <= height


@pytest.mark.parametrize("photo_wh", SIZES)
@pytest.mark.parametrize("lang", ["zh", "en"])
def test_drawn_letters_stay_inside_their_tag(photo_wh: tuple[int, int], lang: Lang) -> None:
    """Outside frames and tags the picture is untouched, whatever its size."""
    detections = random_detections(7, photo_wh, 3)
    picture = Image.new("RGB", photo_wh, GREY)
    marked = mark(picture, detections, lang=lang)
    covered = ImageChops.difference(picture, marked).convert("L").point(lambda value: value and 255)
    tags = place_tags(photo_wh, detections, lang=lang)
    reach = 2 * line_width(photo_wh) + 2
    for area in (tag.area for tag in tags):
        covered.paste(0, (area.x1, area.y1, area.x2, area.y2))
    for found in detections:
        box = found.box
        covered.paste(0, (box.x1 - reach, box.y1 - reach, box.x2 + reach, box.y1 + reach))
        covered.paste(0, (box.x1 - reach, box.y2 - reach, box.x2 + reach, box.y2 + reach))
        covered.paste(0, (box.x1 - reach, box.y1 - reach, box.x1 + reach, box.y2 + reach))
        covered.paste(0, (box.x2 - reach, box.y1 - reach, box.x2 + reach, box.y2 + reach))
    assert covered.getbbox() is None


@pytest.mark.parametrize("photo_wh", [(32, 32), (64, 48), (320, 240), (1920, 1080), (8000, 6000)])
def test_every_finding_has_a_tag_and_one_alone_has_words(photo_wh: tuple[int, int]) -> None:
    width, height = photo_wh
    box = (width // 4, height // 4, width // 2, height // 2)
    only = detection(Hazard.FIRE, SubLabel.SEVERE, box)
    (tag,) = place_tags(photo_wh, [only], lang="zh")
    assert tag.words or min(photo_wh) < 40
    assert tag.number == "" or not tag.words


@pytest.mark.parametrize(("lang", "words"), [("zh", "火灾 严重 91%"), ("en", "fire severe 91%")])
def test_a_tag_says_label_sub_label_and_score(lang: Lang, words: str) -> None:
    fire = detection(Hazard.FIRE, SubLabel.SEVERE, (100, 100, 300, 300))
    (tag,) = place_tags((640, 480), [fire], lang=lang)
    assert tag.words == words == caption(fire, lang)


def test_several_findings_are_numbered_in_the_order_given() -> None:
    detections = [
        detection(Hazard.PERSON, SubLabel.HELMET, (50, 100, 100, 300)),
        detection(Hazard.FIRE, SubLabel.MINOR, (300, 100, 400, 300)),
    ]
    tags = place_tags((640, 480), detections, lang="zh")
    assert {tag.number: tag.detection for tag in tags} == dict(
        zip(["1", "2"], detections, strict=True)
    )


@pytest.mark.parametrize("seed", range(8))
def test_tags_do_not_overlap_where_there_is_room(seed: int) -> None:
    tags = place_tags((1280, 720), random_detections(seed, (1280, 720), 10), lang="zh")
    assert len(tags) == 10
    assert overlapping(tags) == 0


def test_tags_of_small_findings_side_by_side_do_not_hide_the_findings() -> None:
    detections = [
        detection(Hazard.PERSON, SubLabel.NO_HELMET, (x, 300, x + 40, 400))
        for x in range(100, 700, 60)
    ]
    tags = place_tags((800, 600), detections, lang="zh")
    for tag in tags:
        for found in detections:
            assert tag.area.overlap(found.box) <= 0.2 * found.box.area
    assert overlapping(tags) == 0


@pytest.mark.parametrize("label", list(Hazard))
def test_text_stands_out_from_its_tag(label: Hazard) -> None:
    for sub_label in SUB_LABELS[label]:
        fill = tag_colour(detection(label, sub_label, (0, 0, 9, 9)))
        assert contrast(fill, WHITE) >= TEXT_CONTRAST


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast((0, 0, 0), WHITE) == pytest.approx(21)
    assert contrast(GREY, GREY) == 1


def test_a_person_without_helmet_has_a_green_frame_and_a_red_tag() -> None:
    person = detection(Hazard.PERSON, SubLabel.NO_HELMET, (200, 200, 300, 400))
    red, green, blue = tag_colour(person)
    assert red > 2 * max(green, blue)
    marked = mark(Image.new("RGB", (640, 480), GREY), [person], lang="zh")
    assert marked.getpixel((200, 300)) == PERSON_GREEN


@pytest.mark.parametrize(
    ("label", "colour"),
    [
        (Hazard.FIRE, (0xE5, 0x32, 0x2D)),
        (Hazard.SMOKE, (0x25, 0x63, 0xEB)),
        (Hazard.PERSON, (0x16, 0xA3, 0x4A)),
    ],
)
@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), FIRE_RED, SMOKE_BLUE])
def test_the_frame_lies_on_the_edge_of_the_box_with_white_around_it(
    label: Hazard, colour: tuple[int, int, int], background: tuple[int, int, int]
) -> None:
    found = detection(label, SUB_LABELS[label][0], (100, 120, 500, 400))
    marked = mark(Image.new("RGB", (640, 480), background), [found], lang="en")
    for x, y in ((100, 260), (499, 260), (300, 120), (300, 399)):
        assert marked.getpixel((x, y)) == colour == FRAME_COLOURS[label]
    assert marked.getpixel((99, 260)) == WHITE
    assert marked.getpixel((500, 260)) == WHITE


def test_an_uncertain_finding_has_a_dashed_frame() -> None:
    def edge(sub_label: SubLabel) -> set[object]:
        smoke = detection(Hazard.SMOKE, sub_label, (100, 120, 500, 400))
        marked = mark(Image.new("RGB", (640, 480), GREY), [smoke], lang="en")
        return {marked.getpixel((x, 399)) for x in range(110, 490)}

    assert edge(SubLabel.MINOR) == {SMOKE_BLUE}
    assert edge(SubLabel.UNCERTAIN) >= {SMOKE_BLUE, GREY}


def test_a_tiny_finding_in_a_large_picture_stays_visible_inside_its_frame() -> None:
    spark = detection(Hazard.FIRE, SubLabel.MINOR, (2000, 1500, 2006, 1506))
    picture = Image.new("RGB", (4000, 3000), GREY)
    picture.paste((255, 200, 0), (2000, 1500, 2006, 1506))
    marked = mark(picture, [spark], lang="zh")
    assert marked.getpixel((2003, 1503)) == (255, 200, 0)
    assert marked.getpixel((1990, 1503)) == FIRE_RED


def test_the_given_picture_is_left_as_it_is() -> None:
    picture = Image.new("RGB", (320, 240), GREY)
    before = picture.copy()
    marked = mark(picture, [detection(Hazard.FIRE, SubLabel.MINOR, (10, 10, 90, 90))], lang="zh")
    assert ImageChops.difference(picture, before).getbbox() is None
    assert ImageChops.difference(picture, marked).getbbox() is not None


def test_nothing_found_draws_nothing() -> None:
    picture = Image.new("RGB", (320, 240), GREY)
    assert ImageChops.difference(picture, mark(picture, [], lang="zh")).getbbox() is None


def test_ten_findings_in_a_large_photo_are_drawn_in_well_under_a_second() -> None:
    picture = Image.new("RGB", (4000, 3000), GREY)
    detections = random_detections(3, picture.size, 10)
    mark(picture, detections, lang="zh")
    started = time.process_time()
    mark(picture, detections, lang="zh")
    assert time.process_time() - started < 0.5


def test_words_no_font_can_write_are_drawn_in_english_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(LABELS["zh"], Hazard.FIRE, "火灾龘")
    fire = detection(Hazard.FIRE, SubLabel.SEVERE, (100, 100, 300, 300))
    (tag,) = place_tags((640, 480), [fire], lang="zh")
    assert tag.words == "fire severe 91%"
    assert "No font at hand" in caplog.text


def test_every_word_of_a_tag_is_in_the_bundled_font() -> None:
    words = [
        word
        for table in (LABELS, SUB_LABEL_WORDS, SHORT_WORDS)
        for lang in ("zh", "en")
        for word in table[lang].values()
    ]
    assert not missing_glyphs("".join(words) + "0123456789%", FONT_FILE)


def test_a_user_font_is_taken_for_what_the_bundled_one_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_font = tmp_path / "site.ttf"
    with TTFont(FONT_FILE) as font:
        for table in font["cmap"].tables:
            table.cmap[ord("龘")] = table.cmap[ord("龙")]
        font.save(user_font)
    monkeypatch.setitem(LABELS["zh"], Hazard.FIRE, "火灾龘")
    fire = detection(Hazard.FIRE, SubLabel.SEVERE, (100, 100, 300, 300))
    smoke = detection(Hazard.SMOKE, SubLabel.MINOR, (400, 100, 500, 300))
    tags = place_tags((640, 480), [fire, smoke], lang="zh", font_path=user_font)
    assert [(tag.words, tag.font) for tag in tags] == [
        ("火灾龘 严重 91%", user_font),
        ("烟雾 轻微 91%", FONT_FILE),
    ]
