"""Pictures as a model is to see them, each decoded and resized once for all who send it.

Several questions about one photo often come together; decoding and resizing takes longer than all
else that happens to a picture before the model. A picture is known by its bytes, what it is made
into and the limits that it was judged by. Whoever asks for one that is being made waits for it. The
least recently used go first.
"""

import hashlib
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

from PIL import Image

from qianyan.inputs.images import ImageLimits, read_image
from qianyan.inputs.parts import PictureConfig

MAX_BYTES = 64_000_000
"""Pixels that are kept: some twenty pictures of a megapixel."""
BYTES_PER_PIXEL = 3


@dataclass(frozen=True)
class Prepared:
    """A picture at the size the model sees, to be read only, and what is told of it."""

    seen: Image.Image
    photo_wh: tuple[int, int]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Count the bytes of its pixels."""
        return self.seen.width * self.seen.height * BYTES_PER_PIXEL


_Key = tuple[bytes, PictureConfig, ImageLimits]


class PreparedPictures:
    """Keeps what it has made, within `max_bytes`; for any number of threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[_Key, Future[Prepared]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def prepare(self, data: bytes, config: PictureConfig, limits: ImageLimits) -> Prepared:
        """Decode a picture and resize it to what the model sees; raises what `read_image` does."""
        key = (hashlib.blake2b(data, digest_size=32).digest(), config, limits)
        with self._lock:
            held = self._held.get(key)
            is_mine = held is None
            if held is None:
                held = self._held[key] = Future()
            else:
                self._held.move_to_end(key)
        if is_mine:
            self._make(key, held, data)
        return held.result()

    def _make(self, key: _Key, held: Future[Prepared], data: bytes) -> None:
        _, config, limits = key
        try:
            photo = read_image(data, limits=limits)
            seen = photo.rgb.resize(config.seen_size(*photo.rgb.size), config.resample)
            made = Prepared(seen, photo.rgb.size, photo.notes)
        finally:  # whoever waits hears of every end
            if (error := sys.exception()) is not None:
                with self._lock:
                    del self._held[key]
                held.set_exception(error)
        held.set_result(made)
        with self._lock:
            self._num_bytes += made.num_bytes
            self._forget()

    def _forget(self) -> None:
        for key in list(self._held):
            if self._num_bytes <= self._max_bytes:
                return
            if self._held[key].done():  # one that is being made is counted when it is there
                self._num_bytes -= self._held.pop(key).result().num_bytes
