"""Painted interiors: factory halls with machines and shelves, rooms with cloth and tables."""

import numpy as np

from qianyan.train.bundled.brush import WARM, Backdrop, Brush, fade, fill_ground, roughen, tint


def paint_hall(rng: np.random.Generator, height: int, width: int) -> Backdrop:
    """Paint a factory or store: wall, floor in perspective, beams, lamps, shelves, machines."""
    level = float(rng.uniform(0.5, 0.68))
    base = int(rng.integers(90, 200))
    wall = (base, base - int(rng.integers(-8, 14)), base - int(rng.integers(-12, 24)))
    rgb = fade(height, width, [(0, tint(wall, 0.72)), (0.5, wall), (1, tint(wall, 0.9))])
    fill_ground(
        rng, rgb, level, ((136, 134, 130), (112, 122, 116), (150, 138, 120))[int(rng.integers(3))]
    )
    brush = Brush(rng, rgb)
    for index in range(9):
        brush.line(
            [(0.5 + (index - 4) * 0.07, level), (0.5 + (index - 4) * 0.34, 1.0)],
            0.003,
            tint(wall, 0.62),
        )
    beams = int(rng.integers(2, 6))
    for index in range(beams):
        x = (index + 0.5) / beams
        brush.box(x - 0.012, 0, x + 0.012, level, tint(wall, 0.66))
    for _ in range(int(rng.integers(1, 5))):
        x, y, wide = brush.uniform(0.02, 0.8), brush.uniform(0.0, 0.16), brush.uniform(0.06, 0.18)
        warm = (255, 236, 190) if rng.random() < 0.5 else (240, 246, 250)
        brush.box(x, y, x + wide, y + brush.uniform(0.012, 0.03), warm)
    for _ in range(int(rng.integers(0, 4))):
        _shelf(brush, brush.uniform(-0.1, 0.85), level)
    if rng.random() < 0.5:
        x, wide = brush.uniform(0.05, 0.7), brush.uniform(0.1, 0.22)
        brush.box(
            x,
            level - brush.uniform(0.25, 0.42),
            x + wide,
            level,
            brush.pick(((60, 74, 96), (214, 222, 228), (70, 66, 62))),
        )
    if rng.random() < 0.5:
        x, wide, tall = brush.uniform(0, 0.75), brush.uniform(0.12, 0.26), brush.uniform(0.15, 0.32)
        brush.box(
            x,
            level + 0.08 - tall,
            x + wide,
            level + 0.08,
            brush.pick(((48, 100, 84), (70, 92, 140), (206, 120, 36), (120, 122, 126))),
        )
        brush.box(
            x + wide * 0.15,
            level + 0.1 - tall,
            x + wide * 0.5,
            level + 0.14 - tall,
            (190, 206, 200),
        )
    return Backdrop(roughen(rng, brush.finish(), 12), level)


def _shelf(brush: Brush, x: float, level: float) -> None:
    wide, tall, rows = (
        brush.uniform(0.14, 0.3),
        brush.uniform(0.25, 0.48),
        int(brush.rng.integers(2, 5)),
    )
    frame = brush.pick(((36, 70, 140), (214, 96, 30), (96, 98, 100)))
    for row in range(rows):
        y = level - tall * row / rows
        cursor = x
        while cursor < x + wide - 0.02:
            step = brush.uniform(0.02, 0.06)
            carton = brush.pick(
                ((186, 146, 100), (150, 116, 80), (210, 206, 200), (190, 60, 44), (70, 100, 150))
            )
            brush.box(
                cursor,
                y - tall / rows * brush.uniform(0.45, 0.9),
                min(cursor + step, x + wide),
                y,
                carton,
            )
            cursor += step + 0.004
        brush.box(x, y - 0.007, x + wide, y + 0.003, frame)
    for side in (x, x + wide):
        brush.box(side - 0.005, level - tall, side + 0.005, level + 0.01, frame)


def paint_room(rng: np.random.Generator, height: int, width: int) -> Backdrop:
    """Paint an office or a living room: wall, window, pictures, cloth, table, lamp."""
    level = float(rng.uniform(0.6, 0.74))
    wall = ((214, 206, 190), (190, 204, 206), (226, 216, 214), (170, 150, 132))[
        int(rng.integers(4))
    ]
    rgb = fade(height, width, [(0, tint(wall, 0.9)), (1, wall)])
    fill_ground(
        rng, rgb, level, ((150, 110, 74), (120, 116, 112), (176, 156, 130))[int(rng.integers(3))]
    )
    brush = Brush(rng, rgb)
    if rng.random() < 0.7:
        x, wide, tall = (
            brush.uniform(0.05, 0.6),
            brush.uniform(0.16, 0.34),
            brush.uniform(0.24, 0.4),
        )
        brush.box(x - 0.01, 0.1, x + wide + 0.01, 0.12 + tall, (238, 236, 230))
        brush.box(
            x,
            0.12,
            x + wide,
            0.1 + tall,
            brush.pick(((150, 190, 226), (236, 168, 110), (60, 70, 96))),
        )
        brush.box(x + wide / 2 - 0.005, 0.12, x + wide / 2 + 0.005, 0.1 + tall, (238, 236, 230))
        if rng.random() < 0.5:
            cloth = brush.pick((*WARM, (120, 140, 120)))
            brush.box(x - 0.06, 0.07, x + 0.02, 0.2 + tall, cloth)
            brush.box(x + wide - 0.02, 0.07, x + wide + 0.06, 0.2 + tall, cloth)
    for _ in range(int(rng.integers(0, 3))):
        x, y, wide = brush.uniform(0.05, 0.8), brush.uniform(0.1, 0.3), brush.uniform(0.06, 0.14)
        brush.box(x, y, x + wide, y + wide, (70, 50, 36))
        brush.box(
            x + 0.01,
            y + 0.012,
            x + wide - 0.01,
            y + wide - 0.012,
            brush.pick((*WARM, (90, 130, 150), (200, 200, 190))),
        )
    if rng.random() < 0.7:
        x, wide, y = (
            brush.uniform(0.0, 0.6),
            brush.uniform(0.25, 0.45),
            level + brush.uniform(-0.02, 0.1),
        )
        wood = brush.pick(((140, 96, 60), (226, 222, 214), (90, 64, 46)))
        for side in (x + 0.02, x + wide - 0.03):
            brush.box(side, y, side + 0.014, y + 0.2, tint(wood, 0.8))
        brush.box(x, y - 0.012, x + wide, y + 0.012, wood)
    return Backdrop(roughen(rng, brush.finish(), 8), level)
