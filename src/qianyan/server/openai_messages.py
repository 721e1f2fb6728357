"""Messages as OpenAI's and Bailian's clients send them, made into those of `docs/messages.md`.

What clients add without meaning for a model here (cache marks, empty fields of former answers) is
taken off, pixel hints may stand beside a picture or inside it, and hints beyond the server's own
limit mean that limit. Nothing from a network may name a file of this machine: every source of a
picture, video or document is an http(s) URL, a data: URI or the oss:// URL of an upload, or the
request is refused.
Documents by the id of an upload (`fileid://` in a system message, `file_id`) and lists of them
(`doc_url`) become `file` parts, which `documents.py` knows how to read. What a system message names
stands before the user's first words: a stranger's text gives no orders there.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qianyan.errors import InputError, quote
from qianyan.inputs.parts import FILE_KEYS, only_keys
from qianyan.server.errors import RefusedError

_SCHEMES = ("http://", "https://", "data:", "oss://")
_SOURCE_KEYS = ("image_url", "image", "video_url", "video")
_HINTS = ("min_pixels", "max_pixels")
_VIDEO_HINTS = (*_HINTS, "fps", "total_pixels", "max_frames", "min_frames", "nframes")
# `enable_rotate` asks to turn pictures upright; they always are, by their EXIF.
_MEANINGLESS_PART_KEYS = frozenset({"cache_control", "enable_rotate"})
_MEANINGLESS_MESSAGE_KEYS = frozenset({"refusal", "annotations", "audio", "function_call"})
FILE_SCHEME = "fileid://"
MAX_FILES = 100
"""Documents of one request, however they are named."""
STRATEGIES = ("auto", "text_only", "text_and_images")
"""Ways to read a `doc_url`; `auto` shows pictures to a model that sees, as the last one does."""
_FILE_ID = re.compile(r"file-[A-Za-z0-9_-]{1,74}")


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
    rebuilt = [_message(message, f"messages[{at}]", most) for at, message in enumerate(messages)]
    rebuilt = _move_documents(rebuilt)
    num_files = sum(
        isinstance(part, Mapping) and part.get("type") == "file"
        for message in rebuilt
        for part in (message["content"] if isinstance(message.get("content"), list) else ())
    )
    if num_files > MAX_FILES:
        raise RefusedError(
            f"Too many files provided: {num_files}; expected at most {MAX_FILES}.",
            status=400,
            code="too_many_files",
            param="messages",
        )
    return rebuilt


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
        parts: list[Any] = []
        for at, part in enumerate(content):
            place = f"{where}.content[{at}]"
            if isinstance(part, Mapping) and part.get("type") == "doc_url":
                parts += _doc_parts(part, place)
            else:
                parts.append(_part(part, place, pixels))
        rebuilt["content"] = parts
    return rebuilt


def _move_documents(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the documents that system messages name before the words of the user's first message."""
    named: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for message in messages:
        text = _only_text(message) if message.get("role") == "system" else ""
        if text.startswith(FILE_SCHEME):
            named += [_by_id(file_id) for file_id in _read_file_ids(text)]
        else:
            kept.append(message)
    if not named:
        return kept
    for at, message in enumerate(kept):
        if message.get("role") == "user":
            content = message.get("content")
            words = content if isinstance(content, list) else [{"type": "text", "text": content}]
            kept[at] = {**message, "content": [*named, *words]}
            return kept
    raise InputError(
        "A system message names documents, but there is no message of the user; expected a "
        "question about them."
    )


def _only_text(message: Mapping[str, Any]) -> str:
    """Give the text of a message that holds nothing else, without blanks around it."""
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        content = content[0].get("text")
    return content.strip() if isinstance(content, str) else ""


def _read_file_ids(text: str) -> list[str]:
    """Read `fileid://a,fileid://b`; an id that stands there twice counts once."""
    names = [one.strip().removeprefix(FILE_SCHEME) for one in text.split(",")]
    given = [name for name in names if name] or [""]
    return list(dict.fromkeys(map(_check_file_id, given)))


def _check_file_id(file_id: Any) -> str:
    if isinstance(file_id, str) and _FILE_ID.fullmatch(file_id):
        return file_id
    raise RefusedError(
        f"Invalid file [id:{str(file_id)[:80]}]; expected the id of an upload such as "
        f"file-fe-3b1f8c2e, and in a system message nothing but {FILE_SCHEME} and ids with commas "
        "between them.",
        status=400,
        code="invalid_file",
        param="messages",
    )


def _by_id(file_id: str) -> dict[str, Any]:
    return {"type": "file", "file": {"file_id": file_id}}


def _doc_parts(part: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Make a part of each document of a `doc_url`, one or a list."""
    strategy = part.get("file_parsing_strategy") or "auto"
    if strategy not in STRATEGIES:
        raise InputError(
            f"{where}.file_parsing_strategy is {quote(strategy)}; expected one of "
            f"{', '.join(STRATEGIES)}."
        )
    given = part.get("doc_url")
    sources = given if isinstance(given, list) else [given]
    if not sources or not all(isinstance(one, str) and one for one in sources):
        raise InputError(f"{where}.doc_url names no document; expected a URL or a list of URLs.")
    _check_source(sources, f"{where}.doc_url")
    is_text = {"is_text": True} if strategy == "text_only" else {}
    return [{"type": "file", "file": {"file_data": one, **is_text}} for one in sources]


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
    """Check a document: itself, its URL or the id of an upload."""
    if not isinstance(file, Mapping):
        _check_source(file, f"{where}.file")
        return file
    stated = {key: value for key, value in file.items() if value is not None}
    only_keys(stated, {*FILE_KEYS, "file_id"}, f"{where}.file")
    if not {"file_id", "file_data"} & set(stated):
        raise InputError(
            f"{where}.file names no document; expected file_data (a data: URI or an http(s) URL) "
            "or file_id (of an upload)."
        )
    if "file_id" not in stated:
        _check_source(stated.get("file_data"), f"{where}.file.file_data")
        return stated
    if "file_data" in stated:
        raise InputError(f"{where}.file has file_id and file_data; expected one of them.")
    pages = stated.get("pages")
    if pages is not None and not isinstance(pages, str):
        raise InputError(f"{where}.file.pages is {type(pages).__name__}; expected text.")
    return {**stated, "file_id": _check_file_id(stated["file_id"])}
