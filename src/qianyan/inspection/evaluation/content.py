"""What an evaluation says, as sections of words and numbers that terminal and page both set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from qianyan.errors import quote
from qianyan.inspection.evaluation.calibration import Reliability
from qianyan.inspection.evaluation.comparison import Comparison, Difference
from qianyan.inspection.evaluation.events import HOUR_S, EventFigures, EventScore
from qianyan.inspection.evaluation.figures import Figures, HeadFigures, head_sizes
from qianyan.inspection.evaluation.precision import Precision
from qianyan.inspection.evaluation.rates import Estimate, Rate
from qianyan.inspection.evaluation.words import MEASURES, WORDS, kind_word, state_word
from qianyan.inspection.records import SUB_LABELS, Hazard
from qianyan.inspection.words import Lang, label_word

Row = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A table: `name` is stable, everything else in the user's language; the first column names."""

    name: str
    title: str
    header: Row
    rows: tuple[Row, ...]
    note: str = ""


def sections(figures: Figures, comparison: Comparison | None, lang: Lang) -> list[Section]:
    """Set all figures that there are; a table of nothing is left out."""
    words = WORDS[lang]
    made = [
        _images(figures, lang),
        _boxes(figures, lang),
        _heads(figures, lang),
        *_sub_labels(figures, lang),
        _answers(figures, lang),
        _reliability(figures.reliability, words),
        _errors(figures, lang),
        _cost(figures, words),
    ]
    if comparison is not None:
        made.insert(0, _comparison(comparison, lang))
    return [one for one in made if one.rows]


def _images(figures: Figures, lang: Lang) -> Section:
    words = WORDS[lang]
    rows = tuple(
        (kind_word(kind, lang), share(one.recall), share(one.false_alarms))
        for kind, one in figures.images.items()
        if one.recall.total or one.false_alarms.total
    )
    header = (words["class"], words["found"], words["false_alarms"])
    return Section("images", words["images"], header, rows, words["images_note"])


def _boxes(figures: Figures, lang: Lang) -> Section:
    words = WORDS[lang]
    rows = [
        (
            kind_word(kind, lang),
            short_share(one.precision),
            short_share(one.recall),
            number(one.f1),
            *_averages(one.average),
        )
        for kind, one in figures.boxes.items()
        if one.f1.value is not None
    ]
    if figures.mean_precision.at_50.value is not None:
        rows.append((words["mean"], "–", "–", "–", *_averages(figures.mean_precision)))
    names = ("class", "precision", "recall", "f1", "ap_50", "ap_50_95")
    header = tuple(words[name] for name in names)
    return Section("boxes", words["boxes"], header, tuple(rows), words["boxes_note"])


def _averages(average: Precision) -> tuple[str, str]:
    return number(average.at_50), number(average.over_all)


def _heads(figures: Figures, lang: Lang) -> Section:
    words = WORDS[lang]
    named = [
        (f"{low}–{high} px" if high else f"≥ {low} px", one)
        for (low, high), one in zip(head_sizes(), figures.heads_by_size, strict=True)
    ]
    rows = tuple(
        _head_row(name, one) for name, one in [*named, (words["all"], figures.heads)]
        if one.found.total
    )  # fmt: skip
    names = ("size", "person_found", "right", "uncertain", "bare_recall")
    header = tuple(words[name] for name in names)
    return Section("heads", words["heads"], header, rows, words["heads_note"])


def _head_row(name: str, one: HeadFigures) -> Row:
    parts = (one.found, one.right, one.uncertain, one.bare_recall)
    return (name, *(short_share(part) for part in parts))


def _sub_labels(figures: Figures, lang: Lang) -> Iterator[Section]:
    """Set one table for each hazard, with all answers there could be as columns."""
    words = WORDS[lang]
    for hazard, counts in figures.sub_labels.items():
        answers = (*SUB_LABELS[hazard], None)
        header = (words["truth"], *(state_word(answer, lang) for answer in answers))
        rows = tuple(
            (state_word(truth, lang), *(str(counts.get((truth, answer), 0)) for answer in answers))
            for truth in SUB_LABELS[hazard]
            if any(said is truth for said, _ in counts)
        )
        note = words["sub_labels_note"].format(right=share(figures.sub_label_right[hazard]))
        title = words["sub_labels"].format(label=label_word(hazard, lang))
        yield Section(f"sub_labels_{hazard.value}", title, header, rows, note)


def _answers(figures: Figures, lang: Lang) -> Section:
    words = WORDS[lang]
    rows = [
        (words["uncertain_rate"].format(label=label_word(hazard, lang)), share(rate))
        for hazard, rate in figures.uncertain.items()
        if rate.total
    ]
    if figures.duplicates.total:
        rows.append((words["duplicates"], share(figures.duplicates)))
    header = (words["figure"], words["value"])
    return Section("answers", words["answers"], header, tuple(rows), words["answers_note"])


def _reliability(curve: Reliability, words: Mapping[str, str]) -> Section:
    header = tuple(words[name] for name in ("score", "boxes_in", "mean_score", "share_right"))
    rows = tuple(
        (f"{one.low:.1f}–{one.high:.1f}", str(one.right.total), f"{one.mean_score:.2f}",
         share(one.right))
        for one in curve.bins
    )  # fmt: skip
    if curve.error is None:
        return Section("reliability", words["reliability"], (), ((words["no_scores"],),))
    note = words["reliability_note"].format(error=f"{curve.error:.3f}", n=curve.num_boxes)
    return Section("reliability", words["reliability"], header, rows, note)


def _errors(figures: Figures, lang: Lang) -> Section:
    """Set the calibration error of each hazard, box by box and by the surest of each picture."""
    words = WORDS[lang]
    rows = tuple(
        (label_word(hazard, lang), f"{curve.error:.3f}", f"{alarms.error:.3f}")
        for hazard, curve in figures.reliability_by_hazard.items()
        for alarms in [figures.alarm_reliability[hazard]]
        if curve.error is not None and alarms.error is not None
    )
    header = (words["ece"], words["boxes"], words["images"])
    return Section("calibration", "", header, rows)


def _cost(figures: Figures, words: Mapping[str, str]) -> Section:
    named = figures.cost.as_record().items()
    rows = tuple(
        (words[name], f"{value:.2f}" if name.endswith("_s") else f"{value:.1f}")
        for name, value in named
        if value is not None
    )
    return Section("cost", words["cost"], (words["figure"], words["value"]), rows)


def _comparison(comparison: Comparison, lang: Lang) -> Section:
    words = WORDS[lang]
    names = ("figure", "here", "there", "p", "verdict")
    rows = tuple(_difference_row(one, lang) for one in comparison.differences)
    return Section(
        "comparison",
        words["comparison"].format(model=comparison.model, file=quote(comparison.against)),
        tuple(words[name] for name in names),
        rows,
        words["comparison_note"].format(n=comparison.pictures, tests=len(rows)),
    )


def _difference_row(one: Difference, lang: Lang) -> Row:
    words = WORDS[lang]
    name = f"{kind_word(one.kind, lang)} · {MEASURES[lang][one.measure]}"
    plain = "{:.3f}" if one.measure == "f1" else "{:.1%}"
    values = [plain.format(value) for value in (one.here, one.there)]
    probability = f"{one.p:.3f} ({one.p_adjusted:.3f})"
    return (name, *values, probability, verdict(one, words))


def verdict(one: Difference, words: Mapping[str, str]) -> str:
    """Say in words what a difference is worth."""
    if one.is_more_than_chance:
        said = words["better" if one.is_better else "worse"]
    else:
        said = words["equal" if one.here == one.there and not one.better else "chance"]
    if not one.better and not one.worse:
        return said
    return said + words["only_right"].format(better=one.better, worse=one.worse)


def event_section(score: EventScore, lang: Lang) -> Section:
    """Set what became of incidents."""
    words = WORDS[lang]
    names = ("hazard", "noticed", "per_hour", "repeated", "delay", "watched")
    note = words["unlabelled"].format(n=score.unlabelled) if score.unlabelled else ""
    return Section(
        "events",
        words["events"],
        tuple(words[name] for name in names),
        tuple(_event_row(hazard, one, lang) for hazard, one in score.by_hazard.items()),
        note,
    )


def _event_row(hazard: Hazard, one: EventFigures, lang: Lang) -> Row:
    per_hour = "–"
    if one.false_alarms_per_hour is not None and one.interval_per_hour is not None:
        low, high = one.interval_per_hour
        per_hour = f"{one.false_alarms_per_hour:.2f} ({low:.2f}–{high:.2f})"
    delay = f"{median(one.delays_s):.1f} / {max(one.delays_s):.1f}" if one.delays_s else "–"
    return (
        label_word(hazard, lang),
        share(one.noticed),
        per_hour,
        str(one.repeated),
        delay,
        f"{one.watched_s / HOUR_S:.2f}",
    )


def share(rate: Rate) -> str:
    """Set a share with its counts and interval."""
    if rate.value is None or rate.interval is None:
        return "–"
    low, high = rate.interval
    return f"{rate.value:.1%} {rate.hits}/{rate.total} ({low * 100:.1f}–{high * 100:.1f})"


def short_share(rate: Rate) -> str:
    """Set a share with its counts."""
    return "–" if rate.value is None else f"{rate.value:.1%} {rate.hits}/{rate.total}"


def number(figure: Estimate) -> str:
    """Set a figure from 0 to 1 with its interval."""
    if figure.value is None:
        return "–"
    if figure.interval is None:
        return f"{figure.value:.3f}"
    low, high = figure.interval
    return f"{figure.value:.3f} ({low:.2f}–{high:.2f})"
