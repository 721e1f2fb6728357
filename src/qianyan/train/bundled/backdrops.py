"""Painted places: building sites, streets, fields and nothing in particular.

None of the things drawn here is ever labelled, though many look like fire, smoke or a worn hard
hat: that is their purpose.
"""

from collections.abc import Callable

import numpy as np

from qianyan.train.bundled.brush import (
    WALLS,
    WARM,
    Backdrop,
    Brush,
    Colour,
    fade,
    fill_ground,
    roughen,
    tint,
)
from qianyan.train.bundled.flames import Floats, enlarge, noise
from qianyan.train.bundled.interiors import paint_hall, paint_room


def paint_sky(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Paint a clear, cloudy, grey or sunset sky."""
    mood = rng.random()
    if mood < 0.22:  # sunset: the classic false fire
        sky = fade(height, width, [
            (0, tint((78, 84, 140), float(rng.uniform(0.5, 1.1)))),
            (0.55, tint((236, 128, 66), float(rng.uniform(0.8, 1.05)))),
            (1, tint((255, 206, 112), float(rng.uniform(0.8, 1.0)))),
        ])  # fmt: skip
        down, across = np.mgrid[0:height, 0:width].astype(np.float32)
        x, y, r = (
            rng.uniform(0.1, 0.9) * width,
            rng.uniform(0.4, 0.9) * height,
            rng.uniform(0.02, 0.09) * height,
        )
        far = np.hypot(down - y, across - x)
        sky += np.clip(1.4 - far / r, 0, 1)[..., None] * np.array([255, 220, 150], dtype=np.float32)
        sky += np.exp(-far / (6 * r))[..., None] * np.array([90, 46, 8], dtype=np.float32)
    elif mood < 0.6:
        sky = fade(
            height,
            width,
            [(0, tint((96, 148, 208), float(rng.uniform(0.7, 1.1)))), (1, (206, 222, 236))],
        )
    else:
        grey = int(rng.integers(130, 225))
        sky = fade(
            height, width, [(0, (grey - 12, grey - 6, grey)), (1, tint((grey, grey, grey), 1.1))]
        )
    clouds = np.clip(
        noise(rng, height, width, octaves=(3, 7, 15, 29), fall=0.65)
        - float(rng.uniform(0.3, 0.65)),
        0,
        1,
    )
    cover = np.clip(clouds * 3.2, 0, 1)[..., None] * float(rng.uniform(0.2, 0.95))
    light = np.array([244, 240, 238] if mood >= 0.22 else [232, 140, 120], dtype=np.float32)
    painted: Floats = sky * (1 - cover) + light * float(rng.uniform(0.75, 1.0)) * cover
    return painted


def paint_site(rng: np.random.Generator, height: int, width: int) -> Backdrop:
    """Paint a building under construction with floors, columns, scaffold and perhaps a crane."""
    level = float(rng.uniform(0.55, 0.78))
    rgb = paint_sky(rng, height, width)
    fill_ground(
        rng, rgb, level, ((168, 142, 108), (150, 146, 140), (126, 110, 90))[int(rng.integers(3))]
    )
    brush = Brush(rng, rgb)
    if rng.random() < 0.5:
        x, top = brush.uniform(0.1, 0.9), brush.uniform(0.03, 0.2)
        steel = brush.pick(((224, 178, 40), (200, 70, 40), (150, 150, 150)))
        brush.line([(x, level), (x, top)], 0.012, steel)
        brush.line([(x - 0.3, top + 0.03), (x + 0.45, top + 0.03)], 0.01, steel)
        brush.line([(x - 0.2, top + 0.03), (x, top - 0.04), (x + 0.35, top + 0.03)], 0.004, steel)
        brush.line([(x + 0.25, top + 0.03), (x + 0.25, top + 0.25)], 0.003, (60, 60, 60))
    left, right = sorted((brush.uniform(-0.2, 0.55), brush.uniform(0.5, 1.2)))
    floors, bays = int(rng.integers(2, 5)), int(rng.integers(3, 7))
    top, wall = brush.uniform(0.08, 0.3), brush.pick(WALLS)
    brush.box(left, top, right, level, tint(wall, 0.5))
    for floor in range(floors + 1):
        y = top + (level - top) * floor / floors
        brush.box(left - 0.01, y - 0.012, right + 0.01, y + 0.012, wall)
    for bay in range(bays + 1):
        x = left + (right - left) * bay / bays
        brush.box(x - 0.009, top, x + 0.009, level, tint(wall, 0.92))
    for _ in range(int(rng.integers(0, floors * bays))):
        bay, floor = int(rng.integers(bays)), int(rng.integers(floors))
        x, y = left + (right - left) * bay / bays, top + (level - top) * floor / floors
        brick = brush.pick(((168, 88, 62), (186, 178, 166), (150, 110, 84)))
        brush.box(
            x + 0.01,
            y + 0.014,
            x + (right - left) / bays - 0.01,
            y + (level - top) / floors - 0.012,
            brick,
        )
    if rng.random() < 0.6:
        _scaffold(brush, left, right, top, level)
    if rng.random() < 0.5:
        _barrier(brush, level)
    if rng.random() < 0.5:
        x, wide = brush.uniform(0, 1), brush.uniform(0.08, 0.2)
        brush.polygon(
            [(x - wide, level + 0.08), (x, level - 0.06), (x + wide, level + 0.08)],
            brush.pick(((190, 160, 116), (130, 120, 110))),
        )
    return Backdrop(roughen(rng, brush.finish(), 14), level)


def _scaffold(brush: Brush, left: float, right: float, top: float, level: float) -> None:
    pole = brush.pick(((170, 172, 176), (196, 150, 60), (110, 112, 116)))
    step = brush.uniform(0.06, 0.11)
    for x in np.arange(left, right, step).tolist():
        brush.line([(x, top - 0.05), (x, level)], 0.005, pole)
    for y in np.arange(top, level, step * 1.4).tolist():
        brush.line([(left, y), (right, y)], 0.004, pole)
        if brush.rng.random() < 0.6:
            brush.box(left, y + 0.002, right, y + 0.014, (150, 116, 72))
    brush.line([(left, level), (min(right, left + 4 * step), top)], 0.004, pole)


def _barrier(brush: Brush, level: float) -> None:
    y, piece = level + brush.uniform(0.02, 0.12), 0.035
    pair = (
        ((226, 60, 40), (244, 244, 240))
        if brush.rng.random() < 0.6
        else ((244, 200, 30), (30, 30, 30))
    )
    for index in range(int(1 / piece) + 1):
        brush.box(index * piece, y, (index + 1) * piece, y + 0.022, pair[index % 2])
    for x in (0.1, 0.4, 0.7, 0.95):
        brush.box(x, y, x + 0.01, y + 0.09, (120, 120, 120))


def paint_street(rng: np.random.Generator, height: int, width: int) -> Backdrop:
    """Paint houses with windows, a road, and parked cars with lamps."""
    level = float(rng.uniform(0.55, 0.75))
    rgb = paint_sky(rng, height, width)
    fill_ground(rng, rgb, level, (112, 112, 116))
    brush = Brush(rng, rgb)
    x = brush.uniform(-0.15, 0.0)
    while x < 1:
        wide, top, wall = brush.uniform(0.14, 0.34), brush.uniform(0.08, 0.42), brush.pick(WALLS)
        brush.box(x, top, x + wide, level, wall)
        if rng.random() < 0.4:
            roof = brush.pick(((136, 60, 44), (84, 78, 76), (170, 84, 52)))
            brush.polygon(
                [(x - 0.01, top), (x + wide / 2, top - 0.1), (x + wide + 0.01, top)], roof
            )
        columns, rows = int(rng.integers(2, 6)), int(rng.integers(2, 6))
        glass = (92, 116, 136) if rng.random() < 0.6 else (250, 206, 120)
        for row in range(rows):
            for column in range(columns):
                wx, wy = (
                    x + wide * (column + 0.25) / columns,
                    top + (level - top) * (row + 0.25) / rows,
                )
                pane = tint(glass, brush.uniform(0.55, 1.1))
                brush.box(wx, wy, wx + wide * 0.5 / columns, wy + (level - top) * 0.5 / rows, pane)
        x += wide + brush.uniform(0, 0.04)
    brush.box(0, level, 1, level + 0.03, (168, 166, 160))
    for dash in range(6):
        brush.box(dash * 0.18, level + 0.2, dash * 0.18 + 0.08, level + 0.212, (224, 222, 210))
    for _ in range(int(rng.integers(0, 4))):
        _car(brush, level + brush.uniform(0.02, 0.16))
    return Backdrop(roughen(rng, brush.finish(), 14), level)


def _car(brush: Brush, y: float) -> None:
    x, size = brush.uniform(0, 0.85), brush.uniform(0.1, 0.24)
    paint = brush.pick(
        (
            (196, 32, 30),
            (220, 220, 220),
            (40, 60, 110),
            (30, 30, 34),
            (236, 150, 30),
            (120, 126, 130),
        )
    )
    tall = size * 0.5
    outline = ((0.18, 0.45), (0.32, 1.0), (0.72, 1.0), (0.86, 0.45))
    window = ((0.26, 0.5), (0.36, 0.92), (0.68, 0.92), (0.78, 0.5))
    for shape, colour in ((outline, tint(paint, 0.85)), (window, (70, 90, 104))):
        brush.polygon([(x + size * across, y - tall * up) for across, up in shape], colour)
    brush.box(x, y - tall * 0.55, x + size, y - tall * 0.08, paint)
    ratio = brush.height / brush.width
    for wheel in (0.22, 0.78):
        cx, r = x + size * wheel, tall * 0.2
        brush.oval(cx - r * ratio, y - 0.3 * tall, cx + r * ratio, y + 0.1 * tall, (24, 24, 26))
    lamp: Colour = (255, 246, 200) if brush.rng.random() < 0.5 else (226, 40, 30)
    brush.oval(x - 0.002, y - tall * 0.45, x + size * 0.07, y - tall * 0.28, lamp)


def paint_field(rng: np.random.Generator, height: int, width: int) -> Backdrop:
    """Paint hills, trees (some in autumn colours), grass or water."""
    level = float(rng.uniform(0.45, 0.72))
    rgb = paint_sky(rng, height, width)
    hills = noise(rng, 2, width, octaves=(4, 9), fall=0.5)[0]
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    shade = np.array(
        ((92, 116, 118), (74, 104, 80), (120, 112, 96))[int(rng.integers(3))], dtype=np.float32
    )
    ridge = (down > level - 0.22 * hills[None, :])[..., None]
    rgb = np.where(ridge, shade * float(rng.uniform(0.7, 1.2)), rgb).astype(np.float32)
    fill_ground(
        rng,
        rgb,
        level,
        ((96, 122, 62), (160, 142, 84), (92, 116, 130), (128, 110, 84))[int(rng.integers(4))],
    )
    brush = Brush(rng, rgb)
    autumn = rng.random() < 0.25
    leaves: tuple[Colour, ...] = (
        ((196, 92, 30), (214, 140, 40), (150, 70, 34))
        if autumn
        else ((52, 86, 40), (70, 104, 52), (40, 70, 44))
    )
    ratio = brush.height / brush.width
    for _ in range(int(rng.integers(0, 14))):
        x, y, size = (
            brush.uniform(0, 1),
            level + brush.uniform(-0.02, 0.1),
            brush.uniform(0.04, 0.16),
        )
        brush.box(x - 0.006, y - size, x + 0.006, y, (80, 60, 44))
        for _ in range(8):
            cx, cy, r = (
                x + brush.uniform(-0.5, 0.5) * size,
                y - size * brush.uniform(0.7, 1.5),
                size * brush.uniform(0.25, 0.5),
            )
            brush.oval(cx - r * ratio, cy - r, cx + r * ratio, cy + r, brush.pick(leaves, 0.22))
    return Backdrop(roughen(rng, brush.finish(), 26), level)


def paint_mottle(rng: np.random.Generator, height: int, width: int) -> Backdrop:
    """Paint nothing in particular: blended colours, blotches and shapes, for variety."""
    ends = rng.integers(50, 215, (2, 3))
    first, last = (tint((int(c[0]), int(c[1]), int(c[2])), 1.0) for c in ends)
    rgb = fade(height, width, [(0, first), (1, last)])
    rgb = rgb + (enlarge(rng.random((9, 12, 3), dtype=np.float32), height, width) - 0.5) * float(
        rng.uniform(10, 70)
    )
    brush = Brush(rng, rgb)
    for _ in range(int(rng.integers(0, 7))):
        x, y, wide, tall = (
            brush.uniform(-0.1, 0.9),
            brush.uniform(-0.1, 0.9),
            brush.uniform(0.04, 0.4),
            brush.uniform(0.04, 0.4),
        )
        colour = brush.pick(WARM) if rng.random() < 0.35 else brush.pick(WALLS, 0.5)
        (brush.oval if rng.random() < 0.4 else brush.box)(x, y, x + wide, y + tall, colour)
    return Backdrop(roughen(rng, brush.finish(), 20), float(rng.uniform(0.45, 0.7)))


BACKDROPS: dict[str, Callable[[np.random.Generator, int, int], Backdrop]] = {
    "site": paint_site,
    "street": paint_street,
    "hall": paint_hall,
    "field": paint_field,
    "room": paint_room,
    "mottle": paint_mottle,
}
