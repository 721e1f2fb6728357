"""From the bytes of a picture to upright RGB, and the size a model sees it in.

Reading is strict about what it opens (an allow-list of formats, dimensions from the header before
any pixel is decoded) and plain about what it refuses: every refusal is a MediaError with a stable
code and one sentence of our own, never the decoder's text.

`smart_resize` is the checkpoint authors' rule (Qwen2-VL, section 2.1; qwen-vl-utils).
"""

import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from qianyan.errors import MediaError

MIN_SIDE = 8
MAX_PIXELS = 100_000_000
MAX_RATIO = 200  # the models' own limit; an inspection asks for less
FORMATS = "JPEG, PNG, WEBP, BMP, GIF or TIFF"

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's readers raise on damaged files. They are many, and their texts stay inside.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What is accepted as a picture; checked against the header before anything is decoded.

    Args:
        min_side_px: shortest side.
        max_pixels: largest area.
        max_ratio: longest side in terms of the shortest.
    """

    min_side_px: int = MIN_SIDE
    max_pixels: int = MAX_PIXELS
    max_ratio: float = MAX_RATIO


@dataclass(frozen=True)
class Photo:
    """A decoded picture, upright, RGB; `notes` says what was left out (further frames, ...)."""

    rgb: Image.Image
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Width in pixels, after EXIF orientation."""
        return self.rgb.width

    @property
    def height(self) -> int:
        """Height in pixels, after EXIF orientation."""
        return self.rgb.height


def read_image(data: bytes, *, limits: ImageLimits | None = None) -> Photo:
    """Decode a picture of an allowed format.

    Raises:
        MediaError: code empty_file, not_a_picture, unsupported_format, truncated, too_small,
            too_large or too_narrow.
    """
    if not data:
        raise MediaError(
            f"The file is empty (0 bytes); expected a picture ({FORMATS}).", code="empty_file"
        )
    with _quiet():
        image = _open(data)
        _check_size(image.width, image.height, limits or ImageLimits())
        notes = _notes(image)
        try:
            image.load()
        except MemoryError as error:
            raise MediaError(
                f"The picture of {image.width}x{image.height} pixels does not fit in memory.",
                code="too_large",
            ) from error
        except _DAMAGE as error:
            raise _damaged() from error
        rgb = _upright_rgb(image)
        # A JPEG's reader lets go of its file once it is decoded: the picture need not be copied.
        return Photo(
            _bare(rgb, is_ours=rgb is not image or isinstance(image, JpegImageFile)), notes
        )


def decoded_bytes(data: bytes) -> int:
    """Tell what a picture will take in memory, by its header; 0 for what is none."""
    try:
        with _quiet():
            image = _open(data)
    except MediaError:
        return 0
    return 3 * image.width * image.height


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn any decoded picture into 8-bit RGB: EXIF orientation applied, alpha over white."""
    with _quiet():
        rgb = _upright_rgb(image)
        return _bare(rgb, is_ours=rgb is not image)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the readers' warnings about odd metadata off the user's terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _upright_rgb(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:  # broken EXIF says nothing about the pixels: take them as they lie
        orientation = 1
    try:
        rgb = _to_rgb(image)
    except _DAMAGE as error:
        raise _damaged() from error
    if orientation in _ORIENTATIONS:
        rgb = rgb.transpose(_ORIENTATIONS[orientation])
    return rgb


def _bare(rgb: Image.Image, *, is_ours: bool) -> Image.Image:
    """Take EXIF and profile off: a saved copy must not be turned or tinted again."""
    bare = rgb if is_ours else rgb.copy()
    bare.info = {}
    return bare


def _open(data: bytes) -> Image.Image:
    """Make the reader for the format that the first bytes show; reads the header only."""
    reader = _reader(data)
    try:
        # The reader is called directly: Image.open would try all of Pillow's formats, and warn
        # on stderr about sizes that the limits here judge anyway.
        return reader(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise MediaError(
            "The picture's header announces more pixels than can be read.", code="too_large"
        ) from error
    except _DAMAGE as error:
        raise _damaged() from error


def _reader(data: bytes) -> Callable[[BytesIO], Image.Image]:
    """Pick the reader by magic bytes, or say what the file is instead."""
    head = data[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImageFile
    if head.startswith(b"BM") and len(data) > 26:
        return BmpImageFile
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return _heif_reader()
    raise _not_readable(data)


_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
_OTHER_FORMATS = (
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive or office document"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\0\0\x01\0", "an icon"),
    (0, b"\0\0\0\x0cjP", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL", "JPEG XL"),
    (8, b"avif", "AVIF"),
    (8, b"avis", "AVIF"),
    (4, b"ftyp", "a video"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (8, b"WAVE", "a sound file"),
    (0, b"ID3", "a sound file"),
)


def _not_readable(data: bytes) -> MediaError:
    """Say what a file is that none of the readers takes."""
    for offset, magic, name in _OTHER_FORMATS:
        if data[offset : offset + len(magic)] == magic:
            return MediaError(
                f"The file is {name}, which is not read here; expected {FORMATS}.",
                code="unsupported_format",
            )
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        what = "a web page (HTML)"
    elif start.startswith((b"<svg", b"<?xml")):
        what = "SVG or XML text"
    elif b"\0" not in data[:512] and _is_text(data[:512]):
        what = "text"
    else:
        what = "data of an unknown kind"
    return MediaError(
        f"This is not a picture but {what}; expected {FORMATS}.", code="not_a_picture"
    )


def _is_text(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 3  # cut inside the last character
    return True


def _heif_reader() -> Callable[[BytesIO], Image.Image]:
    """Find the reader for HEIC, which only the extra `heic` brings."""
    try:
        from pillow_heif import HeifImageFile  # noqa: PLC0415  (extra: heic)
    except ImportError as error:
        raise MediaError(
            "The picture is HEIC, which needs the extra: pip install 'qianyan[heic]'.",
            code="unsupported_format",
        ) from error
    reader: Callable[[BytesIO], Image.Image] = HeifImageFile
    return reader


def _damaged() -> MediaError:
    return MediaError(
        "The picture is cut short or damaged and cannot be decoded. Copy or download it again.",
        code="truncated",
    )


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse sizes outside the limits."""
    size = f"The picture is {width}x{height} pixels"
    if min(width, height) < limits.min_side_px:
        raise MediaError(
            f"{size}; expected at least {limits.min_side_px} pixels on each side.", code="too_small"
        )
    if width * height > limits.max_pixels:
        raise MediaError(
            f"{size}; expected at most {limits.max_pixels / 1e6:g} megapixels. Make it smaller.",
            code="too_large",
        )
    check_ratio(width, height, max_ratio=limits.max_ratio)


def check_ratio(width: int, height: int, *, max_ratio: float) -> None:
    """Refuse a strip longer than `max_ratio` times its short side (MediaError too_narrow)."""
    if max(width, height) > max_ratio * min(width, height):
        raise MediaError(
            f"The picture is {width}x{height} pixels, a strip; expected sides of at most "
            f"{max_ratio:g}:1. Cut it into pieces.",
            code="too_narrow",
        )


def _notes(image: Image.Image) -> tuple[str, ...]:
    """Say what of the file is not looked at."""
    try:
        is_animated = bool(getattr(image, "is_animated", False))
    except _DAMAGE:  # damage behind the first frame does not concern us
        is_animated = True
    if not is_animated:
        return ()
    if isinstance(image, GifImageFile | WebPImageFile | PngImageFile):
        return ("animated: first frame only",)
    return ("several pages: first page only",)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; transparent parts show white, as the checkpoints' tools do."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _to_grey(np.asarray(image, dtype=np.float32), 65535.0)
    if image.mode in {"I", "F"}:
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
        return _to_grey(values, _white_level(float(values.max(initial=0.0)), image.mode))
    if "transparency" in image.info or image.mode in {"RGBA", "LA", "PA", "RGBa", "La"}:
        if image.mode in {"RGBa", "La"}:  # premultiplied: has only this one way back
            image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _white_level(maximum: float, mode: str) -> float:
    """Guess which value means white: 1 for floats, else 8 or 16 bits, else the largest value."""
    if mode == "F" and maximum <= 1.0:
        return 1.0
    return next((level for level in (255.0, 65535.0) if maximum <= level), maximum)


def _to_grey(values: np.ndarray, white: float) -> Image.Image:
    grey = np.clip(values * (255.0 / white), 0, 255).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def smart_resize(
    height: int, width: int, *, factor: int = 28, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Pick the size a model sees: multiples of `factor`, area within the two limits.

    Returns (height, width). Python's rounding to even and float64 floors are part of the
    definition: 70 becomes 56, and 5000x5000 within 12 845 056 becomes 3556x3556.
    """
    if min(height, width) < 1:
        raise MediaError("The picture has no pixels.", code="too_small")
    check_ratio(width, height, max_ratio=MAX_RATIO)
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width
