"""What a file that was sent as a video or as a sound is, told by its first bytes."""

from typing import Literal

from qianyan.errors import MediaError

SIGNATURE_BYTES = 512
Wanted = Literal["video", "sound"]
EXPECTED: dict[Wanted, str] = {
    "video": "a video such as MP4, MOV, MKV, WebM, AVI or MPEG-TS",
    "sound": "a sound such as WAV, MP3, FLAC, OGG, M4A, AAC or AMR",
}

_PICTURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (8, b"WEBP", "WebP"),
)
_PICTURE_BRANDS = {
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
    ),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_OTHERS = (
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive or office document"),
    (0, b"\x1f\x8b", "a compressed file"),
    (0, b"ID3", "a damaged sound file"),
    (8, b"WAVE", "a damaged sound file"),
)
_VIDEOS = (
    *((4, kind, "") for kind in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof")),
    (0, b"\x1a\x45\xdf\xa3", ""),
    (8, b"AVI ", ""),
    (0, b"OggS", ""),
    (0, b"FLV", ""),
    (0, b"\x30\x26\xb2\x75", ""),
    (0, b"\0\0\x01", ""),
    (0, b"\0\0\0\x01", ""),
    (0, b"G@", ""),
    (0, b"GIF8", ""),
)
_SOUNDS = (
    *((0, magic, "") for magic in (b"ID3", b"fLaC", b"#!AMR", b".snd", b"caff", b"FORM")),
    *((0, b"\xff" + bytes([second]), "") for second in (0xFB, 0xFA, 0xF3, 0xF2, 0xF1, 0xF9)),
    (8, b"WAVE", ""),
)
_ANIMATED = 0x02  # in the flags of a WebP's VP8X chunk


def is_picture(head: bytes) -> bool:
    """Tell by a file's first bytes whether it is a picture; a GIF is one here."""
    return bool(_still(head)) or head.startswith(b"GIF8")


def check_signature(head: bytes, wanted: Wanted) -> None:
    """Refuse what is empty or a still picture, before any reader sees it."""
    if not head:
        raise MediaError(
            f"The file is empty (0 bytes); expected {EXPECTED[wanted]}.", code="empty_file"
        )
    picture = _still(head)
    is_animated = picture == "WebP" and head[12:16] == b"VP8X" and bool(head[20] & _ANIMATED)
    if is_animated and wanted == "video":
        raise MediaError(
            "The file is an animated WebP, which is not read as a video. Convert it to MP4 or "
            "GIF, or send its frames as pictures.",
            code="not_a_video",
        )
    if picture:
        raise MediaError(
            f"The file is a picture ({picture}), not a {wanted}. Send it as a picture.",
            code=f"not_a_{wanted}",
        )


def _still(head: bytes) -> str | None:
    """Name the format of a still picture."""
    brand = _PICTURE_BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
    return _match(head, _PICTURES) or brand


def unreadable(head: bytes, wanted: Wanted) -> MediaError:
    """Say why a file that no reader takes is not what is wanted, or that it is damaged."""
    known = _VIDEOS if wanted == "video" else (*_SOUNDS, *_VIDEOS)
    if _match(head, known) is not None:
        return MediaError(
            f"The {wanted} is cut short or its index is missing or damaged, so that it cannot be "
            "read. Copy it again, or repair it with a tool such as ffmpeg.",
            code="truncated",
        )
    what = _match(head, _OTHERS) or _text_kind(head) or "data of an unknown kind"
    return MediaError(
        f"This is not a {wanted} but {what}; expected {EXPECTED[wanted]}.", code=f"not_a_{wanted}"
    )


def _match(head: bytes, table: tuple[tuple[int, bytes, str], ...]) -> str | None:
    return next(
        (name for at, magic, name in table if head[at : at + len(magic)] == magic),
        None,
    )


def _text_kind(head: bytes) -> str | None:
    """Name the kind of text that a file starts with, None where it is no text."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "a web page (HTML)"
    if start.startswith(b"#extm3u"):
        return "a playlist of other files"
    if b"\0" in head:
        return None
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return "text" if error.start >= len(head) - 3 else None  # cut inside the last character
    return "text"
