"""Drawn pictures with their labels: what training sees beside photos, and what the demo shows.

A scene is a painted place with people, flames, smoke and things that are mistaken for them.
The same seed and size always draw the same picture, with NumPy's own generator and no global
state. Labels are what was painted, so they are exact; severity is the share of the picture
that the box covers (under 1 % minor, up to 10 % moderate, above that severe).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qianyan.train.bundled.backdrops import BACKDROPS
from qianyan.train.bundled.figures import BARE, Box, Headgear, paint_figure
from qianyan.train.bundled.flames import Floats, noise, paint_flame, paint_plume
from qianyan.train.bundled.lookalikes import add_glow, paint_lookalikes
from qianyan.train.bundled.scene_plan import SceneKind, ScenePlan, plan_scene

ObjectKind = Literal["fire", "smoke", "person"]
Place = Literal["any", "site", "street", "hall", "field", "room", "mottle"]

MINOR_BELOW, MODERATE_BELOW = 0.01, 0.1  # shares of the picture's area
MAX_HIDDEN = 0.25  # a painted thing may cover at most this share of another's box
TRIES = 6


@dataclass(frozen=True)
class SceneObject:
    """A labelled thing; boxes are x1, y1, x2, y2 in pixels of the scene."""

    kind: ObjectKind
    sub_label: str
    box: Box
    head_box: Box | None = None


@dataclass(frozen=True)
class Scene:
    """A drawn picture: (height, width, 3) uint8 and everything in it that has a label."""

    rgb: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


def severity(box: Box, *, width: int, height: int) -> str:
    """Say how severe fire or smoke is by the share of the picture that its box covers."""
    share = (box[2] - box[0]) * (box[3] - box[1]) / (width * height)
    return "minor" if share < MINOR_BELOW else "moderate" if share <= MODERATE_BELOW else "severe"


def draw_scene(
    seed: int, *, width: int = 960, height: int = 720, kind: SceneKind = "any", place: Place = "any"
) -> Scene:
    """Draw the picture of this seed, size, kind and place; the same four, the same picture."""
    rng = np.random.default_rng(
        [seed, get_args(SceneKind).index(kind), get_args(Place).index(place)]
    )
    return _Painter(rng, width, height).paint(kind, place)


class _Painter:
    """One picture while it is being painted: colours 0..255 and what was labelled so far."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.rgb: Floats = np.zeros((height, width, 3), dtype=np.float32)
        self.ground = 0.6
        self.objects: list[SceneObject] = []

    def paint(self, kind: SceneKind, place: Place) -> Scene:
        rng = self.rng
        names = ("site", "site", "street", "hall", "hall", "field", "room", "mottle")
        chosen = names[int(rng.integers(len(names)))] if place == "any" else place
        backdrop = BACKDROPS[chosen](rng, self.height, self.width)
        self.rgb, self.ground = backdrop.rgb, backdrop.ground
        plan = plan_scene(rng, kind)
        is_dark = kind == "night" or (kind == "any" and rng.random() < 0.14)
        self._add_people(plan)
        self._set_light(is_dark=is_dark)
        paint_lookalikes(rng, self.rgb, self.ground, count=plan.lookalikes, is_dark=is_dark)
        for _ in range(plan.smoke):
            self._add_smoke(None)
        for _ in range(plan.fire):
            flame = self._add_fire()
            if flame is not None and rng.random() < plan.smoking:
                self._add_smoke(flame)
        self._expose()
        rgb = np.clip(np.rint(self.rgb), 0, 255).astype(np.uint8)
        return Scene(rgb=rgb, objects=tuple(self.objects))

    def _set_light(self, *, is_dark: bool) -> None:
        """Give day, dusk or night its colour."""
        if is_dark:
            night = np.array([0.24, 0.28, 0.4]) * self.rng.uniform(0.9, 1.6)
            self.rgb *= night.astype(np.float32)
            return
        tone = np.array([1, 1, 1]) + self.rng.normal(0, 0.05, 3)
        self.rgb *= (tone * self.rng.uniform(0.72, 1.14)).astype(np.float32)

    def _expose(self) -> None:
        """Add haze by chance and sensor noise."""
        if self.rng.random() < 0.08:  # fog over the whole picture has no box: it is weather
            cells = (3, 6)
            veil = 0.25 + 0.4 * noise(self.rng, self.height, self.width, octaves=cells)[..., None]
            self.rgb = self.rgb * (1 - veil) + 205 * veil
        grain = self.rng.uniform(0, 5)
        self.rgb = self.rgb + self.rng.normal(0, grain, self.rgb.shape).astype(np.float32)

    def _blend(self, layer: Floats, x: int, y: int) -> None:
        """Lay an RGBA layer over the picture; what falls outside is cut off."""
        left, top = max(0, x), max(0, y)
        right = min(self.width, x + layer.shape[1])
        bottom = min(self.height, y + layer.shape[0])
        if right <= left or bottom <= top:
            return
        part = layer[top - y : bottom - y, left - x : right - x]
        alpha = part[..., 3:]
        seen = self.rgb[top:bottom, left:right]
        self.rgb[top:bottom, left:right] = seen * (1 - alpha) + part[..., :3] * alpha

    def _extent(self, layer: Floats, x: int, y: int, *, threshold: float) -> Box | None:
        """Measure the box of what is opaque, inside the picture; None when hardly anything is."""
        rows = np.flatnonzero((layer[..., 3] > threshold).any(axis=1))
        columns = np.flatnonzero((layer[..., 3] > threshold).any(axis=0))
        if rows.size < 3 or columns.size < 3:
            return None
        whole = (
            x + int(columns[0]),
            y + int(rows[0]),
            x + int(columns[-1]) + 1,
            y + int(rows[-1]) + 1,
        )
        return self._clip(whole)

    def _clip(self, box: Box) -> Box | None:
        """Cut a box at the picture's edges; None when less than half of it is left."""
        x1, y1 = max(0.0, float(box[0])), max(0.0, float(box[1]))
        x2, y2 = min(float(self.width), float(box[2])), min(float(self.height), float(box[3]))
        kept = max(0.0, x2 - x1) * max(0.0, y2 - y1)
        return (x1, y1, x2, y2) if kept >= 0.5 * (box[2] - box[0]) * (box[3] - box[1]) > 0 else None

    def _is_free(self, box: Box) -> bool:
        """Say whether painting here leaves every labelled thing and every head visible."""
        taken = [o.box for o in self.objects] + [o.head_box for o in self.objects if o.head_box]
        return all(_covered(other, box) <= MAX_HIDDEN for other in taken)

    def _add_people(self, plan: ScenePlan) -> None:
        far_first = np.sort(self.rng.beta(1.3, 2.2, plan.people))
        for near in far_first.tolist():
            for _ in range(TRIES):
                if self._add_person(plan, near):
                    break

    def _add_person(self, plan: ScenePlan, near: float) -> bool:
        rng = self.rng
        helmeted = rng.random() < plan.helmeted
        gear: Headgear = "helmet" if helmeted else BARE[int(rng.integers(len(BARE)))]
        part = 1.0 if rng.random() < 0.72 else float(rng.uniform(0.26, 0.6))
        standing = self.height * (0.16 + 0.75 * near)
        tall = round(min(standing * (part if part == 1.0 else 1.25 * part**0.5), 1.3 * self.height))
        figure = paint_figure(rng, max(22, tall), gear=gear, part=part)
        layer = figure.layer if rng.random() < 0.5 else figure.layer[:, ::-1].copy()
        wide = layer.shape[1]
        mirrored = layer is not figure.layer
        x = int(rng.uniform(-0.25 * wide, self.width - 0.75 * wide))
        foot = self.height * min(1.0, self.ground + (1.02 - self.ground) * (0.12 + near))
        if part < 1.0:
            foot = self.height * float(rng.uniform(0.98, 1.08))  # cut by the picture's edge
        y = round(foot + rng.normal() * 0.015 * self.height) - layer.shape[0]
        box = self._extent(layer, x, y, threshold=0.4)
        hx1, hy1, hx2, hy2 = figure.head_box
        if mirrored:
            hx1, hx2 = wide - hx2, wide - hx1
        head = self._clip((x + hx1, y + hy1, x + hx2, y + hy2))
        if box is None or head is None or not self._is_free(box):
            return False
        self._blend(layer, x, y)
        label = "helmet" if figure.wears_helmet else "no_helmet"
        self.objects.append(SceneObject("person", label, box, head))
        return True

    def _add_fire(self) -> SceneObject | None:
        rng = self.rng
        for _ in range(TRIES):
            tall = round(self.height * float(np.exp(rng.uniform(np.log(0.06), np.log(0.62)))))
            tall, wide = max(12, tall), max(12, round(tall * float(rng.uniform(0.5, 1.5))))
            x = int(rng.uniform(-0.15 * wide, self.width - 0.85 * wide))
            low = self.height * float(rng.uniform(self.ground - 0.2, 1.04))
            y = round(low) - tall
            layer = paint_flame(rng, tall, wide)
            layer[..., 3] *= float(rng.uniform(0.85, 1.0))
            box = self._extent(layer, x, y, threshold=0.35)
            if box is None or not self._is_free(box):
                continue
            middle = (x + wide / 2, y + tall * 0.6)
            add_glow(self.rgb, middle, 1.6 * max(tall, wide), (120.0, 52.0, 10.0))
            self._blend(layer, x, y)
            self._add_sparks(box)
            rating = severity(box, width=self.width, height=self.height)
            flame = SceneObject("fire", rating, box)
            self.objects.append(flame)
            return flame
        return None

    def _add_sparks(self, box: Box) -> None:
        for _ in range(int(self.rng.integers(0, 9))):
            x = int(self.rng.uniform(box[0], box[2]))
            y = int(self.rng.uniform(box[1] - 0.4 * (box[3] - box[1]), box[3]))
            size = max(1, round(self.height / 360))
            if 0 <= y < self.height - size and 0 <= x < self.width - size:
                self.rgb[y : y + size, x : x + size] = (255, 190, 90)

    def _add_smoke(self, flame: SceneObject | None) -> None:
        rng = self.rng
        for _ in range(TRIES):
            tall = round(self.height * float(rng.uniform(0.16, 0.75)))
            wide = round(tall * float(rng.uniform(0.5, 1.3)))
            if flame is not None:
                wide = max(wide, round(0.8 * (flame.box[2] - flame.box[0])))
                x = round((flame.box[0] + flame.box[2]) / 2 - wide / 2)
                y = round(flame.box[1] * 0.75 + flame.box[3] * 0.25) - tall
            else:
                x = int(rng.uniform(-0.2 * wide, self.width - 0.8 * wide))
                y = round(self.height * float(rng.uniform(self.ground - 0.3, 1.0))) - tall
            opacity = float(rng.uniform(0.45, 0.97))
            shade = float(rng.uniform(25, 110) if rng.random() < 0.5 else rng.uniform(120, 225))
            layer = paint_plume(rng, tall, wide, opacity=opacity, shade=shade)
            behind = self.rgb.copy()
            box = self._extent(layer, x, y, threshold=0.22 * opacity)
            if box is None or not self._is_free(box):
                continue
            self._blend(layer, x, y)
            x1, y1, x2, y2 = (int(edge) for edge in box)
            change = np.abs(self.rgb[y1:y2, x1:x2] - behind[y1:y2, x1:x2]).mean()
            if change < 9:  # grey on grey: nobody could see it
                self.rgb = behind
                continue
            rating = severity(box, width=self.width, height=self.height)
            self.objects.append(SceneObject("smoke", rating, box))
            return


def _covered(inner: Box, cover: Box) -> float:
    """Measure which share of `inner` lies under `cover`."""
    wide = min(inner[2], cover[2]) - max(inner[0], cover[0])
    tall = min(inner[3], cover[3]) - max(inner[1], cover[1])
    area = (inner[2] - inner[0]) * (inner[3] - inner[1])
    return max(0.0, wide) * max(0.0, tall) / max(area, 1e-6)


@dataclass(frozen=True)
class ExampleRecipe:
    """Name, seed, kind and place of a picture that new users are shown."""

    name: str
    seed: int
    kind: SceneKind
    place: Place


# Seeds this large are never used for training: see training_seed().
EXAMPLES: tuple[ExampleRecipe, ...] = (
    ExampleRecipe("clean-site", 9_000_000_116, "clean", "site"),
    ExampleRecipe("fire-hall", 9_000_000_101, "fire", "hall"),
    ExampleRecipe("smoke-field", 9_000_000_103, "smoke", "field"),
    ExampleRecipe("fire-and-smoke-site", 9_000_000_103, "fire_and_smoke", "site"),
    ExampleRecipe("helmets-on-site", 9_000_000_005, "helmets", "site"),
    ExampleRecipe("helmets-off-hall", 9_000_000_104, "bare_heads", "hall"),
    ExampleRecipe("lookalikes-street", 9_000_000_103, "lookalikes", "street"),
    ExampleRecipe("night-street", 9_000_000_102, "night", "street"),
)
UNSEEN_FROM = 8_000_000_000  # seeds from here on are for examples and for measuring


def training_seed(index: int, *, seed: int = 0) -> int:
    """Give the seed of the index-th training scene; always below UNSEEN_FROM."""
    return (seed * 1_000_003 + index) % UNSEEN_FROM


def draw_examples(folder: Path, *, width: int = 960, height: int = 720) -> list[Path]:
    """Write the example pictures into `folder` as PNG files and return their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for recipe in EXAMPLES:
        scene = draw_scene(
            recipe.seed, width=width, height=height, kind=recipe.kind, place=recipe.place
        )
        path = folder / f"{recipe.name}.png"
        Image.fromarray(scene.rgb).save(path)
        paths.append(path)
    return paths
