"""Uploads that requests name as `oss://…`: permission to send one, its keeping, finding it again.

Bailian's clients ask for a policy and then send a file, without their API key, to where the policy
says. A policy is signed by this process and bound to the key that asked for it: it opens one folder
of keys that nobody can guess, for some minutes. An upload is found by its owner alone, by its whole
key, which is compared and never used as a path.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from qianyan.errors import InputError, MediaError, quote
from qianyan.server.asking import asked_now
from qianyan.server.database import Database, utc_now
from qianyan.server.errors import RefusedError
from qianyan.server.files import LONGEST_NAME, FilePurpose, FileRow, Files, StoredFile

SCHEME = "oss://"
NAMED = {
    "image_url": ("image", "url"),
    "video_url": ("video", "url"),
    "audio_url": ("audio", "url"),
    "input_audio": ("audio", "data"),
}
"""Parts that name their source by an address: what they hold, and in which field it stands."""
BUCKET = "dashscope-instant"
KEY_BYTES = 16
NAME = re.compile(rf"[^/\x00-\x1f\x7f\ud800-\udfff]{{1,{LONGEST_NAME}}}")
KEY = re.compile(rf"{BUCKET}/[0-9a-f]{{{2 * KEY_BYTES}}}/{NAME.pattern}")


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What uploads for requests may be; their size and their life are limits of files.

    Args:
        policy_s: how long a policy may be used.
    """

    policy_s: int = 300


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Permission to send files: a signed text, and the folder that their keys must be in."""

    text: str
    signature: str
    folder: str


class Uploads:
    """The uploads of all keys; every call but those on policies may wait for the disk."""

    def __init__(
        self, database: Database, files: Files, limits: UploadLimits | None = None
    ) -> None:
        self.limits = limits or UploadLimits()
        self._database = database
        self._files = files
        self._secret = secrets.token_bytes(32)

    @property
    def max_bytes(self) -> int:
        """Largest upload."""
        return self._files.limits.max_request_bytes

    def permit(self, owner_id: str) -> Policy:
        """Let an owner send files for some minutes, in a folder of their own."""
        folder = f"{BUCKET}/{secrets.token_hex(KEY_BYTES)}"
        until = time.time() + self.limits.policy_s
        said = {"owner": self._veil(folder, owner_id), "folder": folder, "until": until}
        text = base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
        return Policy(text=text, signature=self._sign(text), folder=folder)

    def check(self, text: str, signature: str) -> tuple[str, str]:
        """Give owner and folder of a policy; RefusedError when it is not ours or is over."""
        if not hmac.compare_digest(self._sign(text).encode(), signature.encode(errors="replace")):
            raise _forbidden("The upload's policy is not one of this server")
        said = json.loads(base64.urlsafe_b64decode(text))
        if said["until"] < time.time():
            raise _forbidden("The upload's policy is over")
        return self._veil(said["folder"], said["owner"]), said["folder"]

    def keep(self, owner_id: str, key: str, folder: str, chunks: Iterable[bytes]) -> StoredFile:
        """Keep an upload under its key.

        Raises:
            InputError: the key is not in the folder that the policy opens, or the file is empty.
            QuotaError: the file is too large, or the owner has no room left.
            RefusedError: 409, another content has this key already.
        """
        name = key.removeprefix(f"{folder}/")
        if name == key or not NAME.fullmatch(name) or name in (".", ".."):
            raise InputError(
                f"key is {quote(key)}; expected upload_dir, a slash and the name of a file."
            )
        written = self._files.write(FilePurpose.REQUEST, chunks)
        is_kept = False
        try:
            if not written.content.size_bytes:
                raise InputError("The file is empty; expected at least one byte.")
            with self._database.writing() as session:
                row = session.scalar(_by_key(owner_id, key))
                if row is None:
                    self._files.check_room(session, owner_id, written.content.size_bytes)
                    row = self._files.add_row(session, written, owner_id, name)
                    row.upload_key = key
                    is_kept = True
                elif row.sha256 != written.content.sha256:
                    raise RefusedError(
                        f"Another file was sent up as {quote(name)} with this policy. Ask for a "
                        "new policy, or give the file another name.",
                        status=409,
                        code="file_exists",
                    )
        finally:
            if not is_kept:
                self._files.store.delete(written.id)
        return self._files.find(owner_id, row.id)

    def find(self, owner_id: str, url: str) -> StoredFile:
        """Find an owner's upload by its URL; MediaError when there is none, or none any more."""
        key = url.removeprefix(SCHEME)
        with self._database.reading() as session:
            row = session.scalar(_by_key(owner_id, key)) if KEY.fullmatch(key) else None
        if row is None:
            hours = self._files.limits.request_keep_s // 3_600
            raise MediaError(
                f"There is no upload {quote(url)}; expected the URL of a file that was sent up "
                f"with this API key in the last {hours} hours.",
                code="not_found",
            )
        return self._files.find(owner_id, row.id)

    def attach(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Put in place of each `oss://…` the file of whoever asks now."""
        return [
            {**message, "content": [self._part(part) for part in message["content"]]}
            if isinstance(message.get("content"), list)
            else dict(message)
            for message in messages
        ]

    def _part(self, part: Any) -> Any:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in NAMED:
            shorter, field = NAMED[kind]
            source = part.get(kind)
            found = self._source(source.get(field) if isinstance(source, Mapping) else source)
            if isinstance(found, Path):
                left = {key: value for key, value in part.items() if key != kind}
                return {**left, "type": shorter, shorter: found}
        elif kind in ("image", "video", "audio"):
            return {**part, kind: self._source(part.get(kind))}
        elif kind == "file":
            return {**part, "file": self._document(part.get("file"))}
        return part

    def _source(self, source: Any) -> Any:
        if isinstance(source, list):
            return [self._source(one) for one in source]
        if not isinstance(source, str) or not source.startswith(SCHEME):
            return source
        return self._files.store.path(self.find(asked_now().owner_id, source).id)

    def _document(self, file: Any) -> Any:
        source = file.get("file_data") if isinstance(file, Mapping) else file
        if not isinstance(source, str) or not source.startswith(SCHEME):
            return file
        stored = self.find(asked_now().owner_id, source)
        said = file if isinstance(file, Mapping) else {}
        return {"filename": stored.filename, **said, "file_data": self._files.store.path(stored.id)}

    def _veil(self, folder: str, owner_id: str) -> str:
        """Hide an owner from all who read a policy, or show it again: it tells of their API key."""
        pad = hmac.new(self._secret, b"owner " + folder.encode(), hashlib.sha256).digest()
        owner = zip(bytes.fromhex(owner_id), pad, strict=True)
        return bytes(one ^ other for one, other in owner).hex()

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(errors="replace"), hashlib.sha256).hexdigest()


def _by_key(owner_id: str, key: str) -> Any:
    return select(FileRow).where(
        FileRow.owner_id == owner_id,
        FileRow.upload_key == key,
        FileRow.expires_at > utc_now(),
    )


def _forbidden(what: str) -> RefusedError:
    return RefusedError(
        f"{what}; expected one that was given by uploads?action=getPolicy a short time ago.",
        status=403,
        code="access_denied",
    )
