"""What one content part of a message says: its keys checked, its source taken out."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from qianyan.errors import InputError, quote
from qianyan.inputs.document_parts import Document
from qianyan.inputs.frames import VIDEO_KEYS
from qianyan.inputs.growing import SoundSoFar
from qianyan.inputs.patches import PatchConfig
from qianyan.inputs.squares import SquareConfig

IMAGE_KINDS = ("image_url", "image")
VIDEO_KINDS = ("video_url", "video")
AUDIO_KINDS = ("input_audio", "audio_url", "audio")
PictureConfig = PatchConfig | SquareConfig
"""How a checkpoint wants its pictures: at their own shape, or as squares of one size."""

Source = str | Path | Image.Image
DocumentReader = Callable[[bool], Document]
"""Reads a document that the program itself knows; told whether the model sees pictures."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # base64 has no colon
FILE_KEYS = frozenset({"filename", "file_data", "pages"})


def only_keys(data: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse a key that is not known, naming the ones that are."""
    unknown = sorted(str(key) for key in set(data) - set(known))
    if unknown:
        raise InputError(
            f"{where} has {quote(unknown[0])}, which is not known here; "
            f"expected {', '.join(sorted(known))}."
        )


def picture_config(part: Mapping[str, Any], pictures: PictureConfig, where: str) -> PictureConfig:
    """Apply a picture's own limits; it may ask for less than the settings allow, never for more."""
    names = ("max_pixels", "min_pixels")
    stated = {name: part[name] for name in names if part.get(name) is not None}
    if not stated or isinstance(pictures, SquareConfig):
        return pictures.within(**stated)
    most = pictures.max_pixels
    for name, value in stated.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise InputError(
                f"{where}.{name} is {quote(value)}; expected a number of pixels up to {most}."
            )
        most = value
    return pictures.within(**stated)


def picture_source(part: Mapping[str, Any], where: str) -> Source:
    """Take the picture's source out of an image_url or image part."""
    kind = part["type"]
    only_keys(part, {"type", kind, "min_pixels", "max_pixels"}, where)
    source = part.get(kind)
    if kind == "image_url" and isinstance(source, Mapping):
        # `detail` asks hosted services for a size; here the size is the checkpoint's.
        only_keys(source, {"url", "detail"}, f"{where}.image_url")
        source = source.get("url")
    allowed = (str,) if kind == "image_url" else (str, Path, Image.Image)
    if not isinstance(source, allowed) or source == "":
        raise InputError(
            f"{where} names no picture; expected "
            + ("a URL." if kind == "image_url" else "a PIL.Image, a path or a URL.")
        )
    return source


def video_source(part: Mapping[str, Any], where: str) -> str | Path | list[Source]:
    """Take a video's source out of a video_url or video part: one file, or a list of frames."""
    kind = part["type"]
    beside = ("audio",) if isinstance(part.get(kind), list) else ()
    only_keys(part, {"type", kind, *VIDEO_KEYS, *beside}, where)
    source = part.get(kind)
    if kind == "video_url" and isinstance(source, Mapping):
        only_keys(source, {"url"}, f"{where}.video_url")
        source = source.get("url")
    if isinstance(source, str | Path) and source != "":
        return source
    if kind == "video" and isinstance(source, Sequence) and source:
        for number, frame in enumerate(source):
            if not isinstance(frame, str | Path | Image.Image) or frame == "":
                raise InputError(
                    f"{where}.video[{number}] is no frame; expected a PIL.Image, a path or a URL."
                )
        return list(source)
    raise InputError(
        f"{where} names no video; expected a URL or a path"
        + ("." if kind == "video_url" else ", or a list of frames.")
    )


def sound_beside(part: Mapping[str, Any], where: str) -> SoundSoFar | None:
    """Take what is heard beside a list of frames out of a video part; only a program has it."""
    sound = part.get("audio")
    if not isinstance(sound, SoundSoFar | None):
        raise InputError(
            f"{where}.audio is {quote(type(sound).__name__)}; expected no such key, as frames "
            "given as a list are silent."
        )
    return sound


def audio_source(part: Mapping[str, Any], where: str) -> str | Path | bytes | SoundSoFar:
    """Take a sound's source out of an input_audio, audio_url or audio part.

    `input_audio` has base64, a URL or a data: URI; its `format` is not needed, as files say what
    they are. In process, an `audio` part may hold the file's bytes, or what was heard already.
    """
    kind = part["type"]
    only_keys(part, {"type", kind}, where)
    source = part.get(kind)
    key = {"input_audio": "data", "audio_url": "url", "audio": ""}[kind]
    if key and isinstance(source, Mapping):
        only_keys(source, {key, "format"} if kind == "input_audio" else {key}, f"{where}.{kind}")
        source = source.get(key)
    own: tuple[type, ...] = (bytes, SoundSoFar) if kind == "audio" else ()
    if not isinstance(source, (str, Path, *own)) or not source:
        expected = "base64, a URL or a data: URI" if kind == "input_audio" else "a URL or a path"
        raise InputError(f"{where} names no sound; expected {expected}.")
    if kind == "input_audio" and isinstance(source, str) and not _ADDRESS.match(source):
        return f"data:;base64,{source}"
    return source  # type: ignore[return-value]  # one of those allowed


def file_source(
    part: Mapping[str, Any], where: str
) -> tuple[str | Path | DocumentReader, str | None, str | None]:
    """Take a document's source, its stated name and the pages asked for out of a file part."""
    only_keys(part, {"type", "file"}, where)
    file = part.get("file")
    if isinstance(file, str | Path):
        file = {"file_data": file}
    if not isinstance(file, Mapping):
        raise InputError(f"{where}.file is {type(file).__name__}; expected an object.")
    only_keys(file, FILE_KEYS, f"{where}.file")
    source: Any = file.get("file_data")
    if not (isinstance(source, str | Path) or callable(source)) or source == "":
        raise InputError(f"{where}.file has no file_data; expected a data: URI, a URL or a path.")
    stated = {}
    for key in ("filename", "pages"):
        value = file.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}.file.{key} is {type(value).__name__}; expected text.")
        stated[key] = value
    return source, stated["filename"], stated["pages"]
