"""What a detector takes for fire, smoke or people and is not: the judge's best examples of "D".

The boxes are mined once, from the training photos and the drawn scenes, with a detector that may
still be in training, and kept in the judge's run folder.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from qianyan.inputs.crops import upper_body
from qianyan.models.detector import Kind, Proposal, load_detector
from qianyan.train.bundled.labelled import (
    Box,
    LabelledPicture,
    Region,
    photo_pictures,
    scene_pictures,
    touches,
)
from qianyan.train.bundled.photos import read_photos, split_held_out
from qianyan.train.bundled.scene_store import read_chunk, whole_chunks

DECOYS_FILE = "decoys.json"
MINING_THRESHOLD = 0.15
SCENE_CHUNKS_MINED = 5  # drawn look-alikes repeat themselves; photos do not
PER_PICTURE = 8
_HAZARDS: tuple[Kind, ...] = ("fire", "smoke")
_PEOPLE: tuple[Kind, ...] = ("person", "helmet", "head")

Propose = Callable[[np.ndarray], Iterable[Proposal]]
Decoys = dict[str, tuple[Box, ...]]


def find_decoys(picture: LabelledPicture, propose: Propose) -> tuple[Box, ...]:
    """List what is proposed where the labels say there is nothing of the sort, likeliest first.

    Kinds that nobody looked for in the picture give no decoys.
    """
    found: list[Box] = []
    for proposal in sorted(propose(np.asarray(picture.image)), key=lambda each: -each.score):
        kinds = _HAZARDS if proposal.kind in _HAZARDS else _PEOPLE
        known = picture.looked_for.issuperset(kinds) or not picture.boxes
        if proposal.kind not in picture.looked_for or not known:
            continue
        box = upper_body(proposal.box) if proposal.kind == "person" else proposal.box
        x1, y1, x2, y2 = (round(edge) for edge in proposal.box)
        region: Region = (x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))
        if not touches(picture, kinds, region):
            found.append(box)
    return tuple(found[:PER_PICTURE])


def mine_decoys(photos_dir: Path, detector_dir: Path, run_dir: Path) -> int:
    """Write the decoys of photos, and of scenes the run has drawn, into its folder; count them."""
    run_dir.mkdir(parents=True, exist_ok=True)
    detector = load_detector(detector_dir)

    def propose(rgb: np.ndarray) -> list[Proposal]:
        return detector.propose(rgb, threshold=MINING_THRESHOLD)

    photos, _ = split_held_out(read_photos(photos_dir, "train"))
    decoys: Decoys = {}
    for photo in photos:
        decoys[photo.path.name] = find_decoys(photo_pictures([photo])[0], propose)
    for chunk in whole_chunks(run_dir / "scenes")[:SCENE_CHUNKS_MINED]:
        for index, picture in enumerate(scene_pictures(read_chunk(run_dir / "scenes", chunk))):
            decoys[scene_name(chunk, index)] = find_decoys(picture, propose)
    text = json.dumps({name: boxes for name, boxes in decoys.items() if boxes})
    (run_dir / DECOYS_FILE).write_text(text, encoding="utf-8")
    return sum(len(boxes) for boxes in decoys.values())


def read_decoys(run_dir: Path) -> Decoys:
    """Read the mined decoys by picture; nothing was mined yet where the file is not there."""
    path = run_dir / DECOYS_FILE
    if not path.is_file():
        return {}
    content: dict[str, Sequence[Sequence[float]]] = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes) for name, boxes in content.items()
    }


def scene_name(chunk: int, index: int) -> str:
    """Name a stored scene among the decoys."""
    return f"scene {chunk}/{index}"
