"""Reading pictures: every mode comes out upright RGB, everything else is one sentence."""

import contextlib
import re
import struct
import sys
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qianyan.errors import ConfigError, MediaError
from qianyan.inputs.images import ImageLimits, Photo, read_image, smart_resize, upright_rgb
from qianyan.inputs.patches import PatchConfig, make_frame_patches, make_patches, resize

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def quadrants(mode: str = "RGB") -> Image.Image:
    """Red, green / blue, white; taller than wide."""
    image = Image.new("RGB", (40, 60))
    for corner, colour in (((0, 0), RED), ((20, 0), GREEN), ((0, 30), BLUE), ((20, 30), WHITE)):
        image.paste(colour, (*corner, corner[0] + 20, corner[1] + 30))
    return image.convert(mode)


def corners(photo: Photo) -> list[tuple[int, ...]]:
    """The colours near the four corners, rounded to full or nothing."""
    width, height = photo.width, photo.height
    places = ((5, 5), (width - 6, 5), (5, height - 6), (width - 6, height - 6))
    pixels = [photo.rgb.getpixel(place) for place in places]
    return [tuple(255 if level > 127 else 0 for level in pixel) for pixel in pixels]  # type: ignore[union-attr]


def refusal(data: bytes, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as caught:
        read_image(data, **options)
    sentence = str(caught.value)
    assert not re.search(r"\b0x", sentence)
    for leak in ("PIL", "Traceback", "Errno", "<_io", "site-packages"):
        assert leak not in sentence
    assert sentence.endswith(".")
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", FORMATS)
def test_allowed_formats_are_read(form: str) -> None:
    photo = read_image(encoded(quadrants(), form))
    assert photo.rgb.mode == "RGB"
    assert (photo.width, photo.height) == (40, 60)
    assert corners(photo) == [RED, GREEN, BLUE, WHITE]
    assert photo.notes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_comes_out_upright(form: str, orientation: int) -> None:
    """The stored picture is turned the way a camera held so would have stored it."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quadrants()
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read_image(encoded(stored, form, exif=exif))
    assert (photo.width, photo.height) == (40, 60)
    assert corners(photo) == [RED, GREEN, BLUE, WHITE]
    again = read_image(encoded(photo.rgb, "PNG"))
    assert corners(again) == [RED, GREEN, BLUE, WHITE], "a saved copy is turned twice"


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_orientations_that_do_not_exist_change_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert corners(read_image(encoded(quadrants(), exif=exif))) == [RED, GREEN, BLUE, WHITE]


def test_broken_exif_does_not_spoil_the_picture() -> None:
    data = encoded(quadrants(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x13" * 40)
    assert corners(read_image(data)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
        ("LAB", "TIFF"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("RGBA", "TIFF"),
    ],
)
def test_colours_of_other_modes_come_out_right(mode: str, form: str) -> None:
    if mode == "LAB":
        data = encoded(Image.new("LAB", (40, 60), (255, 128, 128)), form)
        assert corners(read_image(data)) == [WHITE] * 4
        return
    data = encoded(quadrants(mode), form)
    assert corners(read_image(data)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "I", "F"])
def test_grey_modes_keep_black_and_white(mode: str) -> None:
    levels = {"I;16": 65535, "I": 65535, "F": 1.0, "1": 1}
    white = levels.get(mode, 255)
    image = Image.new(mode, (40, 60), (white, 255) if mode == "LA" else white)
    image.paste((0, 255) if mode == "LA" else 0, (0, 0, 20, 60))
    photo = read_image(encoded(image, "TIFF" if mode in {"I", "F"} else "PNG"))
    assert corners(photo) == [(0, 0, 0), WHITE, (0, 0, 0), WHITE]


def test_sixteen_bits_keep_their_shades() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256).repeat(16, axis=0)
    photo = read_image(encoded(Image.fromarray(ramp)))
    assert np.abs(np.asarray(photo.rgb)[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_transparent_parts_show_white() -> None:
    clear = Image.new("RGBA", (40, 40), (10, 20, 30, 0))
    assert read_image(encoded(clear)).rgb.getpixel((5, 5)) == WHITE
    half = Image.new("RGBA", (40, 40), (0, 0, 0, 128))
    assert read_image(encoded(half)).rgb.getpixel((5, 5)) == (127, 127, 127)


def test_transparent_palette_entries_and_colours_show_white() -> None:
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    assert read_image(encoded(palette, transparency=1)).rgb.getpixel((5, 5)) == WHITE
    assert read_image(encoded(palette, "GIF", transparency=1)).rgb.getpixel((5, 5)) == WHITE
    plain = Image.new("RGB", (40, 40), (200, 0, 0))
    assert read_image(encoded(plain, transparency=(200, 0, 0))).rgb.getpixel((5, 5)) == WHITE
    grey = Image.new("L", (40, 40), 7)
    assert read_image(encoded(grey, transparency=7)).rgb.getpixel((5, 5)) == WHITE


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_read_and_said(form: str) -> None:
    frames = [Image.new("RGB", (40, 60), colour) for colour in (RED, BLUE, GREEN)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    photo = read_image(data)
    assert corners(photo) == [RED] * 4
    expected = "several pages: first page only" if form == "TIFF" else "animated: first frame only"
    assert photo.notes == (expected,)


def test_a_picture_in_process_is_copied_upright_without_its_metadata() -> None:
    source = quadrants()
    source.getexif()[0x0112] = 3
    photo = Photo(upright_rgb(source))
    assert corners(photo) == [WHITE, BLUE, GREEN, RED]
    assert photo.rgb.info == {}
    plain = quadrants()
    upright_rgb(plain).paste(BLUE, (0, 0, 40, 60))
    assert corners(Photo(plain)) == [RED, GREEN, BLUE, WHITE]


def test_heic_without_the_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = refusal(b"\0\0\0\x18ftypheic" + bytes(200))
    assert error.code == "unsupported_format"
    assert "qianyan[heic]" in str(error)


def test_heic_with_the_extra_is_read() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    out = BytesIO()
    large = quadrants().resize((160, 240))
    pillow_heif.from_pillow(large).save(out, quality=90)
    photo = read_image(out.getvalue())
    assert (photo.width, photo.height) == (160, 240)
    assert corners(photo) == [RED, GREEN, BLUE, WHITE]
    assert refusal(out.getvalue()[:300]).code == "truncated"


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "empty_file", "0 bytes"),
        (b"this is no picture at all, only words", "not_a_picture", "text"),
        ("这只是文字".encode() * 103, "not_a_picture", "text"),
        (b"<!DOCTYPE html><html></html>", "not_a_picture", "HTML"),
        (b"\xef\xbb\xbf\n <HTML>", "not_a_picture", "HTML"),
        (b'<?xml version="1.0"?><svg/>', "not_a_picture", "SVG"),
        (b"<svg xmlns='x'/>", "not_a_picture", "SVG"),
        (bytes(range(256)), "not_a_picture", "unknown"),
        (b"BM", "not_a_picture", "text"),
        (b"%PDF-1.7\n", "unsupported_format", "PDF"),
        (b"PK\x03\x04" + bytes(40), "unsupported_format", "ZIP"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "unsupported_format", "AVIF"),
        (b"\0\0\0\x1cftypisom" + bytes(40), "unsupported_format", "video"),
        (b"8BPS" + bytes(40), "unsupported_format", "Photoshop"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "unsupported_format", "JPEG 2000"),
        (b"\0\0\x01\0\x01\0" + bytes(40), "unsupported_format", "icon"),
        (b"\x89PNG\r\n\x1a\n", "truncated", "cut short"),
        (b"\xff\xd8\xff\xe0", "truncated", "cut short"),
        (b"GIF89a", "truncated", "cut short"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "truncated", "cut short"),
        (b"II*\0\x08\0\0\0", "truncated", "cut short"),
        (b"BM" + bytes(60), "truncated", "cut short"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_readable_picture(data: bytes, code: str, words: str) -> None:
    error = refusal(data)
    assert error.code == code
    assert words in str(error)


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_cut_anywhere_is_refused_or_whole(form: str) -> None:
    """Never another exception, never half a picture."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 255, (64, 48, 3), dtype=np.uint8))
    data = encoded(image, form)
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        assert refusal(data[: int(len(data) * share)]).code in {"truncated", "not_a_picture"}


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_bytes_never_raise_anything_else(form: str) -> None:
    rng = np.random.default_rng(2)
    data = bytearray(encoded(quadrants(), form))
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 6):
            damaged[place] = int(rng.integers(0, 256))
        with contextlib.suppress(MediaError):
            assert read_image(bytes(damaged)).rgb.mode == "RGB"


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ((1, 1), "too_small"),
        ((7, 100), "too_small"),
        ((1, 5000), "too_small"),
        ((20000, 20000), "too_large"),
        ((50000, 50000), "too_large"),
        ((2**31 - 1, 2**31 - 1), "too_large"),
        ((10, 2001), "too_narrow"),
        ((60000, 100), "too_narrow"),
    ],
    ids=lambda value: f"{value[0]}x{value[1]}" if isinstance(value, tuple) else value,
)
def test_sizes_are_judged_by_the_header_alone(size: tuple[int, int], code: str) -> None:
    """The file holds almost no pixel data, so decoding it would say `truncated`."""
    error = refusal(png_header(*size))
    assert error.code == code
    assert f"{size[0]}x{size[1]}" in str(error)


def test_limits_can_be_narrowed() -> None:
    data = encoded(Image.new("RGB", (300, 10)))
    read_image(data)
    assert refusal(data, limits=ImageLimits(max_ratio=20)).code == "too_narrow"
    assert refusal(data, limits=ImageLimits(max_pixels=2999)).code == "too_large"
    assert refusal(data, limits=ImageLimits(min_side_px=11)).code == "too_small"


def test_a_picture_of_just_under_100_megapixels_is_no_bomb() -> None:
    data = encoded(Image.new("1", (10_000, 9_999)), "PNG")
    assert read_image(data).width == 10_000


def test_a_bomb_of_compressed_metadata_is_refused() -> None:
    """A PNG whose text chunk unpacks to 60 MB."""
    packed = b"Comment\0\0" + zlib.compress(bytes(60_000_000))
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    data = encoded(quadrants())
    assert refusal(data[:33] + chunk + data[33:]).code == "truncated"


def test_example_photos_are_read(shared: Path) -> None:
    photos = sorted((shared / "data" / "examples").glob("*.jpg"))
    assert photos
    for path in photos:
        photo = read_image(path.read_bytes())
        assert min(photo.width, photo.height) >= 100


@pytest.mark.parametrize(
    ("size", "max_pixels", "expected"),
    [
        ((224, 224), 12_845_056, (224, 224)),
        ((1080, 1920), 12_845_056, (1092, 1932)),
        ((1080, 1920), 1_003_520, (728, 1316)),
        ((434, 368), 12_845_056, (448, 364)),
        ((20, 20), 12_845_056, (56, 56)),
        ((5000, 5000), 12_845_056, (3556, 3556)),
        ((10, 1000), 12_845_056, (28, 560)),
        ((70, 70), 12_845_056, (56, 56)),
        ((42, 42), 12_845_056, (56, 56)),
        ((98, 98), 12_845_056, (112, 112)),
        ((3000, 4000), 12_845_056, (2996, 4004)),
    ],
)
def test_published_sizes(size: tuple[int, int], max_pixels: int, expected: tuple[int, int]) -> None:
    assert smart_resize(*size, min_pixels=3136, max_pixels=max_pixels) == expected


@pytest.mark.parametrize(
    "form",
    [
        {"min_pixels": 3136, "max_pixels": 1_003_520},
        {"size": {"shortest_edge": 3136, "longest_edge": 1_003_520}},
        {"size": {"min_pixels": 3136, "max_pixels": 1_003_520}},
        {"min_pixels": 3136, "max_pixels": 1_003_520, "size": {"shortest_edge": 1}},
    ],
)
def test_both_written_forms_of_the_limits_are_read(form: dict[str, Any]) -> None:
    config = PatchConfig.from_json({"patch_size": 14, "resample": 3, **form})
    assert (config.min_pixels, config.max_pixels) == (3136, 1_003_520)
    assert config.factor == 28
    assert config.row_size == 1176


@pytest.mark.parametrize(
    "data",
    [
        {"min_pixels": 10, "max_pixels": 5},
        {"min_pixels": "many"},
        {"do_resize": False},
        {"rescale_factor": 1.0},
        {"image_std": [1, 0, 1]},
        {"image_mean": [0.5]},
        {"resample": 99},
        {"patch_size": []},
    ],
)
def test_impossible_settings_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PatchConfig.from_json(data)


def test_a_lowered_maximum_takes_the_minimum_with_it() -> None:
    config = PatchConfig(min_pixels=3136, max_pixels=12_845_056).within(max_pixels=1568)
    assert (config.min_pixels, config.max_pixels) == (1568, 1568)


def test_cutting_patches_makes_no_second_copy() -> None:
    """A photo of 12 megapixels has 290 MB of rows; twice that would not fit where once does."""
    config = PatchConfig(min_pixels=3136, max_pixels=12_845_056)
    image = Image.new("RGB", (1400, 1400))
    tracemalloc.start()
    rows = make_patches([image], config)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1.4 * rows.nbytes


@pytest.mark.parametrize("size", [(1920, 1080), (1441, 2561), (2500, 1500)])
@pytest.mark.parametrize("max_pixels", [401_408, 12_845_056])
def test_large_pictures_are_resized_to_the_pixels_that_one_call_gives(
    size: tuple[int, int], max_pixels: int
) -> None:
    """Channels go their own ways; how Pillow rounds between the axes must stay."""
    config = PatchConfig(min_pixels=3136, max_pixels=max_pixels)
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = image.resize(config.seen_size(*size), config.resample)
    assert np.array_equal(np.asarray(resize(image, config)), np.asarray(expected))


@pytest.mark.parametrize("size", [(84, 56), (1680, 1260)])
def test_a_picture_has_the_rows_of_a_clip_that_stands_still(size: tuple[int, int]) -> None:
    config = PatchConfig(min_pixels=3136, max_pixels=12_845_056)
    frame = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    rows = make_patches([Image.fromarray(frame)], config)
    assert np.array_equal(rows, make_frame_patches(np.stack([frame, frame]), config))


def test_a_decoded_jpeg_is_a_picture_of_its_own_without_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    buffer = BytesIO()
    quadrants().save(buffer, "JPEG", exif=exif, dpi=(300, 300), comment=b"a note", quality=95)
    photo = read_image(buffer.getvalue())
    assert photo.rgb.info == {}
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        saved = BytesIO()
        photo.rgb.save(saved, kind)
        again = Image.open(saved)
        assert not set(again.info) & {"exif", "comment", "icc_profile"}
        assert 0x0112 not in again.getexif()
    photo.rgb.paste((0, 0, 255), (0, 0, 40, 60))  # a picture in memory, not a view of its file
    assert photo.rgb.getpixel((1, 1)) == (0, 0, 255)
