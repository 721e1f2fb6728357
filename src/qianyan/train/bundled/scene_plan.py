"""What a drawn scene of each kind is to contain."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

SceneKind = Literal[
    "any",
    "clean",
    "fire",
    "smoke",
    "fire_and_smoke",
    "helmets",
    "bare_heads",
    "lookalikes",
    "night",
]


@dataclass(frozen=True)
class ScenePlan:
    """How many of each thing to try to paint, and the chances that go with them."""

    fire: int = 0
    smoke: int = 0
    people: int = 0
    lookalikes: int = 1
    helmeted: float = 0.5
    smoking: float = 0.4


def plan_scene(rng: np.random.Generator, kind: SceneKind) -> ScenePlan:
    """Decide how many flames, plumes, people and look-alikes to try."""
    some = int(rng.integers(2, 5))
    match kind:
        case "clean":
            return ScenePlan(lookalikes=0)
        case "fire":
            return ScenePlan(fire=int(rng.integers(1, 3)), lookalikes=1, smoking=0.0)
        case "smoke":
            return ScenePlan(smoke=1, lookalikes=0)
        case "fire_and_smoke":
            return ScenePlan(fire=1, smoking=1.0, people=int(rng.integers(0, 2)), helmeted=1.0)
        case "helmets":
            return ScenePlan(people=some, helmeted=1.0, lookalikes=0)
        case "bare_heads":
            return ScenePlan(people=some, helmeted=0.0, lookalikes=1)
        case "lookalikes":
            return ScenePlan(lookalikes=5)
        case "night":
            return ScenePlan(
                fire=int(rng.integers(0, 2)), people=int(rng.integers(0, 3)), lookalikes=3
            )
    return ScenePlan(
        fire=int(rng.choice(4, p=[0.6, 0.27, 0.1, 0.03])),
        smoke=int(rng.choice(3, p=[0.72, 0.24, 0.04])),
        people=int(rng.choice(6, p=[0.3, 0.22, 0.2, 0.14, 0.09, 0.05])),
        lookalikes=int(rng.choice(6, p=[0.3, 0.25, 0.2, 0.12, 0.08, 0.05])),
        helmeted=float(rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.45, 0.25])),
    )
