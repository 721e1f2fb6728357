"""Samples on disk, each read when it is wanted: conversations as JSON lines, OpenAI's or LLaVA's.

A line is {"messages": [...], "tools": [...]} in OpenAI's form, or LLaVA's {"conversations":
[{"from": "human" | "gpt", "value": "<image>..."}], "image": ..., "video": ..., "audio": ...} with
one tag for each file, and "use_audio_in_video" for its videos where it is not left open. Files may
be listed so beside messages as well, and as "images", "videos" and "audios". A pair for preference
training has "rejected" beside its messages: another last answer.
"""

import json
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qianyan.errors import ConfigError, InputError, quote

Message = dict[str, Any]
MAX_LINE_BYTES = 64_000_000
MAX_NAME = 4096
"""Longest name of a file; what is longer in its place is base64."""
KINDS = ("image", "video", "audio")
_TAG = re.compile(rf"<({'|'.join(KINDS)})>\n?")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
          "system": "system"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation; `source` names it in messages. `rejected` is a worse last answer."""

    source: str
    messages: list[Message]
    tools: list[Message] | None = None
    rejected: str | None = None

    def worse(self) -> "Sample":
        """Give the same with its worse answer; raises InputError where it has none."""
        last = self.messages[-1] if self.messages else {}
        if self.rejected is None or last.get("role") != "assistant":
            raise InputError(
                f"{self.source} is no pair; expected an answer last, and a worse one in rejected."
            )
        worse = {"role": "assistant", "content": self.rejected}
        return Sample(source=self.source, messages=[*self.messages[:-1], worse], tools=self.tools)


class Source(Protocol):
    """Samples that can be read one by one, in any order."""

    def __len__(self) -> int:
        """Count the samples."""

    def read(self, index: int) -> Sample:
        """Read one; raises InputError for a sample that cannot be used."""


class JsonLines(Source):
    """A file with a conversation on each line; only where the lines begin is kept."""

    def __init__(self, path: Path, *, images: Path | None = None) -> None:
        """Raise ConfigError for a file that cannot be read or holds nothing."""
        self._path = path
        self._images = images if images is not None else path.parent
        self._starts = array("Q")
        try:
            with path.open("rb") as file:
                for line in file:
                    if line.strip():
                        self._starts.append(file.tell() - len(line))
        except OSError as error:
            raise ConfigError(f"The data {quote(path)} cannot be read; expected a file.") from error
        if not self._starts:
            raise ConfigError(f"The data {quote(path)} is empty; expected a sample on each line.")

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> Sample:
        """Read one line."""
        source = f"{self._path.name} [{index}]"
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline(MAX_LINE_BYTES)
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source} is not JSON; expected an object a line.") from error
        if not isinstance(data, dict):
            raise InputError(f"{source} is {type(data).__name__}; expected an object.")
        return read_sample(data, source=source, images=self._images)


def read_sample(data: Mapping[str, Any], *, source: str, images: Path) -> Sample:
    """Read a conversation in either form; relative files start from `images`.

    Raises InputError for what is neither.
    """
    named = {kind: _files(kind, data, source, images) for kind in KINDS}
    files = {kind: iter(parts) for kind, parts in named.items()}
    if "conversations" in data:
        messages = _llava_messages(data["conversations"], files, source)
    elif isinstance(data.get("messages"), list):
        messages = [_openai_message(each, source, images) for each in data["messages"]]
        if any(named.values()):
            messages = [_with_files(message, files, source) for message in messages]
    else:
        raise InputError(f"{source} has no messages and no conversations; expected one of them.")
    for kind, left in files.items():
        if next(left, None) is not None:
            raise InputError(f"{source} has more files than tags <{kind}>; expected one for each.")
    rejected = data.get("rejected")
    if rejected is not None and not isinstance(rejected, str):
        raise InputError(f"{source} has no text for rejected; expected the worse answer.")
    return Sample(source=source, messages=messages, tools=data.get("tools"), rejected=rejected)


def _openai_message(message: Any, source: str, images: Path) -> Message:
    """Take a message over, with its local files looked for beside the data."""
    if not isinstance(message, dict):
        raise InputError(f"{source} has a message that is {type(message).__name__}.")
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_located(part, images) for part in content]}


def _located(part: Any, images: Path) -> Any:
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if not isinstance(kind, str) or kind == "text":
        return part
    value = part.get(kind)
    if kind == "input_audio":
        return _located_sound(part, value, images)
    if isinstance(value, dict) and isinstance(value.get("url"), str):
        return {**part, kind: {**value, "url": _locate(value["url"], images)}}
    if isinstance(value, list):  # a video's frames
        frames = [_locate(one, images) if isinstance(one, str) else one for one in value]
        return {**part, kind: frames}
    return {**part, kind: _locate(value, images)} if isinstance(value, str) else part


def _located_sound(part: Message, value: Any, images: Path) -> Message:
    """Take an `input_audio` over: the sound itself, or what no base64 can be, a file's name."""
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, str) or len(data) > MAX_NAME or "." not in data:
        return part
    return {"type": "audio_url", "audio_url": {"url": _locate(data, images)}}


def _locate(name: str, images: Path) -> str:
    """Name a file from the data's folder; URLs stay."""
    if name.startswith(("http://", "https://", "data:")):
        return name
    return str(images / name)


def _with_files(message: Message, files: Mapping[str, Iterator[Message]], source: str) -> Message:
    """Put files in place of the tags in what a user says."""
    content = message.get("content")
    if message.get("role") != "user" or not isinstance(content, str):
        return message
    return {**message, "content": list(_parts(content, files, source))}


def _llava_messages(
    turns: Any, files: Mapping[str, Iterator[Message]], source: str
) -> list[Message]:
    """Turn LLaVA's turns into messages, each tag into the next file."""
    messages: list[Message] = []
    for turn in turns if isinstance(turns, list) else [turns]:
        role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise InputError(f"{source} has a turn without from and value; expected human or gpt.")
        if role == "assistant":
            if found := _TAG.search(turn["value"]):
                raise InputError(f"{source} has the tag <{found[1]}> in an answer; expected text.")
            messages.append({"role": role, "content": turn["value"]})
        else:
            parts = list(_parts(turn["value"], files, source))
            messages.append({"role": role, "content": parts})
    return messages


def _parts(text: str, files: Mapping[str, Iterator[Message]], source: str) -> Iterator[Message]:
    pieces = _TAG.split(text)
    for number, piece in enumerate(pieces):
        if number % 2:
            part = next(files[piece], None)
            if part is None:
                raise InputError(f"{source} has more tags <{piece}> than files.")
            yield part
        elif piece:
            yield {"type": "text", "text": piece}


def _files(kind: str, data: Mapping[str, Any], source: str, images: Path) -> list[Message]:
    """Make a content part of each file of a kind that a line names."""
    value = data.get(kind, data.get(f"{kind}s"))
    names = value if isinstance(value, list) else [] if value is None else [value]
    heard = data.get("use_audio_in_video") if kind == "video" else None
    more = {} if heard is None else {"use_audio_in_video": heard}
    key = f"{kind}_url"
    parts: list[Message] = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"{source} has {quote(name)} in {kind}; expected names of files.")
        parts.append({"type": key, key: {"url": _locate(name, images)}, **more})
    return parts
