"""The chart of `qianyan bench`: where the time of one answer goes, as a picture."""

from collections.abc import Mapping

from PIL import Image, ImageDraw

from qianyan.cli.bench_words import WORDS
from qianyan.cli.options import Lang
from qianyan.cli.terminal import printable
from qianyan.engine.benchmark import PARTS, Figures, Part
from qianyan.inspection.reporting.fonts import BOLD_FONT_FILE, FONT_FILE, load_font, writable

WIDTH, MARGIN, BAR_HEIGHT, ROW_HEIGHT = 960, 32, 44, 84
TITLE_HEIGHT, LEGEND_HEIGHT = 64, 40
LABEL_WIDTH = 96
GROWTH_HEIGHT, COLUMN_WIDTH = 190, 56
SMALLEST_NAMED = 40
"""Parts narrower than this many pixels are coloured and in the legend, but bear no number."""
COLOURS: Mapping[Part, str] = {
    "preparation": "#7a8793",
    "vision": "#2f6f9f",
    "prefill": "#3a9a6b",
    "decode": "#d98a29",
    "engine": "#b04a4a",
}
PAPER, INK, ON_COLOUR, COLUMN = "#ffffff", "#1c2630", "#ffffff", "#6a5a9f"


def draw_chart(figures: Figures, lang: Lang) -> Image.Image:
    """Draw the first and the steady answer as bars of parts, on one scale of seconds."""
    words = WORDS[lang]
    height = 2 * MARGIN + TITLE_HEIGHT + 2 * ROW_HEIGHT + LEGEND_HEIGHT
    height += GROWTH_HEIGHT if figures.growth_limit is not None else 0
    chart = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(chart)
    title = writable(f"{printable(figures.name)} · {figures.dtype}")
    pen.text((MARGIN, MARGIN), title, INK, load_font(BOLD_FONT_FILE, 26))
    font = load_font(FONT_FILE, 20)
    room = WIDTH - 2 * MARGIN - 2 * LABEL_WIDTH
    scale = room / max(figures.first.total_s, figures.steady.total_s, 1e-9)
    top = MARGIN + TITLE_HEIGHT
    for name, timing in (("first", figures.first), ("steady", figures.steady)):
        pen.text((MARGIN, top + 10), words[name], INK, font)
        left = float(MARGIN + LABEL_WIDTH)
        for part in PARTS:
            width = scale * timing.parts[part]
            pen.rectangle((left, top, left + width, top + BAR_HEIGHT), COLOURS[part])
            if width >= SMALLEST_NAMED:
                number = f"{timing.parts[part]:.2g}"
                pen.text((left + 6, top + 10), number, ON_COLOUR, font)
            left += width
        pen.text((left + 8, top + 10), f"{timing.total_s:.2f} {words['seconds']}", INK, font)
        top += ROW_HEIGHT
    left = float(MARGIN + LABEL_WIDTH)
    for part in PARTS:
        pen.rectangle((left, top + 4, left + 18, top + 22), COLOURS[part])
        pen.text((left + 26, top), words[part], INK, font)
        left += 26 + font.getlength(words[part]) + 28
    if figures.growth_limit is not None:
        _draw_growth(pen, figures, words, top + LEGEND_HEIGHT)
    return chart


def _draw_growth(
    pen: ImageDraw.ImageDraw, figures: Figures, words: Mapping[str, str], top: float
) -> None:
    """Draw a column for each batch, as high as its pictures a minute."""
    font = load_font(FONT_FILE, 20)
    foot = top + GROWTH_HEIGHT - 30
    highest = max(one.pictures_per_minute for one in figures.growth)
    step = (WIDTH - 2 * MARGIN - LABEL_WIDTH) / len(figures.growth)
    pen.text((MARGIN, top + 10), words["batches"], INK, font)
    for index, one in enumerate(figures.growth):
        left = MARGIN + LABEL_WIDTH + index * step
        column = (GROWTH_HEIGHT - 70) * one.pictures_per_minute / max(highest, 1e-9)
        pen.rectangle((left, foot - column, left + COLUMN_WIDTH, foot), COLUMN)
        pen.text((left, foot - column - 26), f"{one.pictures_per_minute:.3g}", INK, font)
        pen.text((left, foot + 2), str(one.pictures), INK, font)
