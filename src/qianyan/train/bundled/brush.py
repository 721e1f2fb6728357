"""A brush for painted places: shapes in fractions of the picture, drawn twice too large.

Rough surfaces and colour fades that every place uses are here too.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from qianyan.train.bundled.flames import Floats, noise

Colour = tuple[int, int, int]

OVERSIZE = 2
WARM: tuple[Colour, ...] = (
    (226, 60, 24),
    (244, 132, 30),
    (250, 176, 40),
    (206, 36, 36),
    (255, 214, 90),
)
WALLS: tuple[Colour, ...] = (
    (172, 160, 146), (196, 186, 172), (140, 92, 74), (120, 128, 138), (206, 200, 190),
    (98, 104, 108),
)  # fmt: skip


@dataclass(frozen=True)
class Backdrop:
    """A painted place: (height, width, 3) colours 0..255, and where the ground begins (0..1)."""

    rgb: Floats
    ground: float


class Brush:
    """Draws on a Pillow image in fractions of its width and height."""

    def __init__(self, rng: np.random.Generator, rgb: Floats) -> None:
        self.rng = rng
        height, width = rgb.shape[:2]
        self.image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).resize(
            (width * OVERSIZE, height * OVERSIZE), Image.Resampling.BILINEAR
        )
        self.draw = ImageDraw.Draw(self.image)
        self.width, self.height = self.image.size

    def uniform(self, low: float, high: float) -> float:
        """Draw a number from the brush's own generator."""
        return float(self.rng.uniform(low, high))

    def pick(self, colours: tuple[Colour, ...], spread: float = 0.12) -> Colour:
        """Choose a colour and vary its brightness."""
        return tint(
            colours[int(self.rng.integers(len(colours)))], self.uniform(1 - spread, 1 + spread)
        )

    def box(self, x1: float, y1: float, x2: float, y2: float, fill: Colour) -> None:
        """Fill a rectangle."""
        ends = [x1 * self.width, y1 * self.height, x2 * self.width, y2 * self.height]
        if ends[2] > ends[0] and ends[3] > ends[1]:
            self.draw.rectangle(ends, fill=fill)

    def oval(self, x1: float, y1: float, x2: float, y2: float, fill: Colour) -> None:
        """Fill an ellipse."""
        ends = [x1 * self.width, y1 * self.height, x2 * self.width, y2 * self.height]
        if ends[2] > ends[0] and ends[3] > ends[1]:
            self.draw.ellipse(ends, fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: Colour) -> None:
        """Fill a polygon."""
        self.draw.polygon([(x * self.width, y * self.height) for x, y in points], fill=fill)

    def line(self, points: list[tuple[float, float]], thick: float, fill: Colour) -> None:
        """Draw a line, `thick` as a fraction of the height."""
        pixels = max(1, round(thick * self.height))
        ends = [(x * self.width, y * self.height) for x, y in points]
        self.draw.line(ends, fill=fill, width=pixels, joint="curve")

    def finish(self) -> Floats:
        """Reduce to the real size."""
        size = (self.width // OVERSIZE, self.height // OVERSIZE)
        return np.asarray(self.image.resize(size, Image.Resampling.BOX), dtype=np.float32).copy()


def tint(colour: Colour, factor: float) -> Colour:
    """Make a colour lighter or darker."""
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


def fade(height: int, width: int, stops: list[tuple[float, Colour]]) -> Floats:
    """Blend colours from top to bottom; `stops` are (0..1, colour)."""
    down = np.linspace(0, 1, height)
    places = [place for place, _ in stops]
    columns = [np.interp(down, places, [colour[c] for _, colour in stops]) for c in range(3)]
    return np.repeat(np.stack(columns, axis=-1)[:, None, :], width, axis=1).astype(np.float32)


def roughen(rng: np.random.Generator, rgb: Floats, amount: float) -> Floats:
    """Add blotches and grain of about `amount` grey levels."""
    height, width = rgb.shape[:2]
    fine = (7, 19, max(23, height // 5))
    return rgb + (noise(rng, height, width, octaves=fine, fall=0.85)[..., None] - 0.5) * amount


def fill_ground(rng: np.random.Generator, rgb: Floats, level: float, colour: Colour) -> None:
    """Fill everything below `level` with rough soil, asphalt, floor or grass, in place."""
    height, width = rgb.shape[:2]
    top = min(height - 2, round(level * height))
    soil = fade(height - top, width, [(0, tint(colour, 0.88)), (1, tint(colour, 1.1))])
    rgb[top:] = roughen(rng, soil, float(rng.uniform(10, 46)))
