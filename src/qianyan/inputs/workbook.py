"""Read Excel workbooks (.xlsx): each sheet as Markdown tables, its pictures after them.

Cells show the results that Excel stored with them; a sheet that was never calculated shows its
formulas. Empty edges are trimmed and blank rows part tables. Hidden sheets are left out and named,
unless `pages` asks for them. Declared sheet sizes are not believed (ECMA-376, part 1, section 18).
"""

import datetime as dt
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from qianyan.errors import MediaError, quote
from qianyan.inputs.archive import Package
from qianyan.inputs.document_parts import (
    Document,
    Pieces,
    one_line,
    refusing_damage,
)
from qianyan.inputs.page_ranges import check_num_pages, choose_pages
from qianyan.inputs.workbook_drawings import Drawings

_MAX_ROW = 1_048_576
_FORMULA = re.compile(rb"<(?:\w{1,20}:)?f[ />]")

_Row = Sequence[object]


def read_workbook(package: Package, pieces: Pieces, pages: str | None) -> Document:
    """Put the sheets of a workbook into `pieces`; `pages` counts sheets.

    Raises:
        MediaError: code missing_extra, truncated, no_content or timeout.
        CapacityError: more sheets, rows, columns, text or pictures than the limits allow.
        InputError: `pages` is not understood.
    """
    odd = _odd_errors(pieces)
    with refusing_damage(pieces.name, *odd), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="openpyxl")  # about what it does not keep
        book = _Book(package, pieces)
        chosen = book.choose(pages)
        anything = [book.add_sheet(index) for index in chosen]
    if not any(anything):
        raise MediaError(
            f"{quote(pieces.name)} has nothing in its sheets; expected cells with values. Hidden "
            "sheets are read when pages names them.",
            code="no_content",
        )
    return pieces.document("xlsx", book.num_sheets)


def _odd_errors(pieces: Pieces) -> tuple[type[Exception], ...]:
    """Find openpyxl's own errors, which are no kinds of Python's."""
    try:
        from openpyxl.utils import (  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
            exceptions,  # (extra: documents)
        )
    except ImportError as error:
        raise MediaError(
            f"{quote(pieces.name)} is an Excel workbook, which needs the extra: "
            "pip install 'qianyan[documents]'.",
            code="missing_extra",
        ) from error
    return (
        exceptions.InvalidFileException,
        exceptions.CellCoordinatesException,
        exceptions.IllegalCharacterError,
        exceptions.SheetTitleException,
        exceptions.NamedRangeException,
    )


class _Book:
    """A workbook, opened a second time for its formulas when it has any."""

    def __init__(self, package: Package, pieces: Pieces) -> None:
        from openpyxl import (  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
            load_workbook,  # (extra: documents)
        )

        def load(*, data_only: bool) -> Any:
            return load_workbook(
                package.packed(), read_only=True, data_only=data_only, keep_links=False
            )

        self._pieces = pieces
        self._drawings = Drawings(package, pieces)
        self._results = load(data_only=True)
        self._formulas = load(data_only=False) if _has_formulas(package) else None
        self._sheets = list(self._results.worksheets)
        if charts := len(self._results.sheetnames) - len(self._sheets):
            pieces.count("chart sheets left out", charts)

    @property
    def num_sheets(self) -> int:
        """Sheets with cells, hidden ones included."""
        return len(self._sheets)

    def choose(self, pages: str | None) -> list[int]:
        """Choose the sheets to read; hidden ones only where `pages` names them."""
        chosen = choose_pages(pages, self.num_sheets, self._pieces)
        if pages is None:
            hidden = [index for index in chosen if self._sheets[index].sheet_state != "visible"]
            if hidden:
                named = ", ".join(quote(one_line(self._sheets[index].title)) for index in hidden)
                self._pieces.say(f"hidden sheets left out: {named}")
            chosen = [index for index in chosen if index not in hidden]
        check_num_pages(chosen, self._pieces.limits.max_sheets, "sheets", self._pieces)
        return chosen

    def add_sheet(self, index: int) -> bool:
        """Add a sheet's heading, tables and pictures; tells whether there was anything."""
        title = self._sheets[index].title
        hidden = "" if self._sheets[index].sheet_state == "visible" else " (hidden)"
        self._pieces.add_text(f'## Sheet "{one_line(title)}"{hidden}')
        placed: list[tuple[str, bytes]] = []
        has_cells = self._add_tables(title, placed)
        for mark, data in placed:
            self._pieces.add_text(mark)
            self._pieces.add_picture(data)
        has_drawings = self._drawings.add(title)
        if not has_cells and not has_drawings:
            self._pieces.add_text("(empty)")
        return has_cells or has_drawings

    def _add_tables(self, title: str, placed: list[tuple[str, bytes]]) -> bool:
        """Add a sheet's cells, a table for each run of rows that are not blank."""
        table = _Table(f"the sheet {quote(one_line(title))}", self._pieces)
        for row in self._rows(title):
            cells = [_text(value) for value in row]
            for column, cell in enumerate(cells):
                if image := self._drawings.image_in_cell(cell):
                    cells[column] = self._pieces.mark()
                    placed.append((cells[column], image))
            table.add(cells)
        table.end()
        return table.num_rows > 0

    def _rows(self, title: str) -> Iterator[_Row]:
        """Iterate rows: of stored results, or of formulas where a sheet has no result at all."""
        if self._formulas is None or title not in self._formulas.sheetnames:
            return _values(self._results[title])
        formulas = 0
        pairs = zip(_values(self._results[title]), _values(self._formulas[title]), strict=False)
        for results, row in pairs:
            self._pieces.check_time()
            for result, value in zip(results, row, strict=False):
                if _is_formula(value):
                    formulas += 1
                    if result is not None:
                        return _values(self._results[title])
        if formulas:
            self._pieces.count("formulas shown as such, as no result is stored", formulas)
        return _values(self._formulas[title])


class _Table:
    """Collects rows until a blank one, then writes them without their empty edges."""

    def __init__(self, what: str, pieces: Pieces) -> None:
        self._what = what
        self._pieces = pieces
        self._rows: list[list[str]] = []
        self._size = 0
        self.num_rows = 0

    def add(self, cells: list[str]) -> None:
        """Add a row; a blank one ends the table."""
        while cells and not cells[-1]:
            cells.pop()
        if not cells:
            self.end()
            return
        self.num_rows += 1
        self._size += sum(map(len, cells)) + 3 * len(cells)
        self._pieces.check_table(self.num_rows, len(cells), self._what)
        self._pieces.check_room(self._size)
        self._rows.append(cells)

    def end(self) -> None:
        """Write what was collected."""
        if self._rows:
            left = min(next(i for i, cell in enumerate(row) if cell) for row in self._rows)
            self._pieces.add_table([row[left:] for row in self._rows])
            self._rows.clear()
            self._size = 0


def _has_formulas(package: Package) -> bool:
    return any(
        name.startswith("xl/worksheets/") and _FORMULA.search(blob)
        for name, blob in package.members.items()
    )


def _values(sheet: Any) -> Iterator[_Row]:
    sheet.reset_dimensions()  # what a file declares may be a million empty rows
    rows: Iterator[_Row] = sheet.iter_rows(min_row=1, max_row=_MAX_ROW, values_only=True)
    return rows


def _is_formula(value: object) -> bool:
    return (isinstance(value, str) and value.startswith("=")) or hasattr(value, "ref")


def _text(value: object) -> str:
    """Write a cell's value: dates as in ISO 8601, numbers with what is exact in them."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, dt.datetime):
        return value.strftime("%Y-%m-%d" if value.time() == dt.time() else "%Y-%m-%d %H:%M:%S")
    if isinstance(value, dt.timedelta):
        minutes, seconds = divmod(round(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    if isinstance(value, dt.time):
        return value.isoformat("seconds")
    if hasattr(value, "ref"):  # array formulas and data tables
        return str(getattr(value, "text", None) or "=TABLE()")
    return str(value).strip()
