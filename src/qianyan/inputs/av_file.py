"""Files of pictures in motion and of sound, opened with PyAV (the extras `audio` and `video`).

Files come from strangers. Formats and codecs are those of an allow-list, whatever a file's name
says; a file cannot make the reader open another one (playlists, references); whoever reads sets a
deadline. Error sentences are ours, never the library's.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from qianyan.errors import MediaError, quote
from qianyan.inputs.signatures import SIGNATURE_BYTES, Wanted, check_signature, unreadable

if TYPE_CHECKING:
    from av.container import InputContainer

BUFFER_BYTES = 1 << 17
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu,flv,"
    "asf,ogg,mxf,gif,mp3,wav,w64,flac,aac,ac3,eac3,amr,aiff,au,caf"
)


@contextmanager
def open_container(
    source: bytes | Path, *, wanted: Wanted, codecs: str, check_time: Callable[[], None]
) -> Iterator[InputContainer]:
    """Open a file, held in memory or read from disk piece by piece.

    Args:
        source: the file's bytes, or where it is.
        wanted: what it should be, for the sentences of errors.
        codecs: those that may be decoded, FFmpeg's names joined by commas.
        check_time: called before each piece is read; raises at the deadline.

    Raises:
        MediaError: code not_found, empty_file, not_a_video, not_a_sound, unsupported_format or
            truncated.
    """
    av = import_av(wanted)
    with _file(source) as file:
        head = file.read(SIGNATURE_BYTES)
        check_signature(head, wanted)
        file.seek(0)
        try:
            container = av.open(
                _TimedFile(file, check_time),
                options={"format_whitelist": FORMATS, "codec_whitelist": codecs},
                metadata_errors="replace",
                buffer_size=BUFFER_BYTES,
                io_open=_refuse_file,
            )
        except av.error.FFmpegError as error:
            raise unreadable(head, wanted) from error
        with container:
            yield container


def import_av(wanted: Wanted) -> ModuleType:
    """Import the library; MediaError where it is not installed."""
    try:
        import av  # noqa: PLC0415  (extra: video)
    except ImportError as error:
        extra = {"video": "video", "sound": "audio"}[wanted]
        raise MediaError(
            f"{wanted.capitalize()}s need the extra: pip install 'qianyan[{extra}]'.",
            code="unsupported_format",
        ) from error
    return av


class _TimedFile:
    """A file that stops being read at the deadline; it has no name, which could be a URL."""

    def __init__(self, file: BinaryIO, check_time: Callable[[], None]) -> None:
        self._check_time = check_time
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes before the deadline."""
        self._check_time()
        return self._file.read(size)


def _refuse_file(*_: object) -> NoReturn:
    """Refuse to open what a file refers to."""
    raise MediaError(
        "The file refers to another file, which is not followed. Send one whole file.",
        code="unsupported_format",
    )


@contextmanager
def _file(source: bytes | Path) -> Iterator[BinaryIO]:
    """Open the source; a path must be an ordinary file, as devices and pipes could be endless."""
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    shown = quote(source.name)
    try:
        if not stat.S_ISREG(source.stat().st_mode):
            raise MediaError(f"{shown} is not an ordinary file.", code="not_found")
        file = source.open("rb")
    except (OSError, ValueError) as error:
        raise MediaError(
            f"There is no file {shown}, or it may not be read.", code="not_found"
        ) from error
    with file:
        yield file
