"""Painted things that are mistaken for hazards: lamps, cones, cloth, steam, hats on a table.

They are never labelled. A detector that has not seen them calls every warm light a fire.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from qianyan.train.bundled.flames import Floats, noise, paint_glow, paint_plume

Colour = tuple[int, int, int]
RED_TO_YELLOW: tuple[Colour, ...] = ((214, 40, 30), (238, 98, 28), (250, 150, 36), (252, 206, 60))
HATS: tuple[Colour, ...] = ((243, 203, 28), (240, 240, 236), (205, 38, 30), (28, 82, 178))


def add_glow(
    rgb: Floats, centre: tuple[float, float], size: float, colour: tuple[float, float, float]
) -> None:
    """Add a round glow `size` pixels across around `centre` (x, y), in place."""
    side = max(3, round(size))
    light = paint_glow(side, side, colour=colour)
    x, y = round(centre[0] - side / 2), round(centre[1] - side / 2)
    left, top = max(0, x), max(0, y)
    right, bottom = min(rgb.shape[1], x + side), min(rgb.shape[0], y + side)
    if right > left and bottom > top:
        rgb[top:bottom, left:right] += light[top - y : bottom - y, left - x : right - x]


class _Spot:
    """Where a look-alike goes, and its size in pixels."""

    def __init__(self, rng: np.random.Generator, rgb: Floats, ground: float) -> None:
        self.rng, self.rgb, self.ground = rng, rgb, ground
        self.height, self.width = rgb.shape[:2]
        self.x = float(rng.uniform(0.03, 0.97)) * self.width
        self.floor = float(rng.uniform(ground, 1.0)) * self.height
        self.size = float(np.exp(rng.uniform(np.log(0.03), np.log(0.2)))) * self.height

    def colour(self, colours: tuple[Colour, ...]) -> Colour:
        red, green, blue = colours[int(self.rng.integers(len(colours)))]
        dim = float(self.rng.uniform(0.75, 1.05))
        return min(255, round(red * dim)), min(255, round(green * dim)), min(255, round(blue * dim))

    def paste(self, image: Image.Image, x: float, y: float) -> None:
        """Lay an oversized RGBA image, reduced by half, with its corner at (x, y)."""
        small = image.resize(
            (max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX
        )
        layer = np.asarray(small, dtype=np.float32)
        left, top = round(x), round(y)
        x1, y1 = max(0, left), max(0, top)
        x2, y2 = min(self.width, left + layer.shape[1]), min(self.height, top + layer.shape[0])
        if x2 <= x1 or y2 <= y1:
            return
        part = layer[y1 - top : y2 - top, x1 - left : x2 - left]
        alpha = part[..., 3:] / 255
        self.rgb[y1:y2, x1:x2] = self.rgb[y1:y2, x1:x2] * (1 - alpha) + part[..., :3] * alpha


def _canvas(wide: float, tall: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (max(4, round(2 * wide)), max(4, round(2 * tall))), (0, 0, 0, 0))
    return image, ImageDraw.Draw(image)


def _add_lamp(spot: _Spot) -> None:
    """A lamp, a headlight or a far window: round, bright, without tongues."""
    warm = (255.0, 220.0, 150.0) if spot.rng.random() < 0.6 else (235.0, 240.0, 255.0)
    y = float(spot.rng.uniform(0.05, 0.85)) * spot.height
    for _ in range(int(spot.rng.integers(1, 4))):
        add_glow(
            spot.rgb, (spot.x, y), 2.2 * spot.size, (warm[0] * 0.6, warm[1] * 0.5, warm[2] * 0.5)
        )
        image, draw = _canvas(spot.size * 0.35, spot.size * 0.35)
        draw.ellipse([0, 0, image.width - 1, image.height - 1], fill=(255, 250, 226, 255))
        spot.paste(image, spot.x - spot.size * 0.17, y - spot.size * 0.17)
        spot.x += float(spot.rng.uniform(0.8, 2.5)) * spot.size


def _add_cone(spot: _Spot) -> None:
    """A traffic cone."""
    wide, tall = spot.size * 0.8, spot.size * 1.1
    image, draw = _canvas(wide, tall)
    w, h = image.size
    orange = spot.colour(((244, 100, 24), (250, 130, 30)))
    draw.polygon(
        [(w * 0.42, 0), (w * 0.58, 0), (w * 0.85, h * 0.9), (w * 0.15, h * 0.9)], fill=orange
    )
    draw.polygon(
        [(w * 0.35, h * 0.35), (w * 0.65, h * 0.35), (w * 0.72, h * 0.55), (w * 0.28, h * 0.55)],
        fill=(244, 244, 240),
    )
    draw.rectangle([0, h * 0.9, w, h], fill=orange)
    spot.paste(image, spot.x - wide / 2, spot.floor - tall)


def _add_cloth(spot: _Spot) -> None:
    """A red or orange flag, banner, vest or tarpaulin with folds."""
    wide, tall = (
        spot.size * float(spot.rng.uniform(0.7, 1.8)),
        spot.size * float(spot.rng.uniform(0.6, 1.5)),
    )
    image, draw = _canvas(wide, tall)
    w, h = image.size
    colour = spot.colour(RED_TO_YELLOW)
    edge = [(w * t, h * 0.12 * (1 + np.sin(9 * t + spot.x))) for t in np.linspace(0, 1, 9).tolist()]
    draw.polygon([*edge, (w, h * 0.95), (w * 0.5, h * 0.85), (0, h)], fill=colour)
    for fold in range(1, 5):
        dark = tuple(round(c * 0.78) for c in colour)
        draw.line(
            [(w * fold / 5, h * 0.2), (w * (fold + 0.3) / 5, h * 0.88)],
            fill=(*dark, 255),
            width=max(1, w // 40),
        )
    if spot.rng.random() < 0.3:
        draw.rectangle([w * 0.05, h * 0.5, w * 0.95, h * 0.6], fill=(228, 232, 226))
    spot.paste(image, spot.x - wide / 2, float(spot.rng.uniform(0.1, 0.85)) * spot.height)


def _add_hat_on_table(spot: _Spot) -> None:
    """A hard hat that nobody wears, on a board or on the ground."""
    wide = max(10.0, spot.size * 0.9)
    image, draw = _canvas(wide, wide * 0.7)
    w, h = image.size
    colour = spot.colour(HATS)
    draw.rectangle([0, h * 0.82, w, h], fill=(120, 92, 64))
    draw.pieslice([w * 0.16, h * 0.08, w * 0.84, h * 1.45], 180, 360, fill=colour)
    draw.ellipse(
        [w * 0.06, h * 0.68, w * 0.94, h * 0.86], fill=tuple(round(c * 0.85) for c in colour)
    )
    draw.ellipse(
        [w * 0.3, h * 0.16, w * 0.5, h * 0.36], fill=tuple(min(255, round(c * 1.2)) for c in colour)
    )
    spot.paste(image, spot.x - wide / 2, spot.floor - wide * 0.7)


def _add_ball(spot: _Spot) -> None:
    """A ball, balloon or sign: the round shape of a head, or the colour of a flame."""
    image, draw = _canvas(spot.size * 0.7, spot.size * 0.7)
    w = image.width
    draw.ellipse(
        [0, 0, w - 1, w - 1], fill=spot.colour((*RED_TO_YELLOW, (226, 180, 150), (60, 40, 30)))
    )
    draw.ellipse([w * 0.2, w * 0.15, w * 0.45, w * 0.4], fill=(255, 255, 255, 90))
    spot.paste(image, spot.x - spot.size * 0.35, float(spot.rng.uniform(0.1, 0.9)) * spot.height)


def _add_steam(spot: _Spot) -> None:
    """A short, thin, white wisp of steam above a pipe or cup; too faint to be called smoke."""
    tall, wide = max(10, round(spot.size * 0.9)), max(8, round(spot.size * 0.45))
    layer = paint_plume(
        spot.rng, tall, wide, opacity=float(spot.rng.uniform(0.14, 0.26)), shade=238
    )
    image = Image.fromarray(
        np.dstack([layer[..., :3], layer[..., 3] * 255]).clip(0, 255).astype(np.uint8), "RGBA"
    )
    spot.paste(image.resize((wide * 2, tall * 2)), spot.x - wide / 2, spot.floor - tall)


def _add_reflection(spot: _Spot) -> None:
    """A warm sheen on floor or water."""
    tall, wide = max(8, round(spot.size * 0.6)), max(12, round(spot.size * 2.2))
    field = noise(spot.rng, tall, wide, octaves=(3, 9))[..., None] * paint_glow(
        tall, wide, colour=(150.0, 84.0, 26.0)
    )
    x, y = round(spot.x - wide / 2), round(spot.floor - tall)
    x1, y1 = max(0, x), max(0, y)
    x2, y2 = min(spot.width, x + wide), min(spot.height, y + tall)
    if x2 > x1 and y2 > y1:
        spot.rgb[y1:y2, x1:x2] += field[y1 - y : y2 - y, x1 - x : x2 - x]


LOOKALIKES: tuple[Callable[[_Spot], None], ...] = (
    _add_lamp, _add_cone, _add_cloth, _add_hat_on_table, _add_ball, _add_steam, _add_reflection,
)  # fmt: skip


def paint_lookalikes(
    rng: np.random.Generator, rgb: Floats, ground: float, *, count: int, is_dark: bool
) -> None:
    """Paint `count` things that are mistaken for hazards, in place; in the dark mostly lamps."""
    for _ in range(count):
        choice = 0 if is_dark and rng.random() < 0.6 else int(rng.integers(len(LOOKALIKES)))
        LOOKALIKES[choice](_Spot(rng, rgb, ground))
