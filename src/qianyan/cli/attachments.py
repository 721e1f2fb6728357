"""What a user attaches to a message: read at once, and refused there and then if it is no use.

Opening needs no model, so that a wrong path is told before a large model is loaded; fitting makes
of what was opened the parts of a message for one model.
"""

import mimetypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from qianyan.cli.answering import Model
from qianyan.cli.conversation import Attachment, Kind
from qianyan.errors import InputError, MediaError, quote
from qianyan.inputs.container import VideoFile
from qianyan.inputs.document_parts import Document
from qianyan.inputs.documents import read_document
from qianyan.inputs.fetch import FetchLimits, fetch, find_file
from qianyan.inputs.images import Photo, read_image
from qianyan.inputs.media import MediaLimits
from qianyan.inputs.mel import MelConfig
from qianyan.inputs.sound import read_sound

_PAGES = re.compile(r"(?P<place>.+?)\s+pages=[\"']?(?P<pages>[\d,\- ]+)[\"']?")
"""A part of a document, as the sentence about one that is too long spells it."""
_TEXT_ONLY = "This model reads text only; it sees no pictures and no videos."


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A picture, document, video or sound that can be read, before any model has met it.

    `content` of a video or a sound is its file or its bytes; `read_text` reads a document's text
    alone.
    """

    kind: Kind
    name: str
    content: Photo | Document | Path | bytes
    media_type: str | None = None
    read_text: Callable[[], Document] | None = None


def open_attachment(kind: Kind, source: str, limits: FetchLimits) -> Opened:
    """Fetch and read what a path or URL leads to; `limits` are the user's, for pictures.

    Raises InputError for what cannot be attached; MediaError for what cannot be fetched or read.
    """
    if kind == "image":
        fetched = fetch(_expanded(source), limits=limits, allow_files=True)
        with _naming(fetched.name):
            return Opened(kind=kind, name=fetched.name, content=read_image(fetched.data))
    if kind == "file":
        return _open_document(source, limits)
    if kind == "video":
        return _open_video(_expanded(source), limits)
    return _open_sound(_expanded(source), limits)


def _open_document(source: str, limits: FetchLimits) -> Opened:
    place, pages = source, None
    if found := _PAGES.fullmatch(source):
        place, pages = found["place"].strip("\"'"), found["pages"]
    allowed = _with_hosts(MediaLimits().fetch_document, limits)
    fetched = fetch(_expanded(place), limits=allowed, allow_files=True, noun="document")
    read = partial(
        read_document,
        fetched.data,
        name=fetched.name,
        media_type=fetched.media_type,
        limits=MediaLimits().document,
        pages=pages,
    )
    return Opened(
        kind="file",
        name=f"{fetched.name} ({pages})" if pages else fetched.name,
        content=read(wants_pictures=True),
        read_text=partial(read, wants_pictures=False),
    )


def _open_video(place: str | Path, limits: FetchLimits) -> Opened:
    path = find_file(place)
    if path is not None:
        kind = mimetypes.guess_type(path.name)[0]
        with _naming(path.name):
            VideoFile(path, MediaLimits().video).list_frames()
        return Opened(kind="video", name=path.name, content=path, media_type=kind)
    allowed = _with_hosts(MediaLimits().fetch_video, limits)
    fetched = fetch(place, limits=allowed, noun="video")
    with _naming(fetched.name):
        VideoFile(fetched.data, MediaLimits().video).list_frames()
    return Opened(
        kind="video", name=fetched.name, content=fetched.data, media_type=fetched.media_type
    )


def _open_sound(place: str | Path, limits: FetchLimits) -> Opened:
    path, known = find_file(place), MediaLimits()
    if path is not None:
        name, kind = path.name, mimetypes.guess_type(path.name)[0]
        content: Path | bytes = path
    else:
        allowed = _with_hosts(known.fetch_audio, limits)
        fetched = fetch(place, limits=allowed, noun="sound")
        name, kind, content = fetched.name, fetched.media_type, fetched.data
    with _naming(name):
        read_sound(content, MelConfig().sampling_rate, known.audio)
    return Opened(kind="audio", name=name, content=content, media_type=kind)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say of several files which one cannot be read."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{quote(name)}: {error}", code=error.code) from error


def fit(opened: Opened, model: Model) -> Attachment:
    """Make the parts of a message; raises InputError for what this model does not read."""
    content = opened.content
    if isinstance(content, Photo):
        if not model.sees_pictures:
            raise InputError(_TEXT_ONLY)
        return Attachment(
            kind="image",
            name=opened.name,
            parts=({"type": "image", "image": content.rgb},),
            photo_wh=(content.width, content.height),
            seen_wh=model.seen_wh((content.width, content.height)),
            notes=content.notes,
        )
    if isinstance(content, Document):
        return _fit_document(opened, content, model)
    if opened.kind == "video" and not model.sees_pictures:
        raise InputError(_TEXT_ONLY)
    with _naming(opened.name):
        clip = (
            model.watch(content, opened.media_type or "video/mp4")
            if opened.kind == "video"
            else model.hear(content, opened.media_type or "audio/wav")
        )
    return Attachment(kind=opened.kind, name=opened.name, parts=(clip.part,), notes=clip.notes)


def _fit_document(opened: Opened, document: Document, model: Model) -> Attachment:
    if opened.read_text is not None and not model.sees_pictures:
        document = opened.read_text()
    parts = tuple(_document_part(piece) for piece in document.parts)
    return Attachment(kind="file", name=opened.name, parts=parts, notes=document.notes)


def _document_part(piece: str | Image.Image) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    return {"type": "image", "image": piece}


def _with_hosts(limits: FetchLimits, user: FetchLimits) -> FetchLimits:
    """Let larger downloads go where the user allows pictures to come from."""
    return FetchLimits(
        max_bytes=limits.max_bytes, timeout_s=limits.timeout_s, allow_private=user.allow_private
    )


def _expanded(source: str) -> str | Path:
    """Read a path as a shell would have: a home folder's ~, and spaces after backslashes."""
    if "://" in source or source.startswith("data:"):
        return source
    path = Path(source).expanduser()
    if not path.exists() and "\\ " in source:
        return Path(source.replace("\\ ", " ")).expanduser()
    return path
