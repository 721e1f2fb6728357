"""What a request for an upstream model may name: everything goes there as data, nothing by address.

A URL that was passed on would be opened by the upstream server, from wherever that stands in the
operator's network. So pictures, videos, sounds and documents are fetched here, under the rules of
`inputs/fetch.py`, and travel as data: URIs; paths, and ids of files that may lie in the operator's
account there, are refused.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qianyan.errors import InputError, MediaError, quote
from qianyan.inputs.fetch import FetchLimits, fetch
from qianyan.inputs.media import MediaLimits

_WEB = ("http://", "https://")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_SOURCES = re.compile(r"(image|video|audio|file|doc)(_url)?|url|file_data")
"""Keys whose text is a source: a URL or a data: URI and nothing else."""
_IDS = frozenset({"file_id", "doc_id", "uuid"})
"""Keys that name what lies there already; by `uuid` vLLM takes pictures of other requests."""
_BEGINNINGS = (
    (0, b"\x89PNG", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (8, b"WEBP", "image/webp"),
    (0, b"GIF8", "image/gif"),
    (0, b"BM", "image/bmp"),
    (4, b"ftyp", "video/mp4"),
    (8, b"WAVE", "audio/wav"),
    (0, b"%PDF", "application/pdf"),
)
"""Where and how files of a type begin, for those of which nobody said what they are."""


class MediaCarrier:
    """Fetches what the messages of one request name; on a thread."""

    def __init__(self, limits: MediaLimits, *, max_bytes: int) -> None:
        self._limits = limits
        self._left = max_bytes
        self._max_bytes = max_bytes

    def carry(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Put data: URIs in the place of URLs.

        Raises InputError for other sources, and MediaError for what cannot be fetched.
        """
        return [
            {**message, "content": self._content(message["content"], f"messages[{at}]")}
            if "content" in message
            else dict(message)
            for at, message in enumerate(messages)
        ]

    def _content(self, content: Any, where: str) -> Any:
        if isinstance(content, str):
            if content.lstrip().startswith("fileid://"):
                raise InputError(
                    f"{where} names a file by its id; an upstream model has no files of this "
                    "server. Send the document's text, or the document in file_data."
                )
            return content
        if not isinstance(content, list):
            return content
        return [
            _usual(self._value(part, f"{where}.content[{at}]", ""))
            for at, part in enumerate(content)
        ]

    def _value(self, value: Any, where: str, key: str) -> Any:
        """Walk through a part; what is named in it must be data when it leaves."""
        if isinstance(value, Mapping):
            named = {name for name in _IDS if value.get(name) is not None}
            if named:
                raise InputError(
                    f"{where} names a file by its id; expected the document itself in file_data."
                )
            return {
                name: one if name == "text" else self._value(one, f"{where}.{name}", name)
                for name, one in value.items()
            }
        if isinstance(value, list):
            return [self._value(one, f"{where}[{at}]", key) for at, one in enumerate(value)]
        if isinstance(value, Path):  # a file that was sent up for this request
            return self._to_uri(value.read_bytes(), None)
        if isinstance(value, str):
            return self._source(value, where, key)
        return value

    def _source(self, text: str, where: str, key: str) -> str:
        start = text[:8].lower()
        if start.startswith("data:"):
            return text
        if start.startswith(_WEB):
            return self._fetch(text, where)
        if _SOURCES.fullmatch(key) or _SCHEME.match(text[:32]):
            raise InputError(
                f"{where} is {quote(text)}; expected an http or https URL or a data: URI."
            )
        return text

    def _fetch(self, url: str, where: str) -> str:
        fetched = fetch(url, limits=self._limits_of(where))
        return self._to_uri(fetched.data, fetched.media_type)

    def _to_uri(self, data: bytes, media_type: str | None) -> str:
        self._left -= len(data)
        if self._left < 0:
            raise MediaError(
                f"The pictures, videos and documents of the request take more than "
                f"{self._max_bytes} bytes, the most that are sent to an upstream model.",
                code="too_large",
            )
        known = [kind for at, begin, kind in _BEGINNINGS if data.startswith(begin, at)]
        stated = media_type if media_type and _MEDIA_TYPE.fullmatch(media_type) else None
        kind = stated or next(iter(known), "application/octet-stream")
        return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

    def _limits_of(self, where: str) -> FetchLimits:
        kind = where.rpartition("content[")[2]
        if "video" in kind:
            return self._limits.fetch_video
        if "audio" in kind:
            return self._limits.fetch_audio
        is_document = "file" in kind or "doc" in kind
        return self._limits.fetch_document if is_document else self._limits.fetch


def _usual(part: Any) -> Any:
    """Write a part as every OpenAI-compatible server reads it: DashScope's have forms of their own.

    A list of frames stays one; it is Bailian's in both dialects.
    """
    kind = part.get("type") if isinstance(part, Mapping) else None
    source = part.get(kind) if isinstance(kind, str) else None
    if not isinstance(source, str) or kind not in ("image", "video", "audio", "file"):
        return part
    rest = {name: one for name, one in part.items() if name not in ("type", kind)}
    if kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": source}, **rest}
    if kind == "file":
        return {"type": "file", "file": {"file_data": source}, **rest}
    return {"type": f"{kind}_url", f"{kind}_url": {"url": source}, **rest}
