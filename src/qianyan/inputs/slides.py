"""Read presentations (.pptx): each slide's title, text, tables, chart values, notes and pictures.

Shapes are read from top to bottom and left to right, the title first. Slides are not drawn: that
would take an office program. Hidden slides are left out and named, unless `pages` asks for them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from qianyan.errors import MediaError, quote
from qianyan.inputs.archive import Package
from qianyan.inputs.document_parts import (
    DAMAGE,
    Document,
    Pieces,
    clean,
    one_line,
    refusing_damage,
)
from qianyan.inputs.page_ranges import check_num_pages, choose_pages

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_LINE_EMU = 228_600  # shapes whose tops differ by less than a quarter inch stand side by side
_COMMENTS = ("ppt/comments/", "ppt/threadedComments/")


def read_slides(package: Package, pieces: Pieces, pages: str | None) -> Document:
    """Put the slides of a presentation into `pieces`; `pages` counts slides.

    Raises:
        MediaError: code missing_extra, truncated, no_content or timeout.
        CapacityError: more slides, text or pictures than the limits allow.
        InputError: `pages` is not understood.
    """
    try:
        from pptx import Presentation  # noqa: PLC0415  (extra: documents)
        from pptx.exc import PythonPptxError  # noqa: PLC0415  (extra: documents)
    except ImportError as error:
        raise MediaError(
            f"{quote(pieces.name)} is a presentation, which needs the extra: "
            "pip install 'qianyan[documents]'.",
            code="missing_extra",
        ) from error
    with refusing_damage(pieces.name, PythonPptxError):
        slides = list(Presentation(package.packed()).slides)
        chosen = _choose(slides, pages, pieces)
        anything = [_add_slide(slides[index], index, len(slides), pieces) for index in chosen]
    if comments := sum(name.startswith(_COMMENTS) for name in package.members):
        pieces.count("slides whose comments are left out", comments)
    if not any(anything):
        raise MediaError(
            f"{quote(pieces.name)} has nothing on its slides; expected text or pictures.",
            code="no_content",
        )
    return pieces.document("pptx", len(slides))


def _choose(slides: Sequence[Any], pages: str | None, pieces: Pieces) -> list[int]:
    chosen = choose_pages(pages, len(slides), pieces)
    if pages is None:
        hidden = [index for index in chosen if slides[index].element.get("show") in {"0", "false"}]
        if hidden:
            pieces.say(f"hidden slides left out: {', '.join(str(index + 1) for index in hidden)}")
        chosen = [index for index in chosen if index not in hidden]
    check_num_pages(chosen, pieces.limits.max_pages, "slides", pieces)
    return chosen


def _add_slide(slide: Any, index: int, num_slides: int, pieces: Pieces) -> bool:
    """Add a slide's heading and all that is on it; tells whether there was anything."""
    pieces.check_time()
    pieces.add_text(f"[{pieces.name}, slide {index + 1} of {num_slides}]")
    _settle_alternatives(slide.shapes.element)
    before = pieces.size
    title = slide.shapes.title
    if title is not None and title.has_text_frame:
        pieces.add_text(
            f"# {one_line(title.text_frame.text)}" if title.text_frame.text.strip() else ""
        )
    for shape in _in_reading_order(slide.shapes):
        if title is None or shape.shape_id != title.shape_id:
            _add_shape(shape, slide.part, pieces)
    if slide.has_notes_slide:
        frame = slide.notes_slide.notes_text_frame
        if frame is not None and frame.text.strip():
            pieces.add_text(f"Notes: {_spoken(frame.text).strip()}")
    return pieces.size > before


def _settle_alternatives(tree: Any) -> None:
    """Put shapes that are written twice, for newer and older programs, in their place once."""
    for content in list(tree.iter(f"{_MC}AlternateContent")):
        parent = content.getparent()
        if parent is None or parent.tag not in {f"{_P}spTree", f"{_P}grpSp"}:
            continue
        chosen = content.find(f"{_MC}Fallback")
        if chosen is None or len(chosen) == 0:
            chosen = content.find(f"{_MC}Choice")
        for shape in [] if chosen is None else list(chosen):
            content.addprevious(shape)
        parent.remove(content)


def _in_reading_order(shapes: Any) -> list[Any]:
    return sorted(shapes, key=lambda shape: ((shape.top or 0) // _LINE_EMU, shape.left or 0))


def _add_shape(shape: Any, part: Any, pieces: Pieces) -> None:
    pieces.check_time()
    tag = shape.element.tag
    if tag == f"{_P}grpSp":
        for inner in _in_reading_order(shape.shapes):
            _add_shape(inner, part, pieces)
    elif tag == f"{_P}graphicFrame":
        _add_frame(shape, part, pieces)
    else:
        if shape.has_text_frame:
            pieces.add_text(_paragraphs(shape))
        _add_pictures(shape, part, pieces)


def _paragraphs(shape: Any) -> str:
    """Write a shape's paragraphs, as a list where it is a slide's body."""
    is_list = shape.is_placeholder and len(shape.text_frame.paragraphs) > 1
    lines = []
    for paragraph in shape.text_frame.paragraphs:
        text = _spoken(paragraph.text).strip()
        if text:
            lines.append(
                "  " * paragraph.level + ("- " if is_list or paragraph.level else "") + text
            )
    return "\n".join(lines)


def _spoken(text: str) -> str:
    return clean(text.replace("\v", "\n"))  # python-pptx's sign for a line break


def _add_frame(shape: Any, part: Any, pieces: Pieces) -> None:
    """Add a table or a chart's values; other frames show the picture they carry, if any."""
    if shape.has_table:
        rows = []
        for row in shape.table.rows:
            rows.append(["" if cell.is_spanned else _spoken(cell.text) for cell in row.cells])
            pieces.check_table(len(rows), len(rows[-1]))
        pieces.check_room(sum(len(cell) for row in rows for cell in row))
        pieces.add_table(rows)
    elif shape.has_chart:
        try:
            _add_chart(shape.chart, pieces)
        except DAMAGE:  # kinds of charts that python-pptx does not know
            pieces.count("charts and diagrams left out")
    elif not _add_pictures(shape, part, pieces):
        pieces.count("charts and diagrams left out")


def _add_chart(chart: Any, pieces: Pieces) -> None:
    title = one_line(chart.chart_title.text_frame.text) if chart.has_title else ""
    rows = []
    for plot in chart.plots:
        rows.append(["", *(str(category) for category in plot.categories)])
        for series in plot.series:
            values = ("" if value is None else f"{value:.15g}" for value in series.values)
            rows.append([str(series.name), *values])
            pieces.check_table(len(rows), len(rows[-1]), "a chart")
    pieces.add_text(f"[chart] {title}".strip())
    pieces.add_table(rows)


def _add_pictures(shape: Any, part: Any, pieces: Pieces) -> bool:
    """Add the pictures that a shape shows; tells whether there were any."""
    found = False
    for blip in _blips(shape.element):
        relation = part.rels.get(blip.get(f"{_R}embed"))
        if relation is None or relation.is_external:
            pieces.count("pictures outside the document")
            continue
        described = shape.element.find(f".//{_P}cNvPr")
        alt = "" if described is None else described.get("descr", "")
        pieces.add_picture(relation.target_part.blob, alt)
        found = True
    return found


def _blips(element: Any) -> Iterator[Any]:
    for blip in element.iter(f"{_A}blip"):
        if blip.get(f"{_R}embed") or blip.get(f"{_R}link"):
            yield blip
