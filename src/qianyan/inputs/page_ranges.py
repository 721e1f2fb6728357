"""Which pages of a document are read: "1-5,8" in words of the user, indices for the readers."""

import re
from collections.abc import Sequence

from qianyan.errors import CapacityError, InputError, quote
from qianyan.inputs.document_parts import Pieces

_PAGE_RANGE = re.compile(r"(\d{1,6})(?:\s*(-)\s*(\d{1,6})?)?")


def choose_pages(pages: str | None, num_pages: int, pieces: Pieces) -> list[int]:
    """Turn "1-5,8,20-" into page indices from 0, ascending; None means all.

    A range may end behind the last page, so that "1-20" fits every document.

    Raises:
        InputError: not numbers and ranges, or none of the pages exists.
    """
    if pages is None:
        return list(range(num_pages))
    chosen: set[int] = set()
    for item in str(pages).split(","):
        found = _PAGE_RANGE.fullmatch(item.strip())
        first = int(found[1]) if found else 0
        last = int(found[3] or num_pages) if found and found[2] else first
        if not found or first < 1 or (found[3] and last < first):
            raise InputError(
                f"pages is {quote(pages)}; expected numbers and ranges counted from 1, such as "
                '"1-5,8".'
            )
        chosen.update(range(first - 1, min(last, num_pages)))
        if last > num_pages:
            pieces.say(f"pages asked for beyond the last, {num_pages}")
    if not chosen:
        raise InputError(
            f"pages is {quote(pages)}, but {quote(pieces.name)} has {num_pages}; expected numbers "
            f"from 1 to {num_pages}."
        )
    return sorted(chosen)


def check_num_pages(chosen: Sequence[int], most: int, noun: str, pieces: Pieces) -> None:
    """Refuse more pages than are read at once (CapacityError), and tell how to ask for a part."""
    pieces.way_out = _pages_way_out(
        chosen[:most] if len(chosen) > most else chosen[: len(chosen) // 2]
    )
    if len(chosen) > most:
        raise CapacityError(
            f"{quote(pieces.name)} has {len(chosen)} {noun}; expected at most {most} at once. "
            f"{pieces.way_out}"
        )


def _pages_way_out(indices: Sequence[int]) -> str:
    if not indices:
        return "Send a part of it."
    first, last = indices[0] + 1, indices[-1] + 1
    shown = str(first) if first == last else f"{first}-{last}"
    return f'Send part of it with pages="{shown}".'
