"""One file from a hub to the disk: goes on where it was cut off, ends verified or removed.

huggingface_hub 2.4 writes each download into a file of a random name and removes it when it is cut
off, so a killed pull would begin again; hence the transfer here, for both hubs alike.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from qianyan.engine.hub import HUB_NAMES, Listing, RemoteFile, refusal
from qianyan.errors import CheckpointError, quote

HASHED_BYTES = 1 << 20  # at a time
TIMEOUT_S = 30.0
RETRIES = 5  # in a row without one more byte
RETRY_WAIT_S = 1.0  # doubled by each
MAX_UNKNOWN_BYTES = 64 << 20  # of a file whose size the hub does not tell; weights are told
RETRIED = {408, 425, 429, 500, 502, 503, 504}


class _BrokenOffError(Exception):
    """The server gave less than it should have; asking again may help."""


def connect(listing: Listing) -> httpx2.Client:
    """Open a client for a listing's files; credentials stay with the hub when it redirects."""
    return httpx2.Client(
        headers={**listing.headers, "Accept-Encoding": "identity"},
        follow_redirects=True,
        timeout=TIMEOUT_S,
    )


def fetch(
    client: httpx2.Client,
    listing: Listing,
    file: RemoteFile,
    part: Path,
    on_bytes: Callable[[int], None],
) -> None:
    """Make `part` the whole file, going on where it ends; `on_bytes` gets its growing length.

    When the transfer breaks off for good, `part` stays for the next attempt; when its content is
    not what the hub declared, it is deleted. Both raise CheckpointError.
    """
    longest, failures = length(part), 0
    while True:
        try:
            _receive(client, listing, file, part, on_bytes)
            break
        except (httpx2.RequestError, _BrokenOffError) as error:
            failures = failures + 1 if length(part) <= longest else 0
            longest = max(longest, length(part))
            if failures > RETRIES:
                raise CheckpointError(_broken_off(listing, file, part, error)) from error
            time.sleep(RETRY_WAIT_S * 2**failures)
    if not is_verified(file, part):
        part.unlink()
        raise CheckpointError(
            f"{quote(file.name)} does not have the checksum that {HUB_NAMES[listing.source]} "
            "declares; it was deleted. Pull again, or use the other source."
        )


def length(path: Path) -> int:
    """Measure a file; 0 when there is none."""
    return path.stat().st_size if path.is_file() else 0


def is_verified(file: RemoteFile, path: Path) -> bool:
    """Say whether a file on disk is what the hub declares, by its checksum, else by its size."""
    if file.size_bytes is not None and length(path) != file.size_bytes:
        return False
    if file.checksum is None:
        return path.is_file()
    digest = hashlib.sha256()
    if len(file.checksum) != digest.digest_size * 2:
        digest = hashlib.sha1(f"blob {length(path)}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == file.checksum


def _receive(
    client: httpx2.Client,
    listing: Listing,
    file: RemoteFile,
    part: Path,
    on_bytes: Callable[[int], None],
) -> None:
    """Ask once for what `part` lacks and append it."""
    most = MAX_UNKNOWN_BYTES if file.size_bytes is None else file.size_bytes
    if length(part) > most:
        part.unlink()
    start = length(part)
    if file.size_bytes is not None and start == file.size_bytes > 0:
        return
    with client.stream(
        "GET", file.url, headers={"Range": f"bytes={start}-"} if start else {}
    ) as response:
        _check_status(response, listing, part, start)
        # A server that ignores the range sends the whole file: begin anew.
        start = start if response.status_code == httpx2.codes.PARTIAL_CONTENT else 0
        with part.open("ab" if start else "wb") as out:
            for chunk in response.iter_bytes():  # as it comes: what is written is not lost
                start += len(chunk)
                if start > most:
                    break
                out.write(chunk)
                on_bytes(start)
            out.flush()
            os.fsync(out.fileno())
    if start > most:
        part.unlink()
        raise CheckpointError(
            f"{HUB_NAMES[listing.source]} sends more of {quote(file.name)} than the {most} bytes "
            "expected; what came was deleted. Pull again, or use the other source."
        )
    if file.size_bytes is not None and start < file.size_bytes:
        raise _BrokenOffError(f"{start} of {file.size_bytes} bytes came")


def _check_status(response: httpx2.Response, listing: Listing, part: Path, start: int) -> None:
    status = response.status_code
    if status in RETRIED:
        raise _BrokenOffError(f"the server answered {status}")
    if status == httpx2.codes.RANGE_NOT_SATISFIABLE and start:
        part.unlink(missing_ok=True)
        raise _BrokenOffError("the server has nothing behind what came")
    if status == httpx2.codes.PARTIAL_CONTENT:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _BrokenOffError("the server sent another part than asked for")
    elif status != httpx2.codes.OK:
        raise refusal(listing.model, listing.source, status)


def _broken_off(listing: Listing, file: RemoteFile, part: Path, error: Exception) -> str:
    why = str(error) if isinstance(error, _BrokenOffError) else type(error).__name__
    of = "" if file.size_bytes is None else f" of {file.size_bytes}"
    return (
        f"The transfer of {quote(file.name)} from {HUB_NAMES[listing.source]} broke off at "
        f"{length(part)}{of} bytes ({why}). What has come is kept: pull again to go on."
    )
