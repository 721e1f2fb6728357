"""The passages of long documents that matter for a question, within a budget of tokens.

Text is cut where a reader would: at headings and page marks, then at paragraphs, lines and the
ends of sentences, Chinese or English. Passages are ranked by BM25 (Robertson and Zaragoza 2009,
through bm25s) over words and pairs of Chinese characters, and come back in document order with
the headings they stand under. Passages overlap; what is joined again is never repeated.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from qianyan.errors import MediaError

PASSAGE_CHARS = 800
"""Longest passage; shorter paragraphs under one heading are put together up to this."""
OVERLAP_CHARS = 120
"""Most that a passage repeats of the end of the one before it under the same heading."""
MOST_MISSES = 100
"""Passages that do not fit, one after the other, after which no more are tried."""
GAP_MARK = "[…]"
MAX_QUESTION_CHARS = 2_000
MAX_HEADING_CHARS = 200

_HEADING = re.compile(r"(#{1,6})\s+\S|第[一二三四五六七八九十百零〇\d]{1,6}([章节篇条部])")
_CHINESE_DEPTHS = {"部": 1, "篇": 1, "章": 2, "节": 3, "条": 4}
_PLACE = re.compile(r"\[[^\[\]\n]{1,120}, (?:page|slide|sheet|chapter) [^\[\]\n]{1,80}\]")
_SENTENCE_END = re.compile(r"[。！？；…]+[”’」』）]*|[.!?;][\"')\]]*(?=\s)|\n")
_WORD = re.compile(r"[^\W_\u3400-\u9fff]+")
_CHINESE = re.compile(r"[\u3400-\u9fff]+")


@dataclass(frozen=True)
class Passage:
    """A stretch of one document's text, and the headings it stands under, outermost first."""

    document: int
    start: int
    end: int
    headings: tuple[str, ...] = ()


def cut(text: str, document: int = 0) -> list[Passage]:
    """Cut a text into passages, in order; together they cover everything but blanks."""
    passages = []
    for section in _sections(text):
        headings = section.headings
        for start, end in _pieces(text, section):
            passages.append(Passage(document, start, end, headings))
            headings = section.all_headings
    return passages


def rank(texts: Sequence[str], question: str) -> list[float]:
    """Score texts by how well they answer a question; 0 where they share nothing with it.

    Raises MediaError (missing_extra) without the package that ranks.
    """
    try:
        import bm25s  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415  (extra: documents)
    except ImportError as error:
        raise MediaError(
            "A document is longer than the model reads at once; finding the passages that matter "
            "needs the extra: pip install 'qianyan[documents]'.",
            code="missing_extra",
        ) from error
    corpus = [to_terms(text) for text in texts]
    known = {term for terms in corpus for term in terms}
    asked = [term for term in to_terms(question[:MAX_QUESTION_CHARS]) if term in known]
    if not asked:
        return [0.0] * len(texts)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(asked)]


def to_terms(text: str) -> list[str]:
    """List what is compared: words in lower case, and pairs of neighbouring Chinese characters."""
    terms = [word.lower() for word in _WORD.findall(text)]
    for run in _CHINESE.findall(text):
        terms += [run[at : at + 2] for at in range(max(1, len(run) - 1))]
    return terms


def strip_places(text: str) -> str:
    """Leave out the marks of pages, slides, sheets and chapters."""
    return _PLACE.sub("", text)


@dataclass(frozen=True)
class Chosen:
    """What is read of several documents.

    `texts` has one for each document, "" where nothing of it was chosen; `num_read` counts the
    passages chosen of each and `num_all` all of them. `is_matched` is False when no passage
    shares a word with the question, so that they were spread evenly.
    """

    texts: tuple[str, ...]
    num_read: tuple[int, ...]
    num_all: tuple[int, ...]
    is_matched: bool


def choose_passages(
    documents: Sequence[str], question: str, *, max_tokens: int, count: Callable[[str], int]
) -> Chosen:
    """Choose the passages that fit a question best, as many as fit into `max_tokens`.

    Args:
        documents: the texts.
        question: what they are read for.
        max_tokens: of all that is chosen together, headings and marks of gaps included.
        count: tells how many tokens a text takes.
    """
    passages = [one for number, text in enumerate(documents) for one in cut(text, number)]
    texts = [documents[one.document][one.start : one.end] for one in passages]
    headed = ["\n".join([*one.headings, text]) for one, text in zip(passages, texts, strict=True)]
    scores = rank(headed, question)
    left = max_tokens
    taken: list[int] = []
    around = count(f"\n\n{GAP_MARK}\n\n")
    num_misses = 0
    for at in _order(scores):
        cost = count(headed[at]) + around
        if cost <= left:
            taken.append(at)
            left -= cost
            num_misses = 0
        else:
            num_misses += 1
        if num_misses == MOST_MISSES:
            break
    chosen = [passages[at] for at in sorted(taken)]
    numbers = range(len(documents))
    of_each = [[one for one in chosen if one.document == number] for number in numbers]
    return Chosen(
        texts=tuple(map(_join, documents, of_each)),
        num_read=tuple(map(len, of_each)),
        num_all=tuple(sum(one.document == number for one in passages) for number in numbers),
        is_matched=any(scores),
    )


@dataclass(frozen=True)
class _Section:
    """What stands under one heading, which is its first line; `headings` are those above it."""

    start: int
    end: int
    headings: tuple[str, ...]
    own: str = ""

    @property
    def all_headings(self) -> tuple[str, ...]:
        """The headings above what is not the section's beginning."""
        return (*self.headings, self.own) if self.own else self.headings


def _sections(text: str) -> Iterator[_Section]:
    """Divide a text at its headings and page marks."""
    place, path = "", dict[int, str]()
    begun = _Section(0, 0, ())
    at = 0
    for line in text.splitlines(keepends=True):
        mark = _PLACE.match(line)
        heading = None if mark else _HEADING.match(line)
        if mark or heading:
            if text[begun.start : at].strip():
                yield replace(begun, end=at)
            own = line.strip()[:MAX_HEADING_CHARS]
            if heading:
                depth = _depth(heading)
                path = {level: words for level, words in path.items() if level < depth}
                begun = _Section(at, at, (*([place] if place else []), *path.values()), own)
                path[depth] = own
            else:
                begun, place = _Section(at, at, tuple(path.values()), own), own
        at += len(line)
    if text[begun.start :].strip():
        yield replace(begun, end=len(text))


def _depth(heading: re.Match[str]) -> int:
    return len(heading[1]) if heading[1] else _CHINESE_DEPTHS[heading[2]]


def _pieces(text: str, section: _Section) -> Iterator[tuple[int, int]]:
    """Cut a section at sentences and lines into stretches of at most PASSAGE_CHARS."""
    start = section.start
    last = start  # the end of the last whole sentence
    ends = [*_ends(text, section)]
    starts: list[int] = [start]  # where sentences begin that the next piece may repeat
    for end in ends:
        if end - start > PASSAGE_CHARS and last > start:
            yield start, last
            kept = [at for at in starts if last - at <= OVERLAP_CHARS]
            room = PASSAGE_CHARS - (end - last)
            start = next((at for at in kept if last - at <= room), last)
        starts.append(end)
        last = end
    if text[start:last].strip():
        yield start, last


def _ends(text: str, section: _Section) -> Iterator[int]:
    """Find where sentences and lines end, and cut those that are longer than a passage."""
    at = section.start
    found = _SENTENCE_END.finditer(text, section.start, section.end)
    for end in (*(match.end() for match in found), section.end):
        while end - at > PASSAGE_CHARS:
            at += PASSAGE_CHARS
            yield at
        if end > at:
            yield end
            at = end


def _order(scores: Sequence[float]) -> list[int]:
    """Say in which order passages are taken: the best, their neighbours, then spread evenly."""
    best = sorted((at for at, score in enumerate(scores) if score > 0), key=lambda at: -scores[at])
    near = [at + step for at in best for step in (1, -1) if 0 <= at + step < len(scores)]
    return list(dict.fromkeys([*best, *near, *_spread(len(scores))]))


def _spread(number: int) -> list[int]:
    """List 0 to number - 1 so that any beginning of the list is spread evenly: ends, halves, …"""
    parts = 1
    found: dict[int, None] = dict.fromkeys([0] if number else [])
    while len(found) < number:
        parts *= 2
        found |= dict.fromkeys(min(number - 1, number * part // parts) for part in range(parts + 1))
    return list(found)


def _join(text: str, chosen: Sequence[Passage]) -> str:
    """Write passages of one document out in order, what lies between them as a mark."""
    lines: list[str] = []
    said: set[str] = set()
    end = 0
    for one in chosen:
        if not lines or one.start > end:
            if text[end : one.start].strip():
                lines.append(GAP_MARK)
            lines += [words for words in one.headings if words not in said]
            lines.append(text[one.start : one.end].strip("\n"))
        else:  # the two overlap or touch
            lines[-1] += text[end : one.end].rstrip("\n")
        said = {*one.headings, text[one.start :].partition("\n")[0].strip()}
        end = one.end
    if chosen and text[end:].strip():
        lines.append(GAP_MARK)
    return "\n\n".join(lines)
