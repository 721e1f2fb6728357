"""Drawn scenes kept on disk, so that drawing does not take time from training.

A store is a folder of numbered chunks; each chunk is a .npy file of pictures of one shape and a
.json file with their labels. Chunks are written whole or not at all, so a store that was
interrupted is simply continued, and a second process may add chunks while a training reads.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qianyan.errors import CheckpointError
from qianyan.labels.photos import LabelledBox
from qianyan.models.detector import Kind
from qianyan.train.bundled.scenes import Scene, draw_scene, training_seed

CHUNK = 100
SHAPES = ((288, 384), (352, 352), (288, 384), (400, 300))  # height, width; chunk by chunk in turn


@dataclass(frozen=True)
class StoredScenes:
    """Pictures of one chunk, (count, height, width, 3) uint8, and the boxes of each."""

    pictures: NDArray[np.uint8]
    boxes: tuple[tuple[LabelledBox, ...], ...]


def scene_boxes(scene: Scene) -> tuple[LabelledBox, ...]:
    """Turn a scene's objects into what the detector learns: heads get boxes of their own."""
    boxes = []
    for thing in scene.objects:
        boxes.append(LabelledBox(thing.kind, thing.box))
        if thing.head_box is not None:
            head: Kind = "helmet" if thing.sub_label == "helmet" else "head"
            boxes.append(LabelledBox(head, thing.head_box))
    return tuple(boxes)


def _paths(folder: Path, chunk: int) -> tuple[Path, Path]:
    return folder / f"{chunk:05d}.npy", folder / f"{chunk:05d}.json"


def draw_chunk(folder: Path, chunk: int, *, seed: int = 0, count: int = CHUNK) -> None:
    """Draw `count` scenes as one chunk unless it is there; labels are written last."""
    picture_path, label_path = _paths(folder, chunk)
    if label_path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    height, width = SHAPES[chunk % len(SHAPES)]
    seeds = [training_seed(chunk * CHUNK + index, seed=seed) for index in range(count)]
    scenes = [draw_scene(each, width=width, height=height) for each in seeds]
    partial = picture_path.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, np.stack([scene.rgb for scene in scenes]))
    partial.replace(picture_path)
    labels = [[[box.kind, *box.box] for box in scene_boxes(scene)] for scene in scenes]
    draft = label_path.with_suffix(f".{os.getpid()}.draft")
    draft.write_text(json.dumps(labels))
    draft.replace(label_path)


def whole_chunks(folder: Path) -> list[int]:
    """List the chunks that can be read."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.json"))


def read_chunk(folder: Path, chunk: int) -> StoredScenes:
    """Map one chunk into memory.

    Raises:
        CheckpointError: the chunk is not there or its two files disagree.
    """
    picture_path, label_path = _paths(folder, chunk)
    try:
        pictures = np.load(picture_path, mmap_mode="r")
        labels = json.loads(label_path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Chunk {chunk} of the drawn scenes cannot be read: {error}."
        ) from error
    if len(labels) != len(pictures):
        raise CheckpointError(
            f"Chunk {chunk} holds {len(pictures)} pictures and {len(labels)} labels; expected as "
            "many. Delete the folder of drawn scenes; it is drawn again."
        )
    boxes = tuple(
        tuple(LabelledBox(kind, (x1, y1, x2, y2)) for kind, x1, y1, x2, y2 in each)
        for each in labels
    )
    return StoredScenes(pictures=pictures, boxes=boxes)
