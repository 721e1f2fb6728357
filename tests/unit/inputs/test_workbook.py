"""Workbooks: stored results as tables, pictures after them, nothing hidden unsaid."""

import datetime as dt
import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import openpyxl
import pytest
from openpyxl.comments import Comment
from openpyxl.drawing.image import Image as SheetImage
from PIL import Image

from qianyan.errors import CapacityError, InputError, MediaError
from qianyan.inputs.documents import Document, DocumentLimits, read_document

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
SHEET = "xl/worksheets/sheet1.xml"


def png(colour: str = "red") -> BytesIO:
    out = BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "PNG")
    out.seek(0)
    return out


def saved(book: Any) -> bytes:
    out = BytesIO()
    book.save(out)
    return out.getvalue()


def made(cells: dict[str, object], *steps: Callable[[Any], object]) -> bytes:
    book = openpyxl.Workbook()
    for place, value in cells.items():
        book.active[place] = value
    for step in steps:
        step(book)
    return saved(book)


def changed(data: bytes, change: Callable[[bytes], bytes], at: str = SHEET) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(out, "w", 8) as new:
        for name in old.namelist():
            blob = old.read(name)
            new.writestr(name, change(blob) if name == at else blob)
    return out.getvalue()


def with_cells(xml: str) -> bytes:
    """A sheet whose rows are hand-written XML."""
    return changed(
        made({"A1": 1}),
        lambda blob: re.sub(
            rb"<sheetData>.*</sheetData>", f"<sheetData>{xml}</sheetData>".encode(), blob
        ),
    )


def read(
    data: bytes,
    *,
    sees: bool = True,
    pages: str | None = None,
    limits: DocumentLimits | None = None,
) -> Document:
    return read_document(
        data,
        name="checks.xlsx",
        media_type=None,
        limits=limits or DocumentLimits(),
        wants_pictures=sees,
        pages=pages,
    )


def text(data: bytes, **options: Any) -> str:
    parts = read(data, **options).parts
    return "".join(part if isinstance(part, str) else "<picture>" for part in parts)


HEAD = '[checks.xlsx]\n\n## Sheet "Sheet"\n\n'


def test_cells_become_a_table_without_empty_edges() -> None:
    data = made({"C3": "Item", "D3": "Count", "C4": "Helmet|red", "D4": 12, "F9": None})
    assert text(data) == HEAD + "| Item | Count |\n| --- | --- |\n| Helmet\\|red | 12 |"


def test_values_are_written_as_people_read_them() -> None:
    values = [
        (0.1 + 0.2, "0.3"),
        (1e21, "1e+21"),
        (True, "TRUE"),
        (dt.datetime(2026, 11, 24), "2026-11-24"),  # noqa: DTZ001  (Excel knows no zones)
        (dt.datetime(2026, 11, 24, 8, 30), "2026-11-24 08:30:00"),  # noqa: DTZ001
        (dt.time(7, 5), "07:05:00"),
        (dt.timedelta(hours=30, minutes=2), "30:02:00"),
        ("two\nlines", "two<br>lines"),
        ("安全", "安全"),
    ]
    data = made({f"A{row}": value for row, (value, _) in enumerate(values, 1)})
    lines = text(data).splitlines()[4:]
    assert lines[1] == "| --- |"
    assert [line.strip("| ") for line in (lines[0], *lines[2:])] == [shown for _, shown in values]


def test_blank_rows_part_tables() -> None:
    data = made({"A1": "a", "A2": "b", "B5": "c"})
    assert text(data) == HEAD + "| a |\n| --- |\n| b |\n\n| c |\n| --- |"


def test_stored_results_are_shown_for_formulas() -> None:
    data = with_cells(
        '<row r="1"><c r="A1"><v>2</v></c><c r="B1"><f>A1*2</f><v>4</v></c>'
        '<c r="C1" t="str"><f>IF(A1=2,"","x")</f><v></v></c></row>'
    )
    document = read(data)
    assert document.parts == (HEAD + "| 2 | 4 |\n| --- | --- |",)
    assert document.notes == ()


def test_a_sheet_never_calculated_shows_its_formulas_and_says_so() -> None:
    document = read(made({"A1": 2, "B1": "=A1*2"}))
    assert document.parts == (HEAD + "| 2 | =A1*2 |\n| --- | --- |",)
    assert document.notes == ("formulas shown as such, as no result is stored: 1",)


def test_each_sheet_has_its_name() -> None:
    def second(book: Any) -> None:
        book.create_sheet("巡检")["A1"] = "x"
        book.create_sheet("Blank")

    document = read(made({"A1": "a"}, second))
    assert document.num_pages == 3
    assert document.parts == (
        HEAD + '| a |\n| --- |\n\n## Sheet "巡检"\n\n| x |\n| --- |\n\n## Sheet "Blank"\n\n(empty)',
    )


def hidden(book: Any) -> None:
    sheet = book.create_sheet("Costs")
    sheet["A1"] = "secret"
    sheet.sheet_state = "veryHidden"


def test_hidden_sheets_are_left_out_and_named() -> None:
    document = read(made({"A1": "a"}, hidden))
    assert "secret" not in str(document.parts)
    assert document.notes == ("hidden sheets left out: 'Costs'",)


def test_hidden_sheets_are_read_when_asked_for() -> None:
    document = read(made({"A1": "a"}, hidden), pages="2")
    assert document.parts == ('[checks.xlsx]\n\n## Sheet "Costs" (hidden)\n\n| secret |\n| --- |',)


def test_sheets_beyond_the_limit_are_refused() -> None:
    data = made({"A1": "a"}, *[lambda book: book.create_sheet()["A1"].__setattr__("value", 1)] * 5)
    with pytest.raises(CapacityError, match=r'6 sheets.*pages="1-4"'):
        read(data, limits=DocumentLimits(max_sheets=4))
    assert "Sheet4" not in text(data, pages="1-4", limits=DocumentLimits(max_sheets=4))
    with pytest.raises(InputError, match="has 6"):
        read(data, pages="7")


def test_pictures_come_after_their_sheet_with_their_cell() -> None:
    def pictures(book: Any) -> None:
        book.active.add_image(SheetImage(png("blue")), "C7")
        book.active.add_image(SheetImage(png("red")), "AA2")

    document = read(made({"A1": "a"}, pictures))
    first, red, second, blue = document.parts
    assert isinstance(red, Image.Image)
    assert isinstance(blue, Image.Image)
    assert str(first).endswith("[picture at AA2]")
    assert second == "[picture at C7]"
    assert red.getpixel((1, 1)) == (255, 0, 0)
    assert blue.getpixel((1, 1)) == (0, 0, 255)


def test_pictures_in_cells_of_wps_are_found() -> None:
    spaces = (
        'xmlns:xdr="http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing" '
        'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
        'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
    )
    images = (
        f'<etc:cellImages xmlns:etc="http://www.wps.cn/officeDocument/2017/etCustomData" {spaces}>'
        '<etc:cellImage><xdr:pic><xdr:nvPicPr><xdr:cNvPr id="2" name="ID_AB"/></xdr:nvPicPr>'
        '<xdr:blipFill><a:blip r:embed="rId1"/></xdr:blipFill></xdr:pic></etc:cellImage>'
        "</etc:cellImages>"
    )
    rels = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="rId1" Target="media/image1.png" Type="http://schemas.openxmlformats.org/'
        'officeDocument/2006/relationships/image"/></Relationships>'
    )
    out = BytesIO(made({"A1": "Photo", "A2": '=DISPIMG("ID_AB",1)'}))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("xl/cellimages.xml", images)
        archive.writestr("xl/_rels/cellimages.xml.rels", rels)
        archive.writestr("xl/media/image1.png", png("green").getvalue())
    table, image = read(out.getvalue()).parts
    assert table == HEAD + "| Photo |\n| --- |\n| [picture 1] |\n\n[picture 1]"
    assert isinstance(image, Image.Image)


def test_comments_and_charts_are_counted() -> None:
    from openpyxl.chart import BarChart, Reference

    def extras(book: Any) -> None:
        sheet = book.active
        sheet["A1"].comment = Comment("look", "QA")
        chart = BarChart()
        chart.add_data(Reference(sheet, min_col=1, min_row=1, max_row=1))
        sheet.add_chart(chart, "C3")

    assert set(read(made({"A1": 1}, extras)).notes) == {
        "cell comments left out: 1",
        "charts and diagrams left out: 1",
    }


def test_a_million_declared_rows_cost_nothing() -> None:
    data = changed(
        made({"A1": "a"}),
        lambda blob: re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1:XFD1048576"', blob),
    )
    assert b"XFD1048576" in zipfile.ZipFile(BytesIO(data)).read(SHEET)
    assert text(data) == HEAD + "| a |\n| --- |"


@pytest.mark.parametrize("row", [1_048_576, 99_999_999_999])
def test_a_cell_far_below_does_not_fill_the_gap(row: int) -> None:
    xml = f'<row r="1"><c r="A1"><v>1</v></c></row><row r="{row}"><c r="A{row}"><v>2</v></c></row>'
    assert text(with_cells(xml)).startswith(HEAD + "| 1 |\n| --- |")


def test_rows_and_columns_beyond_the_limits_are_refused() -> None:
    data = made({f"A{row}": row for row in range(1, 12)})
    with pytest.raises(CapacityError, match="the sheet 'Sheet' of more than 10 rows"):
        read(data, limits=DocumentLimits(max_rows=10))
    with pytest.raises(CapacityError, match="more than 500 columns"):
        read(made({"XFD1": "far"}))


def test_one_long_text_shared_by_many_cells_is_counted_each_time() -> None:
    rows = "".join(f'<row r="{n}"><c r="A{n}" t="s"><v>0</v></c></row>' for n in range(1, 10_000))
    override = (
        '<Override PartName="/xl/sharedStrings.xml" ContentType="application/vnd.openxmlformats-'
        'officedocument.spreadsheetml.sharedStrings+xml"/></Types>'
    )
    data = changed(
        with_cells(rows),
        lambda blob: blob.replace(b"</Types>", override.encode()),
        at="[Content_Types].xml",
    )
    out = BytesIO(data)
    with zipfile.ZipFile(out, "a") as archive:
        text = "long " * 2000
        archive.writestr(
            "xl/sharedStrings.xml", f'<sst xmlns="{MAIN}"><si><t>{text}</t></si></sst>'
        )
    data = out.getvalue()
    assert len(data) < 100_000
    with pytest.raises(CapacityError, match="characters"):
        read(data)


def test_an_empty_workbook_is_refused() -> None:
    with pytest.raises(MediaError) as caught:
        read(made({}))
    assert caught.value.code == "no_content"


@pytest.mark.parametrize(
    "xml",
    [
        '<row r="x"><c r="A1"><v>1</v></c></row>',
        '<row r="1"><c r="1A"><v>1</v></c></row>',
        '<row r="1"><c r="A1" t="s"><v>999</v></c></row>',
        '<row r="1"><c r="A1" t="n"><v>one</v></c></row>',
    ],
)
def test_broken_cells_are_one_sentence(xml: str) -> None:
    with pytest.raises(MediaError) as caught:
        read(with_cells(xml))
    assert caught.value.code == "truncated"
    assert "openpyxl" not in str(caught.value)
