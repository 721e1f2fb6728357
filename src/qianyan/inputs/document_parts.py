"""What documents become, and within which limits: text and pictures in reading order.

Readers put what they find into `Pieces`, which counts. Nothing is cut: what exceeds a limit is
refused with the way to send less, and what is left out is counted in the document's notes.
"""

import re
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt

from PIL import Image

from qianyan.errors import CapacityError, MediaError, quote
from qianyan.inputs.images import ImageLimits, read_image

# What readers of documents raise on damaged files. They are many, and their texts stay inside.
DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,  # all XML parsers' errors
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,  # RecursionError and PDFium's own
    MemoryError,
    struct.error,
    zlib.error,
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True)
class DocumentLimits:
    """What a document may cost; checked while it is read, before the next piece is made.

    Args:
        max_pages: pages of a PDF or slides of a presentation that are read at once.
        max_sheets: sheets of a workbook that are read at once.
        max_rows: rows of one table that hold anything.
        max_columns: columns of one table, up to the last that holds anything.
        max_characters: of all text, tables' lines included.
        max_pictures: pictures of pages and embedded pictures together.
        picture_pixels: area a page is drawn with; larger embedded pictures are reduced to it.
        max_picture_pixels: largest embedded picture that is decoded.
        max_markup_bytes: largest text file, and all XML of an office document, unpacked.
        max_unpacked_bytes: all that is unpacked of an office document.
        max_unpack_ratio: unpacked bytes for each byte of the file.
        max_members: files inside an office document.
        timeout_s: for the whole reading; looked at between pages, blocks and rows.
    """

    max_pages: int = 200
    max_sheets: int = 50
    max_rows: int = 20_000
    max_columns: int = 500
    max_characters: int = 400_000
    max_pictures: int = 64
    picture_pixels: int = 2_000_000
    max_picture_pixels: int = 50_000_000
    max_markup_bytes: int = 25_000_000
    max_unpacked_bytes: int = 250_000_000
    max_unpack_ratio: float = 200.0
    max_members: int = 5_000
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Document:
    """A document as message parts in reading order, pictures upright RGB.

    `num_pages` counts all pages, slides or sheets of the file, also those not asked for; None
    where the format has none. `notes` says what was left out.
    """

    name: str
    kind: str
    parts: tuple[str | Image.Image, ...]
    num_pages: int | None = None
    notes: tuple[str, ...] = ()


class Pieces:
    """The parts of one document while it is read.

    `way_out` is the sentence that tells how to send less; readers of formats with pages set it.
    """

    def __init__(self, name: str, limits: DocumentLimits, *, wants_pictures: bool) -> None:
        self.name = name
        self.limits = limits
        self.wants_pictures = wants_pictures
        self.way_out = "Send a part of it."
        self._parts: list[str | Image.Image] = []
        self._lines: list[str] = []
        self._num_characters = 0
        self._num_pictures = 0
        self._num_marks = 0
        self._notes: dict[str, int] = {}
        self._deadline = time.monotonic() + limits.timeout_s

    def add_text(self, text: str, *, gap: str = "\n\n") -> None:
        """Append a block of text, `gap` after the text before it; blank blocks are dropped."""
        text = clean(text).strip("\n")
        if not text.strip():
            return
        self.check_room(len(text))
        self._num_characters += len(text)
        if self._lines:
            self._lines.append(gap)
        self._lines.append(text)

    def add_table(self, rows: Sequence[Sequence[str]]) -> None:
        """Append rows as a Markdown table, the first as its head; short rows are filled up."""
        width = max((len(row) for row in rows), default=0)
        self.check_room(3 * len(rows) * width)  # before it is built: the edges alone may be many
        lines = [_table_line([*row, *[""] * (width - len(row))]) for row in rows]
        if lines:
            lines.insert(1, "|" + " --- |" * width)
        self.add_text("\n".join(lines))

    def add_picture(self, data: bytes, alt: str = "") -> None:
        """Append an embedded picture; one that is not shown leaves a word and is counted."""
        if not self.wants_pictures:
            self.count("pictures not shown (the model reads text only)")
            self.add_text(f"[picture: {one_line(alt)}]" if alt.strip() else "[picture]")
            return
        self.check_pictures()
        try:
            photo = read_image(data, limits=ImageLimits(max_pixels=self.limits.max_picture_pixels))
        except MediaError as error:
            self.count(_UNREAD_PICTURES.get(error.code, "pictures that cannot be read"))
            self.add_text("[picture that cannot be read]")
            return
        for note in photo.notes:
            self.count(f"pictures {note}")
        self.show(self._reduced(photo.rgb))

    def show(self, image: Image.Image) -> None:
        """Append a picture that is ready to be seen."""
        self.check_pictures()
        self._num_pictures += 1
        self._flush()
        self._parts.append(image)

    def mark(self) -> str:
        """Make the words that stand in a table for a picture shown after it."""
        self._num_marks += 1
        return f"[picture {self._num_marks}]"

    @property
    def size(self) -> int:
        """Characters and pictures so far, to tell whether something was added."""
        return self._num_characters + self._num_pictures

    def count(self, what: str, number: int = 1) -> None:
        """Note that `number` more of something were left out or changed."""
        self._notes[what] = self._notes.get(what, 0) + number

    def say(self, note: str) -> None:
        """Note something that is not counted, once."""
        self._notes.setdefault(note, 0)

    def check_room(self, num_characters: int) -> None:
        """Refuse text beyond the limit, and reading beyond the time limit.

        Raises:
            CapacityError: `num_characters` more would be too many.
            MediaError: code timeout.
        """
        self.check_time()
        most = self.limits.max_characters
        if self._num_characters + num_characters > most:
            raise CapacityError(
                f"{quote(self.name)} has more than {most} characters of text, the most that are "
                f"read at once. {self.way_out}"
            )

    def check_table(self, num_rows: int, num_columns: int, what: str = "a table") -> None:
        """Refuse a table beyond the limits (CapacityError); `what` names it in the sentence."""
        rows, columns = self.limits.max_rows, self.limits.max_columns
        if num_rows > rows or num_columns > columns:
            most, noun = (rows, "rows") if num_rows > rows else (columns, "columns")
            raise CapacityError(
                f"{quote(self.name)} has {what} of more than {most} {noun}, the most that are read "
                f"at once. {self.way_out}"
            )

    def check_pictures(self) -> None:
        """Refuse one more picture than the limit (CapacityError), and slow reading."""
        self.check_time()
        most = self.limits.max_pictures
        if self._num_pictures >= most:
            raise CapacityError(
                f"{quote(self.name)} has more than {most} pictures, the most that are read at "
                f"once. {self.way_out}"
            )

    def is_late(self) -> bool:
        """Whether the time for the whole reading is spent."""
        return time.monotonic() > self._deadline

    def check_time(self) -> None:
        """Refuse a document that takes too long (MediaError timeout)."""
        if self.is_late():
            raise MediaError(
                f"{quote(self.name)} takes longer than {self.limits.timeout_s:g} seconds to read. "
                f"{self.way_out}",
                code="timeout",
            )

    def document(self, kind: str, num_pages: int | None = None) -> Document:
        """Make the document; one in which nothing was found is refused (MediaError no_content)."""
        self._flush()
        if not self._parts:
            raise MediaError(
                f"{quote(self.name)} holds no text and no pictures; expected a document with "
                "something in it.",
                code="no_content",
            )
        notes = tuple(
            f"{what}: {number}" if number else what for what, number in self._notes.items()
        )
        return Document(self.name, kind, tuple(self._parts), num_pages, notes)

    def _flush(self) -> None:
        if self._lines:
            self._parts.append("".join(self._lines))
            self._lines.clear()

    def _reduced(self, image: Image.Image) -> Image.Image:
        most = self.limits.picture_pixels
        area = image.width * image.height
        if area <= most:
            return image
        self.count(f"pictures reduced to {most / 1e6:g} megapixels")
        shrink = sqrt(most / area)
        size = (max(1, int(image.width * shrink)), max(1, int(image.height * shrink)))
        return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


_UNREAD_PICTURES = {
    "unsupported_format": "pictures of a format that is not read",
    "not_a_picture": "pictures of a format that is not read",
    "too_small": "pictures too small to see",
    "too_large": "pictures with too many pixels",
    "too_narrow": "pictures that are strips",
}


def clean(text: str) -> str:
    """Drop control characters and halves of characters; line ends become newlines."""
    return _UNPRINTABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str) -> str:
    """Put text on one line, runs of white space as one blank."""
    return " ".join(clean(text).split())


def _table_line(cells: Sequence[str]) -> str:
    written = (
        clean(cell).strip().replace("|", "\\|").replace("\n", "<br>").replace("\t", " ")
        for cell in cells
    )
    return "| " + " | ".join(written) + " |"


@contextmanager
def refusing_damage(name: str, *also: type[Exception]) -> Iterator[None]:
    """Turn what readers raise on damaged files, and `also`, into one MediaError (truncated)."""
    kinds: tuple[type[Exception], ...] = (*DAMAGE, *also)
    try:
        yield
    except kinds as error:
        raise damaged(name) from error


def damaged(name: str) -> MediaError:
    """Make the refusal of a document that cannot be opened."""
    return MediaError(
        f"{quote(name)} is cut short or damaged and cannot be read. Copy or download it again, "
        "or save it anew.",
        code="truncated",
    )
