"""An evaluation as it is written: eval.json, eval.html, worst.jpg, and lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.cells import cell_len

from qianyan.inspection.evaluation.comparison import SCHEMA, Comparison
from qianyan.inspection.evaluation.content import Section, sections, share
from qianyan.inspection.evaluation.figures import Scored
from qianyan.inspection.evaluation.pairing import Paired, listed
from qianyan.inspection.evaluation.words import WORDS
from qianyan.inspection.results import RunFacts
from qianyan.inspection.words import Lang

GAP = "  "


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Who looked, what was scored against which labels, and how it compares.

    `settings` say how it was looked, None where a finished run is scored, which keeps them itself.
    `not_drawn` are those of the worst pictures that cannot be read and are shown by name only.
    """

    facts: RunFacts
    labels: str
    paired: Paired
    scored: Scored
    comparison: Comparison | None = None
    not_drawn: tuple[str, ...] = ()
    settings: Mapping[str, str | int | None] | None = None

    def as_record(self) -> dict[str, Any]:
        """Write the evaluation as the object that eval.json holds."""
        return {
            "schema": SCHEMA,
            "run": asdict(self.facts),
            "settings": None if self.settings is None else dict(self.settings),
            "labels": self.labels,
            "not_in_results": list(self.paired.without_verdict),
            "other_size": list(self.paired.other_size),
            "not_drawn": list(self.not_drawn),
            "figures": self.scored.figures.as_record(),
            "comparison": self.comparison and self.comparison.as_record(),
            "pictures": [one.as_record() for one in self.scored.outcomes],
        }

    def note_lines(self, lang: Lang) -> list[str]:
        """Say what was left out of the figures, or spoils them."""
        words = WORDS[lang]
        named = (
            ("skipped", self.paired.without_verdict),
            ("other_size", self.paired.other_size),
            ("not_drawn", self.not_drawn),
        )
        return [
            words[name].format(n=len(files), names=listed(files)) for name, files in named if files
        ]

    def lines(self, lang: Lang) -> Iterator[str]:
        """Set the evaluation as lines of text."""
        words, figures = WORDS[lang], self.scored.figures
        failed = ", ".join(f"{code} {count}" for code, count in sorted(figures.failed.items()))
        yield (
            f"{words['pictures']} {figures.pictures} · {words['failed']} {failed or 0} · "
            f"{words['unreadable']} {share(figures.unreadable)}"
        )
        yield from self.note_lines(lang)
        for section in sections(figures, self.comparison, lang):
            yield ""
            yield from table_lines(section)


def table_lines(section: Section) -> Iterator[str]:
    """Set a section in columns; what is not a name stands on the right of its column."""
    if section.title:
        yield section.title
    if section.note:
        yield f"{GAP}{section.note}"
    table = [section.header, *section.rows] if section.header else list(section.rows)
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        yield (GAP + GAP.join(_padded(row, widths))).rstrip()


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        gap = " " * (width - cell_len(cell))
        yield gap + cell if column else cell + gap
