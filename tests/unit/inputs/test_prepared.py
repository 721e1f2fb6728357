"""A picture that many send at once is decoded once, and never mixed up with another."""

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from PIL import Image

from qianyan.errors import MediaError
from qianyan.inputs import prepared
from qianyan.inputs.images import ImageLimits, Photo, read_image
from qianyan.inputs.patches import PatchConfig
from qianyan.inputs.prepared import PreparedPictures

CONFIG = PatchConfig(min_pixels=3136, max_pixels=1_000_000)
LIMITS = ImageLimits()


def png(color: tuple[int, int, int], size: tuple[int, int] = (280, 140)) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, color).save(held, "PNG")
    return held.getvalue()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was decoded, in order."""
    calls: list[bytes] = []

    def counted(data: bytes, *, limits: ImageLimits) -> Photo:
        calls.append(data)
        return read_image(data, limits=limits)

    monkeypatch.setattr(prepared, "read_image", counted)
    return calls


def test_eight_who_ask_at_once_share_one_decoding(decoded: list[bytes]) -> None:
    pictures, data = PreparedPictures(), png((200, 20, 20))
    together = threading.Barrier(8)

    def ask(_: int) -> int:
        together.wait()
        return id(pictures.prepare(data, CONFIG, LIMITS).seen)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(ask, range(8)))) == 1
    assert decoded == [data]


def test_what_is_shown_is_what_a_single_reading_gives(decoded: list[bytes]) -> None:
    pictures, data = PreparedPictures(), png((1, 2, 3), (1001, 333))
    for _ in range(2):
        shown = pictures.prepare(data, CONFIG, LIMITS)
        alone = read_image(data, limits=LIMITS).rgb
        assert shown.photo_wh == alone.size
        expected = alone.resize(CONFIG.seen_size(*alone.size), CONFIG.resample)
        assert shown.seen.tobytes() == expected.tobytes()
    assert len(decoded) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda data: (data + b"\0", CONFIG, LIMITS),
        lambda data: (data, replace(CONFIG, max_pixels=20_000), LIMITS),
        lambda data: (data, CONFIG, replace(LIMITS, max_pixels=99_999)),
    ],
)
def test_other_bytes_sizes_and_limits_are_other_pictures(
    decoded: list[bytes], change: Callable[[bytes], tuple[bytes, PatchConfig, ImageLimits]]
) -> None:
    pictures, data = PreparedPictures(), png((9, 9, 9))
    pictures.prepare(data, CONFIG, LIMITS)
    pictures.prepare(*change(data))
    assert len(decoded) == 2


def test_what_cannot_be_read_is_refused_again_and_not_kept(decoded: list[bytes]) -> None:
    pictures = PreparedPictures()
    for _ in range(2):
        with pytest.raises(MediaError):
            pictures.prepare(b"no picture", CONFIG, LIMITS)
    assert len(decoded) == 2
    assert not pictures._held


def test_only_so_many_pixels_are_kept(decoded: list[bytes]) -> None:
    one = 280 * 140 * 3
    pictures = PreparedPictures(max_bytes=2 * one)
    many = [png((shade, 0, 0)) for shade in range(5)]
    for data in (*many, many[4], many[3]):
        pictures.prepare(data, CONFIG, LIMITS)
    assert len(decoded) == 5
    assert pictures._num_bytes == 2 * one
    pictures.prepare(many[0], CONFIG, LIMITS)
    assert len(decoded) == 6
