"""Labels as conversations for `qianyan train`: what an inspection asks, and the ideal answer.

Boxes are written as one model counts them, at the size in which it sees the picture, so an export
is for that model and for those limits of pictures; they are written beside each picture.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qianyan.engine.checkpoint import find_checkpoint
from qianyan.errors import InputError
from qianyan.inputs.processor import Processor
from qianyan.inspection.lessons import Size, Teacher, find_teacher
from qianyan.inspection.words import Lang
from qianyan.labels.photos import LabelledPhoto
from qianyan.models.registry import find_architecture, read_config_json

CONVERSATIONS_FILE = "conversations.jsonl"


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """How one model is taught: its questions and answers, and the size it sees pictures in."""

    teach: Teacher
    seen_wh: Callable[[Size], Size]
    max_pixels: int | None = None

    def messages(self, photo: LabelledPhoto, url: str) -> Iterator[dict[str, Any]]:
        """Yield the conversation about a photo; raises InputError where it teaches nothing."""
        picture: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
        if self.max_pixels is not None:
            picture["max_pixels"] = self.max_pixels
        parts = [picture]
        for question, answer in self.teach(photo, self.seen_wh((photo.width, photo.height))):
            yield {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
            yield {"role": "assistant", "content": answer}
            parts = []


def open_lessons(model: str, *, lang: Lang, max_pixels: int | None = None) -> Lessons:
    """Find out how a checkpoint is taught.

    Raises InputError for a model that sees no pictures or whose boxes nobody knows how to write.
    """
    folder = find_checkpoint(model)
    processor = Processor.from_folder(folder, max_pixels=max_pixels)
    return Lessons(
        teach=find_teacher(find_architecture(read_config_json(folder)).name, lang=lang),
        seen_wh=processor.seen_wh,
        max_pixels=max_pixels,
    )


def write_conversations(
    folder: Path, photos: Sequence[LabelledPhoto], lessons: Lessons
) -> list[tuple[str, str]]:
    """Write conversations.jsonl beside images/; give the sources that teach nothing, and why."""
    lines, left_out = [], []
    for photo in photos:
        try:
            messages = list(lessons.messages(photo, f"images/{photo.file}"))
        except InputError as error:
            left_out.append((photo.source, str(error)))
            continue
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    (folder / CONVERSATIONS_FILE).write_text("".join(lines), "utf-8")
    return left_out
