"""The chart of `qianyan bench`: where the time of one answer goes, as a picture."""

from collections.abc import Mapping

from PIL import Image, ImageDraw

from qianyan.cli.bench_words import WORDS
from qianyan.cli.options import Lang
from qianyan.cli.terminal import printable
from qianyan.engine.benchmark import PARTS, Figures, Part
from qianyan.inspection.fonts import BOLD_FONT_FILE, FONT_FILE, load_font, writable

WIDTH, MARGIN, BAR_HEIGHT, ROW_HEIGHT = 960, 32, 44, 84
TITLE_HEIGHT, LEGEND_HEIGHT = 64, 40
LABEL_WIDTH = 96
SMALLEST_NAMED = 40
"""Parts narrower than this many pixels are coloured and in the legend, but bear no number."""
COLOURS: Mapping[Part, str] = {
    "preparation": "#7a8793",
    "vision": "#2f6f9f",
    "prefill": "#3a9a6b",
    "decode": "#d98a29",
    "engine": "#b04a4a",
}
PAPER, INK, ON_COLOUR = "#ffffff", "#1c2630", "#ffffff"


def draw_chart(figures: Figures, lang: Lang) -> Image.Image:
    """Draw the first and the steady answer as bars of parts, on one scale of seconds."""
    words = WORDS[lang]
    height = 2 * MARGIN + TITLE_HEIGHT + 2 * ROW_HEIGHT + LEGEND_HEIGHT
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
    return chart
