"""Open a dataset in the form that it has: conversations, labelled photos, or shards of either.

Labelled photos become inspections: what is asked and what should be answered comes from a teacher,
because how an inspection is worded is the product's matter, not training's.
"""

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from qianyan.errors import ConfigError, InputError, quote
from qianyan.inputs.parts import AUDIO_KINDS, VIDEO_KINDS
from qianyan.labels.photos import LabelledPhoto
from qianyan.labels.reading import read_labels
from qianyan.train.recipe import Dataset
from qianyan.train.samples import KINDS, JsonLines, Message, Sample, Source, read_sample

Size = tuple[int, int]
Turn = tuple[str, str]
Teacher = Callable[[LabelledPhoto, Size], list[Turn]]
"""Gives questions and answers about a photo that the model sees in a size (width, height)."""
FindTeacher = Callable[[Literal["zh", "en"]], Teacher]

MAX_MEMBER_BYTES = 64_000_000
"""Largest file inside a shard."""


def open_source(
    data: Dataset, *, teacher: FindTeacher | None, seen_wh: Callable[[Size], Size]
) -> Source:
    """Open a dataset.

    Args:
        data: where it is and how it is written.
        teacher: finds who teaches from labels in a language; None where nobody does.
        seen_wh: the size in which the model sees a photo of a size.

    Raises ConfigError for what cannot be read, or labels without a teacher.
    """
    form = _find_form(data.path) if data.form == "auto" else data.form
    if form == "conversations":
        return JsonLines(data.path, images=data.images)
    if form == "shards":
        return Shards(data.path)
    if teacher is None:
        raise ConfigError(
            f"{quote(data.path)} holds labels, and this model is taught by conversations only; "
            "expected JSON lines."
        )
    photos = read_labels(data.path, images=data.images, leave_out=data.leave_out)
    return Inspections(photos, teacher(data.lang), seen_wh=seen_wh)


def _find_form(path: Path) -> str:
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "shards"
    return "labels" if path.is_dir() or path.suffix == ".json" else "conversations"


class Inspections(Source):
    """Labelled photos, each with the questions of an inspection and what should be answered."""

    def __init__(
        self, photos: list[LabelledPhoto], teach: Teacher, *, seen_wh: Callable[[Size], Size]
    ) -> None:
        self._photos, self._teach, self._seen_wh = photos, teach, seen_wh

    def __len__(self) -> int:
        return len(self._photos)

    def read(self, index: int) -> Sample:
        """Make the conversation about one photo."""
        photo = self._photos[index]
        turns = self._teach(photo, self._seen_wh((photo.width, photo.height)))
        messages: list[Message] = []
        for question, answer in turns:
            parts: list[Message] = [] if messages else [{"type": "image", "image": photo.path}]
            parts.append({"type": "text", "text": question})
            messages.append({"role": "user", "content": parts})
            messages.append({"role": "assistant", "content": answer})
        return Sample(source=photo.file, messages=messages)


class Shards(Source):
    """Tar files in WebDataset's form: `key.json` with a conversation beside the files it names.

    Only where the members begin is kept; pictures, videos and sounds are named `key.jpg` and the
    like, and a conversation may name any file of its shard.
    """

    def __init__(self, path: Path) -> None:
        """Index the shards; raises ConfigError for what cannot be read or holds no sample."""
        self._paths = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        self._members: list[dict[str, tuple[int, int]]] = []
        self._samples: list[tuple[int, str]] = []
        for shard, file in enumerate(self._paths):
            members = _index(file)
            self._members.append(members)
            self._samples += [(shard, name) for name in members if name.endswith(".json")]
        if not self._samples:
            raise ConfigError(
                f"{quote(path)} holds no sample; expected tar files with conversations as .json."
            )

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, index: int) -> Sample:
        """Read one conversation with the files that lie beside it."""
        shard, name = self._samples[index]
        source = f"{self._paths[shard].name} [{name}]"
        try:
            data = json.loads(self._bytes(shard, name, source))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source} is not JSON; expected a conversation.") from error
        if not isinstance(data, dict):
            raise InputError(f"{source} is {type(data).__name__}; expected an object.")
        sample = read_sample(data, source=source, images=Path())
        for message in sample.messages:
            if isinstance(message.get("content"), list):
                message["content"] = [
                    self._with_file(part, shard, source) for part in message["content"]
                ]
        return sample

    def _with_file(self, part: Any, shard: int, source: str) -> Any:
        """Put a picture, video or sound of the shard in place of its name."""
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        if kind.removesuffix("_url") not in KINDS:
            return part
        named = part.get(kind)
        name = named.get("url") if isinstance(named, dict) else named
        if not isinstance(name, str) or name not in self._members[shard]:
            return part
        data = self._bytes(shard, name, source)
        if kind in AUDIO_KINDS:
            return {"type": "audio", "audio": data}
        if kind in VIDEO_KINDS:
            url = f"data:;base64,{base64.b64encode(data).decode()}"
            return {**part, kind: {"url": url} if kind == "video_url" else url}
        try:
            picture = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise InputError(f"{source} names {quote(name)}, which is no picture.") from error
        limits = {key: part[key] for key in ("min_pixels", "max_pixels") if key in part}
        return {"type": "image", "image": picture, **limits}

    def _bytes(self, shard: int, name: str, source: str) -> bytes:
        start, size = self._members[shard][name]
        if size > MAX_MEMBER_BYTES:
            raise InputError(f"{source} has {size} bytes; expected at most {MAX_MEMBER_BYTES}.")
        with self._paths[shard].open("rb") as file:
            file.seek(start)
            return file.read(size)


def _index(path: Path) -> dict[str, tuple[int, int]]:
    """List where the files of a tar file begin, and their sizes, by name."""
    try:
        with tarfile.open(path, "r:") as shard:
            return {
                member.name: (member.offset_data, member.size)
                for member in shard
                if member.isreg() and not member.sparse
            }
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(
            f"The shard {quote(path)} cannot be read; expected a tar file that is not compressed."
        ) from error
