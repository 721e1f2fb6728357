"""The pictures that went most wrong, with labels drawn against what was reported.

Reported boxes are drawn as everywhere (solid, in the hazard's colour, with a tag); labels are
dashed and yellow, so that a label without a frame is a miss, and a frame without a label too many.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image, ImageDraw

from qianyan.errors import MediaError
from qianyan.inputs.images import read_image
from qianyan.inspection.evaluation.outcomes import PictureOutcome
from qianyan.inspection.evaluation.precision import Pair
from qianyan.inspection.evaluation.words import WORDS, kind_word
from qianyan.inspection.records import Inspection
from qianyan.inspection.reporting.annotate import line_width, mark
from qianyan.inspection.reporting.fonts import FONT_FILE, load_font, writable
from qianyan.inspection.words import Lang
from qianyan.labels.photos import Corners, LabelledPhoto

MISSED_PICTURE, FALSE_ALARM, WRONG_BOX = 10, 6, 1
"""How much each mistake weighs in the order."""
NUM_WORST = 24
TILE_WH = (400, 300)
LABEL_YELLOW, BLACK, PAPER, INK = (255, 214, 10), (0, 0, 0), (255, 255, 255), (24, 24, 27)
GREY = (113, 113, 122)
MARGIN, COLUMNS, WORDS_SIZE = 16, 3, 15
LINE_HEIGHT = 24
LABEL_LINE = 3  # least width of a label's frame in pixels, which stays visible on a tile
DASHES = 4  # lengths of a dash in widths of its line


@dataclass(frozen=True)
class WorstCase:
    """One picture drawn, and what is wrong in it, the worst first; no image: it cannot be read."""

    file: str
    faults: tuple[str, ...]
    image: Image.Image | None


def rank_worst(outcomes: Sequence[PictureOutcome], most: int = NUM_WORST) -> list[int]:
    """Give the indices of the pictures with the heaviest mistakes; right ones are left out."""
    weights = [_weight(one) for one in outcomes]
    order = sorted(range(len(outcomes)), key=lambda index: -weights[index])
    return [index for index in order[:most] if weights[index]]


def _weight(outcome: PictureOutcome) -> int:
    pictures = sum(
        MISSED_PICTURE if image.present else FALSE_ALARM
        for image in outcome.images.values()
        if not image.is_right
    )
    return pictures + WRONG_BOX * sum(one.missed + one.false for one in outcome.boxes.values())


def draw_worst(
    pairs: Sequence[Pair], outcomes: Sequence[PictureOutcome], lang: Lang, most: int = NUM_WORST
) -> Iterator[WorstCase]:
    """Draw the worst pictures; one whose file is gone or damaged has no image."""
    for index in rank_worst(outcomes, most):
        image = None
        with suppress(OSError, MediaError):
            image = draw_against(*pairs[index], lang=lang)
        yield WorstCase(outcomes[index].file, faults(outcomes[index], lang), image)


def faults(outcome: PictureOutcome, lang: Lang) -> tuple[str, ...]:
    """Say what is wrong in a picture, whole pictures before boxes."""
    words = WORDS[lang]
    said = []
    for kind, image in outcome.images.items():
        if not image.is_right:
            text = words["missed" if image.present else "false_alarm"]
            said.append(text.format(label=kind_word(kind, lang)))
    for kind, counts in outcome.boxes.items():
        for name, number in (("box_missed", counts.missed), ("box_false", counts.false)):
            if number:
                said.append(words[name].format(label=kind_word(kind, lang), n=number))
    return tuple(said)


def draw_against(photo: LabelledPhoto, verdict: Inspection, *, lang: Lang) -> Image.Image:
    """Draw what was reported and what is labelled, made to fit TILE_WH."""
    rgb = read_image(photo.path.read_bytes()).rgb
    marked = mark(rgb, verdict.detections or (), lang=lang)
    draw = ImageDraw.Draw(marked)
    width = max(LABEL_LINE, line_width(marked.size))
    for label in photo.boxes:
        _draw_dashed(draw, label.box, width)
    marked.thumbnail(TILE_WH, Image.Resampling.LANCZOS)
    return marked


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Corners, width: int) -> None:
    """Draw a yellow dashed frame on a black one, which shows on any picture."""
    x1, y1, x2, y2 = box
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)),
                       ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):  # fmt: skip
        draw.line((start, end), BLACK, width)
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        steps = max(1, round(length / (DASHES * width)))
        for step in range(0, steps, 2):
            first, last = step / steps, min((step + 1) / steps, 1.0)
            draw.line((_between(start, end, first), _between(start, end, last)),
                      LABEL_YELLOW, width)  # fmt: skip


def _between(
    start: tuple[float, float], end: tuple[float, float], share: float
) -> tuple[float, float]:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def contact_sheet(cases: Sequence[WorstCase], lang: Lang) -> Image.Image:
    """Lay worst cases out in a grid, each with its name and what is wrong."""
    columns = min(COLUMNS, max(len(cases), 1))
    rows = max(1, -(-len(cases) // columns))
    cell_wh = (TILE_WH[0] + MARGIN, TILE_WH[1] + 3 * LINE_HEIGHT + MARGIN)
    sheet = Image.new("RGB", (columns * cell_wh[0] + MARGIN, rows * cell_wh[1] + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    if not cases:
        _write(draw, (MARGIN, MARGIN), WORDS[lang]["no_worst"], INK)
    for index, case in enumerate(cases):
        x = MARGIN + index % columns * cell_wh[0]
        y = MARGIN + index // columns * cell_wh[1]
        if case.image is None:
            draw.rectangle((x, y, x + TILE_WH[0], y + TILE_WH[1]), outline=GREY)
            _write(draw, (x + MARGIN, y + MARGIN), WORDS[lang]["no_image"], GREY)
        else:
            sheet.paste(case.image, (x + (TILE_WH[0] - case.image.width) // 2, y))
        y += TILE_WH[1] + 4
        _write(draw, (x, y), f"{index + 1}. {case.file}", INK)
        for number, line in enumerate(_lines(" · ".join(case.faults))):
            _write(draw, (x, y + (number + 1) * LINE_HEIGHT), line, GREY)
    return sheet


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: tuple[int, int, int]
) -> None:
    """Write one line, cut to the width of a tile."""
    font = load_font(FONT_FILE, WORDS_SIZE)
    shown = writable(text)
    while font.getlength(shown) > TILE_WH[0]:
        shown = shown[:-2].rstrip("…") + "…"
    draw.text(at, shown, colour, font=font)


def _lines(text: str) -> tuple[str, ...]:
    """Break a text into at most two lines of a tile; the second is cut where it is written."""
    font = load_font(FONT_FILE, WORDS_SIZE)
    if font.getlength(text) <= TILE_WH[0]:
        return (text,)
    parts = text.split(" · ")
    number = len(parts) - 1
    while number > 1 and font.getlength(" · ".join(parts[:number])) > TILE_WH[0]:
        number -= 1
    return " · ".join(parts[:number]), " · ".join(parts[number:])
