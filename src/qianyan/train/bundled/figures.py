"""Painted people: workers and passers-by with hard hats, caps, hoods or bare heads.

A figure is drawn in its own coordinates (the full standing height is 1, x from the body's axis)
several times too large, then reduced, so that its edges are smooth at any size.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from qianyan.train.bundled.flames import Floats

Headgear = Literal["helmet", "hair", "bald", "cap", "hood", "long_hair"]
Facing = Literal["front", "back", "left", "right"]
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

HALF_WIDTH = 0.36  # of a figure's layer: room for spread arms
LIFT = 0.03

BARE: tuple[Headgear, ...] = ("hair", "hair", "bald", "cap", "hood", "long_hair")
HELMET_COLOURS: tuple[Colour, ...] = (
    (243, 203, 28), (240, 240, 236), (205, 38, 30), (28, 82, 178), (245, 128, 22), (40, 138, 70),
)  # fmt: skip
VEST_COLOURS: tuple[Colour, ...] = ((214, 236, 48), (250, 122, 24), (232, 84, 40))
SKINS: tuple[Colour, ...] = ((241, 205, 176), (224, 178, 140), (188, 134, 96), (120, 80, 56))
HAIRS: tuple[Colour, ...] = (
    (28, 22, 20),
    (60, 40, 26),
    (110, 74, 40),
    (150, 146, 142),
    (20, 20, 26),
)
CAPS: tuple[Colour, ...] = (
    (40, 44, 60),
    (150, 30, 34),
    (30, 90, 60),
    (84, 88, 110),
    (120, 96, 70),
)


@dataclass(frozen=True)
class Figure:
    """A painted person: RGBA layer and the head's box in the layer's pixels."""

    layer: Floats
    head_box: Box
    wears_helmet: bool


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return _shade(colours[int(rng.integers(len(colours)))], float(rng.uniform(0.82, 1.1)))


class _Easel:
    """A drawing surface in figure coordinates: x from the axis, y down from the crown.

    Above the crown there is room for a hat: LIFT.
    """

    def __init__(self, unit: float, half_width: float, height: float) -> None:
        self.unit, self.half_width = unit, half_width
        size = (round(2 * half_width * unit), round((height + LIFT) * unit))
        self.image = Image.new("RGBA", size, (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (x + self.half_width) * self.unit, (y + LIFT) * self.unit

    def polygon(self, points: list[tuple[float, float]], fill: Colour) -> None:
        self.draw.polygon([self._at(*point) for point in points], fill=fill)

    def ellipse(self, box: Box, fill: Colour) -> None:
        self.draw.ellipse([*self._at(box[0], box[1]), *self._at(box[2], box[3])], fill=fill)

    def dome(self, box: Box, angles: tuple[float, float], fill: Colour) -> None:
        ends = [*self._at(box[0], box[1]), *self._at(box[2], box[3])]
        self.draw.pieslice(ends, angles[0], angles[1], fill=fill)

    def limb(self, points: list[tuple[float, float]], width: float, fill: Colour) -> None:
        """Draw a thick line with round joints and ends."""
        pixels = max(1, round(width * self.unit))
        self.draw.line([self._at(*p) for p in points], fill=fill, width=pixels, joint="curve")
        for x, y in points:
            self.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill)


def _draw_hard_hat(easel: _Easel, r: float, top: float, facing: Facing, colour: Colour) -> None:
    dark, light = _shade(colour, 0.72), _shade(colour, 1.22)
    brim = top + 1.12 * r
    easel.dome((-1.14 * r, top - 0.22 * r, 1.14 * r, top + 2.4 * r), (180, 360), colour)
    easel.ellipse((-0.75 * r, top - 0.02 * r, -0.1 * r, top + 0.5 * r), light)
    easel.dome((-0.22 * r, top - 0.34 * r, 0.22 * r, top + 2.0 * r), (180, 360), dark)
    easel.dome((-0.13 * r, top - 0.34 * r, 0.13 * r, top + 2.0 * r), (180, 360), colour)
    left = -1.75 * r if facing == "left" else -1.28 * r
    right = 1.75 * r if facing == "right" else 1.28 * r
    easel.ellipse((left, brim - 0.2 * r, right, brim + 0.16 * r), dark)
    easel.ellipse((left, brim - 0.24 * r, right, brim + 0.06 * r), colour)


def _draw_face(easel: _Easel, rng: np.random.Generator, r: float, facing: Facing) -> None:
    eye, y = (40, 30, 28), 1.3 * r
    for x in {"front": (-0.38, 0.38), "left": (-0.55,), "right": (0.55,), "back": ()}[facing]:
        easel.ellipse((x * r - 0.1 * r, y - 0.08 * r, x * r + 0.1 * r, y + 0.1 * r), eye)
    if facing == "front":
        wide = float(rng.uniform(0.2, 0.42)) * r
        easel.limb([(-wide, 1.95 * r), (wide, 1.95 * r)], 0.09 * r, (150, 84, 78))
        easel.limb([(0.0, 1.4 * r), (0.04 * r, 1.65 * r)], 0.08 * r, (176, 128, 104))


def _draw_head(
    easel: _Easel, rng: np.random.Generator, r: float, facing: Facing, gear: Headgear
) -> float:
    """Draw head and headgear at the top of the easel; returns the crown's y."""
    skin, hair = _pick(rng, SKINS), _pick(rng, HAIRS)
    back = facing == "back"
    if gear == "long_hair":
        easel.limb([(-0.75 * r, 1.1 * r), (-0.85 * r, 2.7 * r)], 0.6 * r, hair)
        easel.limb([(0.75 * r, 1.1 * r), (0.85 * r, 2.7 * r)], 0.6 * r, hair)
    easel.limb([(0, 2.2 * r), (0, 2.8 * r)], 0.85 * r, _shade(skin, 0.8))
    easel.ellipse((-r, 0, r, 2.45 * r), skin)
    if not back:
        _draw_face(easel, rng, r, facing)
    if gear != "bald":
        easel.dome(
            (-1.04 * r, -0.06 * r, 1.04 * r, 2.3 * r), (178, 362) if not back else (160, 380), hair
        )
        if back:
            easel.ellipse((-0.98 * r, 0.3 * r, 0.98 * r, 2.1 * r), hair)
    if gear == "hood":
        cloth = _pick(rng, ((60, 70, 90), (120, 40, 44), (70, 90, 70)))
        easel.dome((-1.25 * r, -0.2 * r, 1.25 * r, 2.9 * r), (140, 400), cloth)
        if not back:
            easel.ellipse((-0.75 * r, 0.45 * r, 0.75 * r, 2.4 * r), skin)
            _draw_face(easel, rng, r * 0.95, facing)
    elif gear == "cap":
        colour = _pick(rng, CAPS)
        easel.dome((-1.05 * r, -0.12 * r, 1.05 * r, 1.95 * r), (180, 360), colour)
        side = {"left": -1.0, "right": 1.0}.get(facing)
        if side is not None:
            ends = sorted((side * 0.6 * r, side * 1.9 * r))
            easel.ellipse((ends[0], 0.72 * r, ends[1], 0.98 * r), _shade(colour, 0.8))
        elif facing == "front":
            easel.ellipse((-0.8 * r, 0.72 * r, 0.8 * r, 1.08 * r), _shade(colour, 0.78))
    elif gear == "helmet":
        _draw_hard_hat(easel, r, 0.02 * r, facing, _pick(rng, HELMET_COLOURS))
        return -0.25 * r
    return -0.2 * r if gear == "hood" else -0.1 * r


def _draw_legs(easel: _Easel, rng: np.random.Generator, hip: float, *, seated: bool) -> None:
    cloth = _pick(rng, ((40, 52, 84), (70, 66, 60), (36, 36, 40), (104, 92, 70), (28, 60, 110)))
    shoe = _pick(rng, ((30, 26, 24), (96, 66, 40), (60, 60, 64)))
    stride = float(rng.uniform(0.03, 0.13))
    for sign in (-1.0, 1.0):
        shade = _shade(cloth, 1.0 if sign > 0 else 0.85)
        if seated:
            knee = (sign * float(rng.uniform(0.09, 0.15)), hip + 0.06)
            foot = (knee[0] + sign * 0.01, hip + 0.27)
        else:
            knee = (sign * (0.05 + stride * 0.4), hip + 0.22)
            foot = (sign * (0.045 + stride), 0.965)
        easel.limb([(sign * 0.045, hip), knee, foot], 0.085, shade)
        easel.ellipse((foot[0] - 0.055, foot[1] - 0.02, foot[0] + 0.055, foot[1] + 0.03), shoe)


def _draw_torso(easel: _Easel, rng: np.random.Generator, shoulder: float, hip: float) -> None:
    cloth = (int(rng.integers(20, 230)), int(rng.integers(20, 220)), int(rng.integers(20, 230)))
    wide = float(rng.uniform(0.095, 0.125))
    body = [
        (-wide, shoulder),
        (wide, shoulder),
        (wide * 0.85, hip + 0.03),
        (-wide * 0.85, hip + 0.03),
    ]
    easel.limb([(-wide + 0.03, shoulder + 0.02), (wide - 0.03, shoulder + 0.02)], 0.07, cloth)
    easel.polygon(body, cloth)
    if rng.random() < 0.5:
        vest = _pick(rng, VEST_COLOURS)
        easel.polygon([(x * 0.92, y) for x, y in body], vest)
        stripe = (226, 230, 226)
        middle = shoulder + (hip - shoulder) * 0.55
        easel.polygon([(-wide * 0.9, middle), (wide * 0.9, middle), (wide * 0.88, middle + 0.025),
                       (-wide * 0.88, middle + 0.025)], stripe)  # fmt: skip
        for sign in (-1.0, 1.0):
            easel.limb([(sign * wide * 0.5, shoulder), (sign * wide * 0.5, middle)], 0.02, stripe)
        easel.polygon(
            [(-0.012, shoulder), (0.012, shoulder), (0.004, hip), (-0.004, hip)], _shade(vest, 0.6)
        )
    skin = _pick(rng, SKINS)
    for sign in (-1.0, 1.0):
        lift = float(rng.uniform(-0.08, 0.2)) if rng.random() < 0.75 else -0.3
        elbow = (sign * (wide + float(rng.uniform(0.02, 0.07))), shoulder + 0.17)
        hand = (sign * (wide + float(rng.uniform(-0.05, 0.1))), shoulder + 0.17 + lift)
        if lift > 0.05:
            hand = (hand[0], shoulder + 0.33)
        easel.limb(
            [(sign * (wide - 0.015), shoulder + 0.03), elbow, hand], 0.055, _shade(cloth, 0.88)
        )
        easel.ellipse((hand[0] - 0.026, hand[1] - 0.026, hand[0] + 0.026, hand[1] + 0.026), skin)


def paint_figure(
    rng: np.random.Generator, height: int, *, gear: Headgear, part: float = 1.0
) -> Figure:
    """Paint a person whose visible part is `height` pixels tall.

    `part` is how much of the standing figure is seen, from the crown down: 1 is head to foot,
    0.3 head and shoulders. Seated people are chosen by chance among whole figures.
    """
    facing: Facing = ("front", "front", "back", "left", "right")[int(rng.integers(5))]
    seated = part >= 1.0 and rng.random() < 0.12
    tall = 0.79 if seated else 1.0
    unit = height / (tall * part) * (2.0 if height > 240 else 3.0)
    radius = float(rng.uniform(0.055, 0.068))
    easel = _Easel(unit, HALF_WIDTH, tall)
    shoulder, hip = 2.75 * radius, (0.5 if seated else 0.54)
    _draw_legs(easel, rng, hip, seated=seated)
    _draw_torso(easel, rng, shoulder, hip)
    head = _Easel(unit, 2.2 * radius, 3.6 * radius)
    crown = _draw_head(head, rng, radius, facing, gear)
    pivot = (head.image.width / 2, head.image.height * 0.7)
    turned = head.image.rotate(float(rng.normal()) * 6, Image.Resampling.BICUBIC, center=pivot)
    easel.image.alpha_composite(turned, (round((HALF_WIDTH - 2.2 * radius) * unit), 0))
    seen = easel.image.crop((0, 0, easel.image.width, round(easel.image.height * part)))
    scale = height / seen.height
    small = seen.resize((max(2, round(seen.width * scale)), height), Image.Resampling.BOX)
    if height > 90:
        small = small.filter(ImageFilter.GaussianBlur(0.4))
    layer = np.asarray(small, dtype=np.float32).copy()
    _light(rng, layer)
    layer[..., 3] /= 255
    reach = (1.35 if gear == "helmet" else 1.12) * radius
    pixels = unit * scale
    head_box = (
        (HALF_WIDTH - reach) * pixels,
        max(0.0, (LIFT + crown) * pixels),
        (HALF_WIDTH + reach) * pixels,
        min(float(height), (LIFT + 2.45 * radius) * pixels),
    )
    return Figure(layer=layer, head_box=head_box, wears_helmet=gear == "helmet")


def _light(rng: np.random.Generator, layer: Floats) -> None:
    """Shade the painted colours from one side and roughen them, in place."""
    height, width = layer.shape[:2]
    side = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * float(
        rng.uniform(-0.22, 0.22)
    )
    down = np.linspace(0.07, -0.1, height, dtype=np.float32)[:, None, None]
    grain = rng.normal(0, 5, (height, width, 1)).astype(np.float32)
    layer[..., :3] = np.clip(layer[..., :3] * (1 + side + down) + grain, 0, 255)
