"""Painted fire and smoke: turbulence, flames and plumes as RGBA layers.

A layer is (height, width, 4) float32: colour 0..255 and opacity 0..1. Everything is drawn from
the generator given, so the same seed paints the same flame on any machine.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

PLUME_SIDE = 112  # smoke has no fine detail: it is computed at most this large, then enlarged
HEAT_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
HEAT_COLOURS = np.array(
    [(110, 18, 4), (215, 58, 10), (250, 132, 22), (255, 206, 78), (255, 250, 214)], dtype=np.float32
)


def enlarge(layer: Floats, height: int, width: int) -> Floats:
    """Resize a (h, w) or (h, w, channels) float array bicubically."""
    if layer.ndim == 2:
        image = Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.float32)
    return np.stack([enlarge(layer[..., c], height, width) for c in range(layer.shape[2])], axis=-1)


def noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    octaves: tuple[int, ...] = (4, 8, 16),
    fall: float = 0.6,
) -> Floats:
    """Sum smooth random fields of rising frequency into one (height, width) field in 0..1."""
    field = np.zeros((height, width), dtype=np.float32)
    amplitude = 1.0
    for cells in octaves:
        grid = rng.random((cells, cells), dtype=np.float32)
        field += amplitude * enlarge(grid, height, width)
        amplitude *= fall
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def paint_flame(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Paint tongues of flame that rise from the lower edge; returns an RGBA layer."""
    up = np.linspace(1, 0, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    sway = (noise(rng, height, width, octaves=(3, 6, 12), fall=0.7) - 0.5) * 0.9 * (0.15 + up)
    body = np.full((height, width), -1.0, dtype=np.float32)
    tongues = int(rng.integers(2, 7))
    for index in range(tongues):
        centre = float(rng.uniform(-0.6, 0.6)) if index else float(rng.uniform(-0.15, 0.15))
        tall = float(rng.uniform(0.45, 0.85)) if index else 0.97
        half = float(rng.uniform(0.16, 0.4)) + (0.12 if index == 0 else 0.0)
        climb = np.clip(up / tall, 0, 1)
        reach = half * (1 - climb) ** 0.75 * (0.65 + 1.1 * climb) + 1e-3
        tongue = 1 - (np.abs(across + sway - centre) / reach) ** 1.6
        body = np.maximum(body, np.where(up <= tall, tongue * (1.1 - 0.55 * climb), -1.0))
    grain = noise(rng, height, width, octaves=(7, 13, 23), fall=0.75)
    body = body + (grain - 0.62) * 0.55
    rim = 0.09 * across**2 + 0.1 * (sway * 0.4 + grain - 0.5)  # the foot is uneven and round
    opacity = np.clip(body * 4.0, 0, 1) * np.clip((up - rim) * 22 + 0.8, 0, 1)
    heat = np.clip(body * 1.25 + (grain - 0.5) * 0.45, 0, 1)
    colour = np.stack([np.interp(heat, HEAT_STOPS, HEAT_COLOURS[:, c]) for c in range(3)], axis=-1)
    return np.concatenate([colour, opacity[..., None]], axis=-1).astype(np.float32)


def paint_plume(
    rng: np.random.Generator, height: int, width: int, *, opacity: float, shade: float
) -> Floats:
    """Paint smoke that rises from the middle of the lower edge and widens; an RGBA layer.

    `opacity` is that of the thickest part, `shade` the mean grey 0..255.
    """
    scale = min(1.0, PLUME_SIDE / max(height, width))
    rows, columns = max(6, round(height * scale)), max(6, round(width * scale))
    up = np.linspace(1, 0, rows, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, columns, dtype=np.float32)[None, :]
    density = np.zeros((rows, columns), dtype=np.float32)
    lean = float(rng.uniform(-0.45, 0.45))
    puffs = int(rng.integers(16, 30))
    for index in range(puffs):
        rise = index / (puffs - 1)
        centre_x = lean * rise + float(rng.normal()) * (0.04 + 0.24 * rise)
        centre_y = 0.07 + 0.76 * rise + float(rng.normal()) * 0.03
        radius = (0.09 + 0.33 * rise) * float(rng.uniform(0.7, 1.2))
        far = ((across - centre_x) / radius) ** 2 + ((up - centre_y) / (radius * 0.55)) ** 2
        density += np.exp(-1.6 * far) * float(rng.uniform(0.45, 0.95))
    texture = noise(rng, rows, columns, octaves=(4, 9, 17, 31), fall=0.72)
    density = (1 - np.exp(-1.5 * density)) * (0.45 + 0.85 * texture)
    edge = np.minimum.reduce([1 - np.abs(across) + 0 * up, 1 - up + 0 * across]) * 9
    alpha = np.clip((density - 0.08) * 1.2, 0, 1) * opacity * np.clip(edge, 0, 1)
    light = noise(rng, rows, columns, octaves=(5, 11, 19), fall=0.7)
    grey = shade + (light - 0.5) * float(rng.uniform(40, 95)) + (up - 0.5) * 24
    tint = np.array([1.0, rng.uniform(0.97, 1.0), rng.uniform(0.93, 1.03)], dtype=np.float32)
    layer = np.concatenate([np.clip(grey[..., None] * tint, 0, 255), alpha[..., None]], axis=-1)
    big = enlarge(layer.astype(np.float32), height, width)
    big[..., 3] = np.clip(big[..., 3], 0, 1)
    return big


def paint_glow(height: int, width: int, *, colour: tuple[float, float, float]) -> Floats:
    """Paint light that fades from the centre to nothing at the edges, as RGB to be added."""
    up = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    fade = np.clip(1 - np.sqrt(up**2 + across**2), 0, 1) ** 2
    glow: Floats = fade[..., None] * np.array(colour, dtype=np.float32)
    return glow
