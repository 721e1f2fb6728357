"""Presentations: titles, text, tables, chart values, notes and pictures of each slide."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pptx
import pytest
from PIL import Image
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.oxml import parse_xml
from pptx.util import Inches

from qianyan.errors import CapacityError, InputError, MediaError
from qianyan.inputs.documents import Document, DocumentLimits, read_document

TITLE_AND_CONTENT, TITLE_ONLY, BLANK = 1, 5, 6
BOX = (Inches(1), Inches(1))


def png(colour: str = "red") -> BytesIO:
    out = BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "PNG")
    out.seek(0)
    return out


def made(*slides: Callable[[Any], object], layout: int = TITLE_ONLY) -> bytes:
    deck = pptx.Presentation()
    for build in slides:
        build(deck.slides.add_slide(deck.slide_layouts[layout]))
    out = BytesIO()
    deck.save(out)
    return out.getvalue()


def titled(words: str) -> Callable[[Any], object]:
    return lambda slide: setattr(slide.shapes.title, "text", words)


def read(
    data: bytes,
    *,
    sees: bool = True,
    pages: str | None = None,
    limits: DocumentLimits | None = None,
) -> Document:
    return read_document(
        data,
        name="deck.pptx",
        media_type=None,
        limits=limits or DocumentLimits(),
        wants_pictures=sees,
        pages=pages,
    )


def text(data: bytes, **options: Any) -> str:
    parts = read(data, **options).parts
    return "".join(part if isinstance(part, str) else "<picture>" for part in parts)


def test_titles_and_bodies_of_each_slide() -> None:
    def body(slide: Any) -> None:
        slide.shapes.title.text = "Safety"
        slide.placeholders[1].text = "Helmets\nShoes"
        slide.placeholders[1].text_frame.paragraphs[1].level = 1

    document = read(made(body, layout=TITLE_AND_CONTENT))
    assert document.num_pages == 1
    assert document.parts == ("[deck.pptx, slide 1 of 1]\n\n# Safety\n\n- Helmets\n  - Shoes",)


def test_shapes_are_read_from_top_to_bottom_and_left_to_right() -> None:
    def boxes(slide: Any) -> None:
        for words, left, top in (("c", 1, 5), ("b", 6, 2), ("a", 1, 2)):
            box = slide.shapes.add_textbox(Inches(left), Inches(top), *BOX)
            box.text_frame.text = words

    assert text(made(boxes, layout=BLANK)) == "[deck.pptx, slide 1 of 1]\n\na\n\nb\n\nc"


def test_groups_are_entered() -> None:
    def grouped(slide: Any) -> None:
        group = slide.shapes.add_group_shape()
        inner = group.shapes.add_group_shape()
        inner.shapes.add_textbox(0, 0, *BOX).text_frame.text = "inside"
        inner.shapes.add_picture(png(), 0, Inches(3))

    document = read(made(grouped, layout=BLANK))
    assert "inside" in str(document.parts[0])
    assert isinstance(document.parts[1], Image.Image)


def test_tables_charts_notes_and_pictures() -> None:
    def full(slide: Any) -> None:
        table = slide.shapes.add_table(2, 2, *BOX, *BOX).table
        table.cell(0, 0).text, table.cell(1, 1).text = "Item", "a|b"
        data = CategoryChartData()
        data.categories = ["May", "June"]
        data.add_series("Fires", (2, 1.5))
        kind = XL_CHART_TYPE.COLUMN_CLUSTERED
        slide.shapes.add_chart(kind, Inches(1), Inches(3), *BOX, data)
        slide.shapes.add_picture(png("blue"), Inches(1), Inches(5))
        slide.notes_slide.notes_text_frame.text = "Say hello"

    first, image, notes = read(made(full, layout=BLANK)).parts
    assert first == (
        "[deck.pptx, slide 1 of 1]\n\n| Item |  |\n| --- | --- |\n|  | a\\|b |\n\n[chart]\n\n"
        "|  | May | June |\n| --- | --- | --- |\n| Fires | 2 | 1.5 |"
    )
    assert isinstance(image, Image.Image)
    assert image.getpixel((1, 1)) == (0, 0, 255)
    assert notes == "Notes: Say hello"


def test_pictures_leave_a_word_for_models_that_read_text_only() -> None:
    def picture(slide: Any) -> None:
        shape = slide.shapes.add_picture(png(), *BOX)
        shape._element.nvPicPr.cNvPr.set("descr", "A red\nwall")

    document = read(made(picture, layout=BLANK), sees=False)
    assert document.parts == ("[deck.pptx, slide 1 of 1]\n\n[picture: A red wall]",)


def hide(slide: Any) -> None:
    titled("secret")(slide)
    slide._element.set("show", "0")


def test_hidden_slides_are_left_out_and_named_and_read_when_asked_for() -> None:
    data = made(titled("open"), hide)
    document = read(data)
    assert "secret" not in str(document.parts)
    assert document.notes == ("hidden slides left out: 2",)
    assert text(data, pages="2") == "[deck.pptx, slide 2 of 2]\n\n# secret"


def test_slides_beyond_the_limit_are_refused() -> None:
    data = made(*[titled("x")] * 6)
    with pytest.raises(CapacityError, match=r'6 slides.*pages="1-4"'):
        read(data, limits=DocumentLimits(max_pages=4))
    assert "slide 5" not in text(data, pages="1-4", limits=DocumentLimits(max_pages=4))
    with pytest.raises(InputError, match="has 6"):
        read(data, pages="9")


def test_shapes_for_newer_programs_are_read_once() -> None:
    def twice(slide: Any) -> None:
        box = slide.shapes.add_textbox(*BOX, *BOX)
        box.text_frame.text = "only once"
        tree = box._element.getparent()
        content = parse_xml(
            '<mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/'
            'markup-compatibility/2006"><mc:Choice Requires="p14"/><mc:Fallback/>'
            "</mc:AlternateContent>"
        )
        tree.append(content)
        content[1].append(box._element)

    assert text(made(twice, layout=BLANK)) == "[deck.pptx, slide 1 of 1]\n\nonly once"


def test_charts_without_values_and_unknown_frames_are_counted() -> None:
    def frame(slide: Any) -> None:
        titled("x")(slide)
        slide.shapes._spTree.append(
            parse_xml(
                '<p:graphicFrame xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/'
                'main" xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main">'
                '<p:nvGraphicFramePr><p:cNvPr id="9" name="d"/><p:cNvGraphicFramePr/><p:nvPr/>'
                '</p:nvGraphicFramePr><p:xfrm><a:off x="0" y="0"/><a:ext cx="1" cy="1"/></p:xfrm>'
                '<a:graphic><a:graphicData uri="http://schemas.openxmlformats.org/drawingml/2006/'
                'diagram"/></a:graphic></p:graphicFrame>'
            )
        )

    assert read(made(frame)).notes == ("charts and diagrams left out: 1",)


@pytest.mark.parametrize("slides", [[], [lambda _: None]], ids=["no slides", "an empty slide"])
def test_a_presentation_without_anything_is_refused(slides: list[Callable[[Any], object]]) -> None:
    with pytest.raises(MediaError) as caught:
        read(made(*slides, layout=BLANK))
    assert caught.value.code == "no_content"
