"""Unpack the ZIP archive of an office document (OOXML) or a book without trusting what it says.

Sizes are counted while unpacking, not read from headers. XML with a document type (the way to
entity bombs and outside files) or in an unusual encoding is refused before any parser sees it.
Pages of books (EPUB) may have one, because no XML parser reads them. Only XML, pages and pictures
are unpacked: macros, fonts, media and nested archives stay closed. What passed is packed again,
uncompressed, so that the libraries read nothing that was not looked at.
Standards: ECMA-376 part 2 (Open Packaging Conventions), EPUB 3.3 (section 4, OCF).
"""

import re
import zipfile
from dataclasses import dataclass
from io import BytesIO
from posixpath import dirname, join, normpath
from xml.etree import ElementTree as Tree

from qianyan.errors import CapacityError, MediaError, quote
from qianyan.inputs.document_parts import Pieces, damaged, refusing_damage

CONTENT_TYPES = "[Content_Types].xml"
CONTAINER = "META-INF/container.xml"
PAGES = (".xhtml", ".html", ".htm", ".xht")
_CENTRAL_ENTRY = b"PK\x01\x02"
_CHUNK = 1 << 20
_MARKUP = (".xml", ".rels", ".vml", ".opf")
_PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".heic", ".emf", ".wmf", ".svg", ".wdp"),
)
_LONGEST_DECLARATION = 512
_DECLARATION = re.compile(rb"<\?xml\s")
_ENCODING = re.compile(rb"encoding\s*=\s*[\"']([^\"']*)[\"']")
_ENCODINGS = frozenset({b"utf-8", b"utf8", b"utf-16", b"us-ascii", b"ascii"})
_RELATIONSHIP = "{http://schemas.openxmlformats.org/package/2006/relationships}Relationship"
_STRICT = b"http://purl.oclc.org/ooxml/"

_MAIN = re.compile(
    r"\.(wordprocessingml|ms-word|spreadsheetml|ms-excel|presentationml|ms-powerpoint)\."
    r"[A-Za-z.]+\.main(?:\+xml)?$"
)
_KINDS = {
    "wordprocessingml": "docx",
    "ms-word": "docx",
    "spreadsheetml": "xlsx",
    "ms-excel": "xlsx",
    "presentationml": "pptx",
    "ms-powerpoint": "pptx",
}
_PLAIN_TYPES = {
    kind: f"application/vnd.openxmlformats-officedocument.{tail}.main+xml"
    for kind, tail in (
        ("docx", "wordprocessingml.document"),
        ("xlsx", "spreadsheetml.sheet"),
        ("pptx", "presentationml.presentation"),
    )
}


@dataclass(frozen=True)
class Package:
    """A document's members by name, all looked at; `kind` is docx, xlsx, pptx or epub."""

    kind: str
    members: dict[str, bytes]

    def packed(self) -> BytesIO:
        """Pack the members again, for a library to read."""
        out = BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for name, blob in self.members.items():
                archive.writestr(zipfile.ZipInfo(name), blob)
        out.seek(0)
        return out

    def related(self, name: str) -> dict[str, tuple[str, str]]:
        """Look up what a member refers to: relationship id -> (last word of its type, member)."""
        rels_name = _rels_name(name)
        if rels_name not in self.members:
            return {}
        return {
            item.get("Id", ""): (item.get("Type", "").rpartition("/")[2], _target(name, item))
            for item in parse_markup(self.members[rels_name]).iter(_RELATIONSHIP)
            if item.get("TargetMode") != "External"
        }


def read_package(data: bytes, pieces: Pieces) -> Package:
    """Unpack an office document or a book; what is left closed is noted in `pieces`.

    Raises:
        MediaError: code password, unsupported_format, unsafe_archive, too_large or truncated.
        CapacityError: too many files inside.
    """
    if data.count(_CENTRAL_ENTRY) > 4 * pieces.limits.max_members:
        raise _too_many_members(pieces)
    with refusing_damage(pieces.name, zipfile.BadZipFile):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = _unpack(archive, len(data), pieces)
        if CONTAINER in members and CONTENT_TYPES not in members:
            return Package("epub", members)
        if CONTENT_TYPES not in members:
            raise _not_office(members, pieces)
        kind = _normalise_types(members, pieces)
        _check_relationships(members, pieces)
        return Package(kind, members)


def parse_markup(blob: bytes) -> Tree.Element:
    """Parse a member's XML; raises SyntaxError when it is damaged."""
    return Tree.fromstring(blob)  # noqa: S314  (has no document type: looked at when unpacked)


def _unpack(archive: zipfile.ZipFile, packed_bytes: int, pieces: Pieces) -> dict[str, bytes]:
    infos = archive.infolist()
    if len(infos) > pieces.limits.max_members:
        raise _too_many_members(pieces)
    members: dict[str, bytes] = {}
    room = _Room(packed_bytes, pieces)
    pages = PAGES if any(info.filename == CONTAINER for info in infos) else ()
    for info in infos:
        name = _safe_name(info.filename, pieces)
        if info.is_dir():
            continue
        if info.flag_bits & 0x1:
            raise password_needed(pieces.name)
        low = name.lower()
        if low.endswith("vbaproject.bin"):
            pieces.say("macros are not read and never run")
        elif low == "mimetype" or low.endswith((*_MARKUP, *_PICTURES, *pages)):
            members[name] = room.read(archive, info, is_markup=low.endswith((*_MARKUP, *pages)))
            if low.endswith(_MARKUP):
                _check_markup(members[name], pieces)
        elif not low.endswith((".bin", ".odttf", ".fntdata")) or "/embeddings/" in low:
            pieces.count("embedded files and media that are not opened")
    return members


class _Room:
    """How much may still be unpacked."""

    def __init__(self, packed_bytes: int, pieces: Pieces) -> None:
        self._pieces = pieces
        limits = pieces.limits
        # Small files are let off the ratio: a megabyte harms nobody, whatever it came from.
        by_ratio = max(_CHUNK, int(packed_bytes * limits.max_unpack_ratio))
        self._left = min(limits.max_unpacked_bytes, by_ratio)
        self._markup_left = limits.max_markup_bytes

    def read(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, is_markup: bool) -> bytes:
        """Unpack one member, counting."""
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            # The other methods of Python's reader unpack without a bound.
            raise damaged(self._pieces.name)
        chunks = []
        with archive.open(info) as member:
            while chunk := member.read(_CHUNK):
                self._left -= len(chunk)
                self._markup_left -= len(chunk) if is_markup else 0
                if min(self._left, self._markup_left) < 0:
                    raise _too_large(self._pieces)
                self._pieces.check_time()
                chunks.append(chunk)
        return b"".join(chunks)


def _safe_name(filename: str, pieces: Pieces) -> str:
    name = filename.replace("\\", "/")
    if name.startswith("/") or ":" in name or ".." in name.split("/"):
        raise MediaError(
            f"{quote(pieces.name)} is an archive whose file names lead outside it, which office "
            "programs never write.",
            code="unsafe_archive",
        )
    return name


def _check_markup(blob: bytes, pieces: Pieces) -> None:
    """Refuse XML that declares entities, or hides that in an encoding the search cannot see."""
    plain = blob.replace(b"\0", b"") if b"\0" in blob[:64] else blob  # UTF-16 and UTF-32
    start = plain.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
    start = start[:_LONGEST_DECLARATION].lstrip()
    is_odd = bool(start) and not start.startswith(b"<")
    if is_odd or not _is_plainly_encoded(start):
        raise damaged(pieces.name)
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        raise MediaError(
            f"{quote(pieces.name)} declares XML entities, which office programs never write and "
            "which can be a trap.",
            code="unsafe_archive",
        )


def _is_plainly_encoded(start: bytes) -> bool:
    """Whether the declaration ends within the start and names only encodings that are searched."""
    if not _DECLARATION.match(start):
        return True
    declaration, end, _ = start.partition(b"?>")
    return bool(end) and all(
        encoding.lower() in _ENCODINGS for encoding in _ENCODING.findall(declaration)
    )


def _normalise_types(members: dict[str, bytes], pieces: Pieces) -> str:
    """Find the kind, and give its main part the type of a document without macros."""
    root = parse_markup(members[CONTENT_TYPES])
    for item in root:
        declared = item.get("ContentType", "")
        found = _MAIN.search(declared)
        if found:
            if "binary" in declared:
                raise MediaError(
                    f"{quote(pieces.name)} is a binary Excel workbook (.xlsb), which is not read "
                    "here. Save it as .xlsx.",
                    code="unsupported_format",
                )
            kind = _KINDS[found[1]]
            item.set("ContentType", _PLAIN_TYPES[kind])
            members[CONTENT_TYPES] = Tree.tostring(root)
            return kind
    raise _not_office(members, pieces)


def _check_relationships(members: dict[str, bytes], pieces: Pieces) -> None:
    """Drop relationships to members that are not there, and note what lies outside."""
    if _STRICT in members.get("_rels/.rels", b""):
        raise MediaError(
            f"{quote(pieces.name)} is a Strict Open XML document, which is not read here. Save it "
            "as an ordinary .docx, .xlsx or .pptx.",
            code="unsupported_format",
        )
    for rels_name in [name for name in members if name.endswith(".rels")]:
        root = parse_markup(members[rels_name])
        source = join(dirname(dirname(rels_name)), rels_name.rpartition("/")[2][: -len(".rels")])
        lost = []
        for item in root.iter(_RELATIONSHIP):
            if item.get("TargetMode") == "External":
                if not item.get("Type", "").endswith("/hyperlink"):
                    pieces.count("files outside the document that are not fetched")
            elif _target(source, item) not in members:
                lost.append(item)
        if lost:
            for item in lost:
                root.remove(item)
            members[rels_name] = Tree.tostring(root)


def _rels_name(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return join(folder, "_rels", f"{file}.rels")


def _target(source: str, item: Tree.Element) -> str:
    """Resolve a relationship's target to a member's name."""
    target = item.get("Target", "")
    path = target if target.startswith("/") else join("/", dirname(source), target)
    return normpath(path).lstrip("/")


def _not_office(members: dict[str, bytes], pieces: Pieces) -> MediaError:
    """Say what a ZIP archive is that is no office document."""
    mime = members.get("mimetype", b"")
    what = "a ZIP archive"
    if mime.startswith(b"application/epub"):
        what = f"an EPUB book without its {CONTAINER}"
    elif mime.startswith(b"application/vnd.oasis.opendocument"):
        what = "an OpenDocument file"
    return MediaError(
        f"{quote(pieces.name)} is {what}, which is not read here; expected .docx, .xlsx, .pptx, "
        ".epub or PDF. Save it as one of these, or send the files inside one by one.",
        code="unsupported_format",
    )


def _too_large(pieces: Pieces) -> MediaError:
    limits = pieces.limits
    return MediaError(
        f"{quote(pieces.name)} unpacks to more than is read here; expected at most "
        f"{limits.max_unpacked_bytes / 1e6:g} MB, {limits.max_markup_bytes / 1e6:g} MB of them "
        f"text, and {limits.max_unpack_ratio:g} times its size. {pieces.way_out}",
        code="too_large",
    )


def _too_many_members(pieces: Pieces) -> CapacityError:
    return CapacityError(
        f"{quote(pieces.name)} is an archive of more than {pieces.limits.max_members} files. "
        f"{pieces.way_out}"
    )


def password_needed(name: str) -> MediaError:
    """Make the refusal of a document that is encrypted."""
    return MediaError(
        f"{quote(name)} is protected with a password. Remove the password and send it again.",
        code="password",
    )
