"""Times on Bailian's wire: Beijing's, without a zone, or milliseconds since 1970."""

import re
from datetime import datetime, timedelta, timezone

from qianyan.errors import InputError, quote

BEIJING = timezone(timedelta(hours=8))
_COMPACT = re.compile(r"\d{14}", re.ASCII)


def to_time(at: datetime) -> str:
    """Write a time as tasks show it: 2026-03-01 17:38:24.817."""
    return at.astimezone(BEIJING).isoformat(" ", "milliseconds").removesuffix("+08:00")


def to_second(at: datetime) -> str:
    """Write a time as files show it: 2026-03-01 17:38:24."""
    return at.astimezone(BEIJING).isoformat(" ", "seconds").removesuffix("+08:00")


def to_milliseconds(at: datetime | None) -> int | None:
    """Write a time as lists show it."""
    return None if at is None else int(at.timestamp() * 1000)


def parse_time(text: str | None, name: str) -> datetime | None:
    """Read a time as filters give it, yyyyMMddHHmmss; InputError for anything else."""
    if not text:
        return None
    try:
        known = text if _COMPACT.fullmatch(text) else ""
        return datetime.strptime(known, "%Y%m%d%H%M%S").replace(tzinfo=BEIJING)
    except ValueError as error:
        raise InputError(
            f"{name} is {quote(text)}; expected Beijing time as 20261124093000 (yyyyMMddHHmmss)."
        ) from error
