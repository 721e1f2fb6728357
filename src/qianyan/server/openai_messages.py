"""Messages as OpenAI's and Bailian's clients send them, made into those of `docs/messages.md`.

What clients add without meaning for a model here (cache marks, empty fields of former answers) is
taken off, pixel hints may stand beside a picture or inside it, and hints beyond the server's own
limit mean that limit. Nothing from a network may name a file of this machine: every source of a
picture, video or document is an http(s) URL, a data: URI or the oss:// URL of an upload, or the
request is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qianyan.errors import InputError, quote

_SCHEMES = ("http://", "https://", "data:", "oss://")
_SOURCE_KEYS = ("image_url", "image", "video_url", "video")
_HINTS = ("min_pixels", "max_pixels")
_VIDEO_HINTS = (*_HINTS, "fps", "total_pixels", "max_frames", "min_frames", "nframes")
# `enable_rotate` asks to turn pictures upright; they always are, by their EXIF.
_MEANINGLESS_PART_KEYS = frozenset({"cache_control", "enable_rotate"})
_MEANINGLESS_MESSAGE_KEYS = frozenset({"refusal", "annotations", "audio", "function_call"})


def to_messages(
    messages: Sequence[Mapping[str, Any]], *, max_pixels: int | None, keeps_detail: bool = False
) -> list[dict[str, Any]]:
    """Rebuild messages for the engine, which checks what is left unsaid here.

    Args:
        messages: as they were sent.
        max_pixels: the largest size at which the model looks at a picture, if it looks.
        keeps_detail: look at pictures at that size, whatever they ask for
            (`vl_high_resolution_images`).
    """
    most = _PixelRule(max_pixels, keeps_detail=keeps_detail)
    return [_message(message, f"messages[{at}]", most) for at, message in enumerate(messages)]


class _PixelRule:
    """Keeps the pixel hints of pictures within the server's limit."""

    def __init__(self, most: int | None, *, keeps_detail: bool) -> None:
        self._most = most
        self._keeps_detail = keeps_detail

    def apply(self, part: dict[str, Any]) -> None:
        if self._keeps_detail:
            part.pop("max_pixels", None)
        if self._most is None:
            return
        for name in _HINTS:
            value = part.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                part[name] = min(value, self._most)


def _message(message: Mapping[str, Any], where: str, pixels: _PixelRule) -> dict[str, Any]:
    rebuilt = {key: value for key, value in message.items() if key not in _MEANINGLESS_MESSAGE_KEYS}
    if rebuilt.get("role") == "developer":  # what OpenAI calls system since 2024
        rebuilt["role"] = "system"
    content = message.get("content")
    if isinstance(content, list):
        rebuilt["content"] = [
            _part(part, f"{where}.content[{at}]", pixels) for at, part in enumerate(content)
        ]
    return rebuilt


def _part(part: Any, where: str, pixels: _PixelRule) -> Any:
    if not isinstance(part, Mapping):
        return part
    rebuilt = {key: value for key, value in part.items() if key not in _MEANINGLESS_PART_KEYS}
    kind = part.get("type")
    if kind == "file":
        rebuilt["file"] = _file(part.get("file"), where)
    elif isinstance(kind, str) and kind in _SOURCE_KEYS:
        source = part.get(kind)
        if isinstance(source, Mapping):
            rebuilt |= _hints_inside(source, is_video=kind == "video_url")
        if not kind.startswith("video"):
            pixels.apply(rebuilt)
        _check_source(_url_of(rebuilt.get(kind)), f"{where}.{kind}")
    return rebuilt


def _hints_inside(source: Mapping[str, Any], *, is_video: bool) -> dict[str, Any]:
    """Take hints out of the object that names the source."""
    names = _VIDEO_HINTS if is_video else _HINTS
    hints = {name: source[name] for name in names if name in source}
    left = {key: value for key, value in source.items() if key not in hints}
    if is_video:
        left.pop("detail", None)
    return {("video_url" if is_video else "image_url"): left, **hints}


def _url_of(source: Any) -> Any:
    return source.get("url") if isinstance(source, Mapping) else source


def _check_source(source: Any, where: str) -> None:
    """Refuse what is neither a URL nor a data: URI; other kinds of values are the engine's."""
    for one in source if isinstance(source, list) else [source]:
        if isinstance(one, str) and not one[:8].lower().startswith(_SCHEMES):
            raise InputError(
                f"{where} is {quote(one)}; expected an http or https URL or a data: URI."
            )


def _file(file: Any, where: str) -> Any:
    """Check a document; clients send its bytes with or without `data:` before them."""
    if not isinstance(file, Mapping):
        _check_source(file, f"{where}.file")
        return file
    stated = {key: value for key, value in file.items() if value is not None}
    if "file_id" in stated:
        raise InputError(
            f"{where}.file.file_id is {quote(stated['file_id'])}; expected the document itself in "
            "file_data."
        )
    _check_source(stated.get("file_data"), f"{where}.file.file_data")
    return stated
