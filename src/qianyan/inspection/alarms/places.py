"""Where pictures were taken, as --place says: one place for all, or one for each pattern."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath

from qianyan.errors import ConfigError, quote

LONGEST = 60
"""Characters of one place: it is to be read aloud."""


@dataclass(frozen=True)
class Places:
    """The place of each picture, by patterns of its source; the first that fits counts."""

    usual: str = ""
    by_pattern: tuple[tuple[str, str], ...] = ()

    def find(self, source: str) -> str:
        """Find the place of a source, by its whole name or its file's; empty for an unknown one."""
        for pattern, place in self.by_pattern:
            if fnmatchcase(source, pattern) or fnmatchcase(PurePath(source).name, pattern):
                return place
        return self.usual


def parse_places(text: str) -> Places:
    """Read the words of --place: PLACE for all pictures, PATTERN=PLACE for some, ; in between."""
    usual, by_pattern = "", []
    for part in text.replace("；", ";").split(";"):
        pattern, _, place = part.rpartition("=")
        place = " ".join(place.split())
        if not any(char.isalnum() for char in place) or len(place) > LONGEST:
            raise ConfigError(
                f"--place has {quote(part.strip())}; expected a place of at most {LONGEST} "
                "characters that can be read aloud, or PATTERN=PLACE."
            )
        if pattern.strip():
            by_pattern.append((pattern.strip(), place))
        elif usual:
            raise ConfigError(
                f"--place has both {quote(usual)} and {quote(place)} for all pictures; expected "
                "one of them, or PATTERN=PLACE."
            )
        else:
            usual = place
    return Places(usual, tuple(by_pattern))
