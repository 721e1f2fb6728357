"""An evaluation as one HTML file: tables, charts and the worst pictures, nothing to load or run.

The template (assets/evaluation/page.html) escapes everything but charts, which escape their own
words, so no name of a file or model can become markup. On narrow screens rows become cards.
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import jinja2
from PIL import Image

from qianyan.inspection.evaluation.charts import Bar, bar_chart, reliability_chart
from qianyan.inspection.evaluation.content import Section, sections, short_share
from qianyan.inspection.evaluation.figures import Figures
from qianyan.inspection.evaluation.record import Evaluation
from qianyan.inspection.evaluation.words import WORDS, kind_word
from qianyan.inspection.evaluation.worst import WorstCase
from qianyan.inspection.words import Lang

TEMPLATE_FILE = Path(__file__).parents[2] / "assets" / "evaluation" / "page.html"
QUALITY = 80
MOST_FAILURES = 50


@dataclass(frozen=True)
class Picture:
    """A worst case as the page shows it; `data` is a data: URL, empty where there is no image."""

    file: str
    faults: Sequence[str]
    data: str
    width: int
    height: int


def render_page(evaluation: Evaluation, worst: Sequence[WorstCase], lang: Lang) -> str:
    """Set an evaluation as a page in one language."""
    words = WORDS[lang]
    figures = evaluation.scored.figures
    failures = [
        (one.file, one.error) for one in evaluation.scored.outcomes if one.error is not None
    ]
    return _template().render(
        lang={"zh": "zh-CN", "en": "en"}[lang],
        words=words,
        facts=evaluation.facts,
        labels=evaluation.labels,
        settings=_settings(evaluation),
        counts=_counts(figures, lang),
        notes=evaluation.note_lines(lang),
        sections=[
            (section, list(_charts(section, figures, lang)))
            for section in sections(figures, evaluation.comparison, lang)
        ],
        worst=[_picture(case) for case in worst],
        failures=failures[:MOST_FAILURES],
        num_failures=len(failures),
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE_FILE.read_text("utf-8"))


def _settings(evaluation: Evaluation) -> str:
    """Set how it was looked, without what the page says beside it."""
    told = {"model", "lang", "version"}
    given = evaluation.settings or {}
    return ", ".join(
        f"{name} {value}" for name, value in given.items() if value is not None and name not in told
    )


def _counts(figures: Figures, lang: Lang) -> list[tuple[str, str]]:
    words = WORDS[lang]
    failed = sum(figures.failed.values())
    return [
        (words["pictures"], str(figures.pictures)),
        (words["looked_at"], str(figures.pictures - failed)),
        (words["failed"], str(failed)),
        (words["unreadable"], short_share(figures.unreadable)),
    ]


def _charts(section: Section, figures: Figures, lang: Lang) -> Iterator[tuple[str, str]]:
    """Draw what is easier seen than read from a section's table: titles and SVG."""
    words = WORDS[lang]
    if section.name == "images":
        for measure, is_bad in (("recall", False), ("false_alarms", True)):
            bars = [
                Bar(kind_word(kind, lang), rate.value, f"{rate.value:.1%}", rate.interval, is_bad)
                for kind, one in figures.images.items()
                for rate in [getattr(one, measure)]
                if rate.value is not None
            ]
            name = words["found" if measure == "recall" else "false_alarms"]
            if bars:
                yield name, bar_chart(bars, name)
    elif section.name == "boxes":
        f1 = [
            Bar(kind_word(kind, lang), one.f1.value, f"{one.f1.value:.2f}", one.f1.interval)
            for kind, one in figures.boxes.items()
            if one.f1.value is not None
        ]
        yield words["f1"], bar_chart(f1, words["f1"])
    elif section.name == "reliability" and figures.reliability.bins:
        axes = (words["score"], words["share_right"])
        yield "", reliability_chart(figures.reliability, section.title, axes)


def _picture(case: WorstCase) -> Picture:
    image = case.image
    if image is None:
        return Picture(case.file, case.faults, "", 0, 0)
    return Picture(case.file, case.faults, _data_url(image), image.width, image.height)


def _data_url(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
