"""Read books (EPUB 2 and 3): the chapters in reading order, as the web pages that they are.

A book is an archive of web pages and an OPF file that lists them (EPUB 3.3, sections 4 and 5). Its
pages go through the reader of web pages, pictures come from the archive; scripts, styles and
fonts stay closed, and nothing is fetched. What is encrypted (DRM) is refused.
"""

from collections.abc import Callable
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

from qianyan.errors import MediaError, quote
from qianyan.inputs.archive import CONTAINER, PAGES, Package, parse_markup, password_needed
from qianyan.inputs.document_parts import Document, Pieces, damaged, one_line, refusing_damage
from qianyan.inputs.markup import add_markup
from qianyan.inputs.markup_writer import data_picture
from qianyan.inputs.page_ranges import check_num_pages, choose_pages

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_OPF = "{http://www.idpf.org/2007/opf}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_CIPHER = "{http://www.w3.org/2001/04/xmlenc#}CipherReference"
_ENCRYPTION = "META-INF/encryption.xml"


def read_book(package: Package, pieces: Pieces, pages: str | None) -> Document:
    """Put the chapters of a book into `pieces`; `pages` counts the files it is read in.

    Raises:
        MediaError: code password, truncated, no_content or timeout.
        CapacityError: more chapters, text or pictures than the limits allow.
        InputError: `pages` is not understood.
    """
    with refusing_damage(pieces.name):
        title, chapters = _read_list(package, pieces)
        if not chapters:
            raise damaged(pieces.name)
        if _encrypted(package) & set(chapters):
            raise password_needed(pieces.name)
        chosen = choose_pages(pages, len(chapters), pieces)
        check_num_pages(chosen, pieces.limits.max_pages, "chapters", pieces)
        if title:
            pieces.add_text(f"[{pieces.name}: {title}]")
        anything = False
        for index in chosen:
            pieces.add_text(f"[{pieces.name}, chapter {index + 1} of {len(chapters)}]")
            before = pieces.size
            name = chapters[index]
            add_markup(package.members[name], pieces, None, _finder(package, name))
            anything |= pieces.size > before
    if not anything:
        raise MediaError(
            f"{quote(pieces.name)} has nothing in its chapters; expected text or pictures.",
            code="no_content",
        )
    return pieces.document("epub", len(chapters))


def _read_list(package: Package, pieces: Pieces) -> tuple[str, list[str]]:
    """Find a book's title, and its pages in reading order; those that are missing are noted."""
    container = parse_markup(package.members[CONTAINER])
    root = next(iter(container.iter(f"{_CONTAINER}rootfile")), None)
    opf_name = unquote(root.get("full-path", "")) if root is not None else ""
    if opf_name not in package.members:
        raise damaged(pieces.name)
    opf = parse_markup(package.members[opf_name])
    items = {
        item.get("id", ""): _member(opf_name, item.get("href", ""))
        for item in opf.iter(f"{_OPF}item")
    }
    chapters = []
    for entry in opf.iter(f"{_OPF}itemref"):
        name = items.get(entry.get("idref", ""), "")
        if name in package.members and name.lower().endswith((*PAGES, ".xml")):
            chapters.append(name)
        elif name.lower().endswith(".svg"):
            pieces.count("chapters that are drawings")
        else:
            pieces.count("chapters that are missing")
    title = next((item.text or "" for item in opf.iter(f"{_DC}title")), "")
    return one_line(title).replace("[", "(").replace("]", ")")[:200], chapters


def _encrypted(package: Package) -> set[str]:
    """Name the members that only a licence opens; scrambled fonts are among them in free books."""
    if _ENCRYPTION not in package.members:
        return set()
    listed = parse_markup(package.members[_ENCRYPTION]).iter(_CIPHER)
    return {normpath(unquote(item.get("URI", ""))) for item in listed}


def _member(base: str, address: str) -> str:
    """Resolve an address in a member to a member's name."""
    return normpath(join(dirname(base), unquote(urlsplit(address).path)))


def _finder(package: Package, page: str) -> Callable[[str], bytes | None]:
    """Make what looks up the pictures of one page."""

    def find(address: str) -> bytes | None:
        if ":" in address.partition("/")[0]:  # elsewhere, and never fetched, or in itself
            return data_picture(address)
        return package.members.get(_member(page, address))

    return find
