"""Text files: which characters their bytes are, and tables in CSV and TSV.

Encodings are tried in a fixed order: the byte order mark, what was declared, UTF-8, GB 18030.
"""

import codecs
import csv
import re
from collections import Counter

from qianyan.errors import MediaError, quote
from qianyan.inputs.document_parts import Document, Pieces

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What may be declared: names as Python's codecs have them. Older Chinese names mean GB 18030, and
# Latin-1 means Windows-1252, as browsers read them (WHATWG Encoding).
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "iso8859-1": "cp1252", "ascii": "cp1252"}
_DECLARABLE = re.compile(
    r"utf-8|gb\w+|big5\w*|shift_jis|cp932|cp949|euc_\w+|iso2022_jp|iso8859-\d+|"
    r"cp125\d|cp874|cp866|koi8-[ru]|ascii|tis-620"
)
_MOST_NULS = 0.01
_DELIMITERS = ",\t;|"
_SAMPLE_ROWS = 50
_JSON_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_FIRST_LETTER = 0xA0


def decode(data: bytes, pieces: Pieces, declared: str | None = None) -> str:
    """Turn the bytes of a text file into characters.

    NUL bytes of a text that is otherwise one are dropped and counted.

    Raises:
        MediaError: code too_large, unsupported_format or not_text.
    """
    limit = pieces.limits.max_markup_bytes
    if len(data) > limit:
        raise MediaError(
            f"{quote(pieces.name)} is {len(data) / 1e6:.1f} MB of text; expected at most "
            f"{limit / 1e6:g} MB. {pieces.way_out}",
            code="too_large",
        )
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                raise _not_text(pieces) from error
    if nuls := data.count(0):
        if nuls > max(1, len(data) * _MOST_NULS):
            raise _not_text(pieces)
        pieces.count("NUL bytes dropped", nuls)
        data = data.replace(b"\0", b"")
    known = _known(declared)
    for encoding in (*([known] if known else []), "utf-8", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise _not_text(pieces)


def _known(declared: str | None) -> str | None:
    """Find the codec for a declared encoding; None for unknown names and those of no texts."""
    try:
        name = codecs.lookup((declared or "").strip().lower()).name
    except (LookupError, ValueError):
        return None
    return _SUPERSETS.get(name, name) if _DECLARABLE.fullmatch(name) else None


def _not_text(pieces: Pieces) -> MediaError:
    return MediaError(
        f"{quote(pieces.name)} is neither text in UTF-8, UTF-16 or GB 18030 nor a document of a "
        "known kind. Save it as UTF-8 text, PDF, .docx, .xlsx or .pptx.",
        code="not_text",
    )


def read_plain(text: str, pieces: Pieces, kind: str) -> Document:
    """Take text, Markdown or JSON as it is."""
    pieces.add_text(text)
    return pieces.document(kind)


def unescape_json(text: str) -> str:
    """Write letters of JSON that stand as \\uXXXX as themselves; all else stays as it is."""

    def letter(found: re.Match[str]) -> str:
        # Quotes, backslashes and control characters would change what the text means.
        is_letter = found[1] and int(found[1], 16) >= _FIRST_LETTER
        return chr(int(found[1], 16)) if is_letter else found[0]

    if "\\u" not in text:
        return text
    halves = _JSON_ESCAPE.sub(letter, text)  # letters beyond 16 bits come as two
    return halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read_table(text: str, pieces: Pieces) -> Document:
    """Read CSV or TSV as one table; what cannot be parsed as such is taken as it is.

    Raises:
        CapacityError: more rows, columns or text than the limits allow.
        MediaError: code no_content.
    """
    pieces.check_room(len(text) // 2)  # at most half of it is quotes and delimiters
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    delimiter, lines = _delimiter(lines)
    rows: list[list[str]] = []
    size = 0
    try:
        for row in csv.reader(lines.splitlines(keepends=True), delimiter=delimiter):
            while row and not row[-1].strip():
                row.pop()
            if not row:
                continue
            rows.append(row)
            size += sum(map(len, row)) + 3 * len(row)
            pieces.check_table(len(rows), len(row))
            pieces.check_room(size)
    except csv.Error:  # a cell beyond the reader's own limit
        pieces.say("not a well-formed table, shown as plain text")
        return read_plain(text, pieces, "csv")
    pieces.add_table(rows)
    return pieces.document("csv")


def _delimiter(text: str) -> tuple[str, str]:
    """Find what parts the columns; returns it with the text, less a line "sep=;" of Excel's."""
    first, _, rest = text.partition("\n")
    if first.lower().startswith("sep=") and len(first) == 5 and first[4] in _DELIMITERS:
        return first[4], rest
    sample = "".join(text[: 1 << 16].splitlines(keepends=True)[:_SAMPLE_ROWS])
    return max(_DELIMITERS, key=lambda delimiter: _fitness(sample, delimiter)), text


def _fitness(sample: str, delimiter: str) -> tuple[float, int]:
    """Score a delimiter: the share of rows with the most usual number of columns, then columns."""
    try:
        rows = [
            row for row in csv.reader(sample.splitlines(keepends=True), delimiter=delimiter) if row
        ]
    except csv.Error:
        return (0.0, 0)
    widths = Counter(map(len, rows))
    if not widths:
        return (0.0, 0)
    width, times = max(widths.items(), key=lambda item: (item[1], item[0]))
    return (times / len(rows) if width > 1 else 0.0, width)
