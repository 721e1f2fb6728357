"""Who waits for the offline reader, which reads one picture at a time, and for how many.

Pictures are fetched, decoded and read on threads of their own; the line of those who wait is
bounded, and a client that goes away leaves it only when its picture's turn is over.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from qianyan.errors import InputError
from qianyan.inputs.fetch import fetch
from qianyan.inputs.images import Photo, read_image
from qianyan.inputs.media import MediaLimits
from qianyan.server.errors import RefusedError
from qianyan.server.extraction import Extraction, ExtractionOptions
from qianyan.server.ocr_offline import OfflineReader
from qianyan.server.ocr_turning import Turn, turned

Result = TypeVar("Result")

MAX_WAITING = 16
"""Pictures that wait for the reader; one more is refused with 429."""
RETRY_AFTER_S = 5
THREADS = 2
"""One picture is fetched and decoded while another one is read."""


class OcrDesk:
    """The offline reader behind its line; used on one event loop."""

    def __init__(self, limits: MediaLimits, *, max_waiting: int = MAX_WAITING) -> None:
        self.reader = OfflineReader()
        self._limits = limits
        self._max_waiting = max_waiting
        self._places = threading.BoundedSemaphore(max_waiting)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ocr")

    async def extract(
        self, picture: Mapping[str, Any], options: ExtractionOptions, *, turns: bool = False
    ) -> tuple[Photo, Turn, Extraction]:
        """Read a picture's part, turned before where that is needed and `turns` says so.

        Raises InputError and RefusedError for what cannot be read.
        """
        return await self._call(partial(self._extract, picture, options, turns=turns))

    async def turn(self, picture: Mapping[str, Any]) -> tuple[Image.Image, Turn]:
        """Turn a picture's part so that its text stands upright; raises as `extract`."""
        return await self._call(partial(self._turn, picture))

    async def _call(self, work: Callable[[], Result]) -> Result:
        if not self._places.acquire(blocking=False):
            raise RefusedError(
                f"{self._max_waiting} pictures are waiting to be read, the most that may. Try "
                "again later.",
                status=429,
                code="limit_requests",
                retry_after_s=RETRY_AFTER_S,
            )
        working = self._threads.submit(work)
        working.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(working)

    def close(self) -> None:
        """Read no more pictures; one that is being read ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _extract(
        self, picture: Mapping[str, Any], options: ExtractionOptions, *, turns: bool
    ) -> tuple[Photo, Turn, Extraction]:
        self.reader.check_task(options)
        photo = self._open(picture)
        turn = Turn(self.reader.find_turn(photo.rgb) if turns else 0, photo.rgb.size)
        found = self.reader.extract(turned(photo.rgb, turn.degrees), options)
        if found.ocr_result is not None:
            found = replace(found, ocr_result=turn.to_sent(found.ocr_result))
        return photo, turn, found

    def _turn(self, picture: Mapping[str, Any]) -> tuple[Image.Image, Turn]:
        photo = self._open(picture)
        turn = Turn(self.reader.find_turn(photo.rgb), photo.rgb.size)
        return turned(photo.rgb, turn.degrees), turn

    def _open(self, picture: Mapping[str, Any]) -> Photo:
        source = picture.get(str(picture.get("type")))
        source = source.get("url") if isinstance(source, Mapping) else source
        if not isinstance(source, str | Path) or source == "":
            raise InputError("The picture's part names no picture; expected a URL or data: URI.")
        fetched = fetch(source, limits=self._limits.fetch, allow_files=False, noun="picture")
        return read_image(fetched.data, limits=self._limits.image)
