"""What a file that was sent as a video is, told by its first bytes."""

from qianyan.errors import MediaError

SIGNATURE_BYTES = 512
EXPECTED = "a video such as MP4, MOV, MKV, WebM, AVI or MPEG-TS"

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
_ANIMATED = 0x02  # in the flags of a WebP's VP8X chunk


def check_signature(head: bytes) -> None:
    """Refuse what is empty or a still picture, before any video reader sees it."""
    if not head:
        raise MediaError(f"The file is empty (0 bytes); expected {EXPECTED}.", code="empty_file")
    picture = _match(head, _PICTURES)
    if head[4:8] == b"ftyp":
        picture = picture or _PICTURE_BRANDS.get(head[8:12])
    if picture == "WebP" and head[12:16] == b"VP8X" and head[20] & _ANIMATED:
        raise MediaError(
            "The file is an animated WebP, which is not read as a video. Convert it to MP4 or "
            "GIF, or send its frames as pictures.",
            code="not_a_video",
        )
    if picture:
        raise MediaError(
            f"The file is a picture ({picture}), not a video. Send it as a picture.",
            code="not_a_video",
        )


def unreadable(head: bytes) -> MediaError:
    """Say why a file that no reader takes is not a video, or that it is a damaged one."""
    if _match(head, _VIDEOS) is not None:
        return MediaError(
            "The video is cut short or its index is missing or damaged, so that it cannot be "
            "read. Copy it again, or repair it with a tool such as ffmpeg.",
            code="truncated",
        )
    what = _match(head, _OTHERS) or _text_kind(head) or "data of an unknown kind"
    return MediaError(f"This is not a video but {what}; expected {EXPECTED}.", code="not_a_video")


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
