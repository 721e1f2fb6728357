"""The inspection report as PDF: typst sets a template with the content of a run.

The template (assets/report/report.typ) gets everything as JSON and prints strings as they are, so
no name or message can become markup. Only the bundled font and the user's own are used, never the
machine's, and the same data gives the same bytes.

Every picture is in the report: with original, marked picture and findings side by side, or, in
runs of more than FULL_SECTIONS pictures, as a row with a thumbnail where nothing was found.
Pictures are scaled down, the more the more there are, which bounds the size of the PDF and the
memory it takes: 32 kB a picture with findings in a run of hundreds, on about one page.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import typst
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from qianyan.errors import ConfigError, MediaError, quote
from qianyan.inputs.images import read_image, upright_rgb
from qianyan.inspection.reporting.fonts import BOLD_FONT_FILE, FONT_FILE, load_font
from qianyan.inspection.reporting.report_content import (
    Figure,
    Figures,
    ReportData,
    ReportPicture,
    Script,
    report_content,
)

__all__ = ["ReportData", "ReportPicture", "render_report"]

log = logging.getLogger(__name__)

TEMPLATE_FILE = Path(__file__).parents[2] / "assets" / "report" / "report.typ"
FULL_SECTIONS = 24
THUMBNAIL = (240, 72)
# (up to so many full sections, longest side in pixels, JPEG quality)
QUALITIES = ((40, 1000, 85), (150, 800, 80), (400, 640, 76))
LOWEST_QUALITY = (480, 72)
PROBE_SIZE = 16


def render_report(data: ReportData, out: Path) -> None:
    """Write the report of a run as a PDF file, replacing `out` only when it is complete.

    Raises:
        ConfigError: a user's font cannot be read, or `out` cannot be written.
    """
    script = Script(data.fonts)
    with tempfile.TemporaryDirectory(prefix="qianyan-report-") as temporary:
        folder = Path(temporary)
        figures = _scale_pictures(data.pictures, folder)
        content = report_content(data, figures, script)
        content["fonts"] = _gather_fonts(data.fonts, folder / "fonts")
        (folder / "content.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        shutil.copyfile(TEMPLATE_FILE, folder / TEMPLATE_FILE.name)
        pdf = typst.compile(
            folder / TEMPLATE_FILE.name,
            root=folder,
            font_paths=[folder / "fonts"],
            ignore_system_fonts=True,
            timestamp=int(data.finished_at.timestamp()),
        )
    _write(pdf, out)


def _write(pdf: bytes, out: Path) -> None:
    partial = out.with_name(out.name + ".part")
    try:
        partial.write_bytes(pdf)
        partial.replace(out)
    except OSError as error:
        raise ConfigError(
            f"The report cannot be written to {quote(out.name)}: {error.strerror}. "
            "Choose another output folder, or close the file where it is open."
        ) from error


def _gather_fonts(fonts: Sequence[Path], folder: Path) -> list[str]:
    """Copy the fonts to where typst looks and name their families, ours first."""
    folder.mkdir()
    families: list[str] = []
    for index, path in enumerate((FONT_FILE, BOLD_FONT_FILE, *fonts)):
        family = load_font(path, PROBE_SIZE).getname()[0]
        if family and family not in families:
            families.append(family)
        shutil.copyfile(path, folder / f"{index}{path.suffix}")
    return families


def _scale_pictures(pictures: Sequence[ReportPicture], folder: Path) -> list[Figures]:
    """Scale what is shown into JPEG files, one picture in memory at a time."""
    is_full = [_is_full(picture, len(pictures)) for picture in pictures]
    side, quality = picture_quality(sum(is_full))
    figures = []
    for number, (picture, full) in enumerate(zip(pictures, is_full, strict=True), start=1):
        original_side, original_quality = (side, quality) if full else THUMBNAIL
        figures.append(
            Figures(
                _scale(
                    picture.original_path,
                    folder / f"original-{number}.jpg",
                    side=original_side,
                    quality=original_quality,
                ),
                _scale(
                    picture.marked_path, folder / f"marked-{number}.jpg", side=side, quality=quality
                )
                if full
                else None,
            )
        )
    return figures


def _is_full(picture: ReportPicture, num_pictures: int) -> bool:
    """Say whether a picture is shown large, with its marked form."""
    inspection = picture.inspection
    if inspection.detections is None:
        return False
    return bool(inspection.detections or inspection.vetoed) or num_pictures <= FULL_SECTIONS


def picture_quality(num_full: int) -> tuple[int, int]:
    """Pick longest side in pixels and JPEG quality for so many pictures shown large."""
    return next(
        ((side, quality) for most, side, quality in QUALITIES if num_full <= most), LOWEST_QUALITY
    )


def _scale(source: Path | None, target: Path, *, side: int, quality: int) -> Figure | None:
    """Save a picture as a JPEG of at most `side` pixels; None, with a warning, if unreadable."""
    if source is None:
        return None
    try:
        shown = _read_small(source.read_bytes(), side)
    except (OSError, MediaError) as error:
        log.warning("A picture is missing from the report. file=%s reason=%s", source.name, error)
        return None
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    shown.save(target, "JPEG", quality=quality)
    return Figure(target.name, shown.width, shown.height)


def _read_small(data: bytes, side: int) -> Image.Image:
    """Decode a picture, a JPEG at the least of its scales that is clearly more than `side`.

    That is several times faster than decoding all of it, which a run of hundreds feels.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return read_image(data).rgb
    try:
        image = JpegImageFile(BytesIO(data))
    except (OSError, SyntaxError, ValueError) as error:  # what its header reader raises on damage
        raise MediaError("The picture's header is damaged.", code="truncated") from error
    enough = 1.2 * side / max(image.size)
    image.draft("RGB", (int(image.width * enough), int(image.height * enough)))
    return upright_rgb(image)
