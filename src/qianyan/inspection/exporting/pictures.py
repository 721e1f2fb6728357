"""The pictures of an export: found again, named safely, linked or copied, upright.

Results say where a picture lies, and are not trusted with it: nothing outside their folder is
taken but the very bytes that were inspected (by sha256). Boxes are counted in the picture as people
see it, while tools disagree about EXIF's turns and read few formats; what they might turn or cannot
read is written anew as JPEG.
"""

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from PIL import Image

from qianyan.errors import MediaError
from qianyan.inputs.images import ImageLimits, read_image
from qianyan.inspection.records import Inspection
from qianyan.inspection.sources import is_url
from qianyan.labels.reading import PICTURES

LONGEST_STEM = 60
QUALITY = 95
ORIENTATION = 0x0112
"""EXIF's tag."""
UPRIGHT = 1
HUGE_RATIO = 1000


@dataclass(frozen=True)
class Found:
    """A picture where it lies, its size as people see it, and whether tools read it as it is."""

    path: Path
    width: int
    height: int
    is_plain: bool


def find_picture(one: Inspection, folder: Path) -> Found:
    """Find the picture that a verdict is about.

    Raises MediaError with the reason where it is gone, has changed, or cannot be decoded.
    """
    path = _kept(one, folder) or _source(one)
    if path is None:
        raise MediaError(
            "it is neither in the results folder nor, unchanged, where it was inspected",
            code="missing",
        )
    try:
        with Image.open(path) as image:
            is_turned = image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT
            size = image.size
        is_plain = not is_turned and path.suffix.lower() in PICTURES
        if not is_plain:
            photo = _read(path)
            size = (photo.width, photo.height)
    except OSError as error:
        raise MediaError("it cannot be opened as a picture", code="unreadable") from error
    if size != (one.width or size[0], one.height or size[1]):
        raise MediaError(
            f"it is {size[0]}x{size[1]} now, and was inspected as {one.width}x{one.height}",
            code="changed",
        )
    return Found(path, *size, is_plain)


def _kept(one: Inspection, folder: Path) -> Path | None:
    if not isinstance(one.file, str) or "\0" in one.file:
        return None
    path = (folder / one.file).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _source(one: Inspection) -> Path | None:
    if is_url(one.source) or "\0" in one.source:
        return None
    path = Path(one.source)
    if path.is_file() and sha256(path.read_bytes()).hexdigest() == one.sha256:
        return path.resolve()
    return None


def _read(path: Path) -> Image.Image:
    return read_image(path.read_bytes(), limits=ImageLimits(max_ratio=HUGE_RATIO)).rgb


def place(found: Found, to: Path, *, is_copy: bool) -> None:
    """Put a picture into an export: as a link to the same file where the disk can, or a copy.

    Links are hard ones: tools refuse symbolic links that lead out of a data set.
    """
    if not found.is_plain:
        _read(found.path).save(to, "JPEG", quality=QUALITY)
        return
    if not is_copy:
        with suppress(OSError):  # another disk, or one that knows no links
            to.hardlink_to(found.path)
            return
    shutil.copyfile(found.path, to)


def safe_names(pictures: Iterable[tuple[Inspection, Found]]) -> list[str]:
    """Give each picture a name that leads nowhere and that, but for its suffix, no other has.

    Labels lie in files of the same stem, so stems differ, whatever the case.
    """
    taken: set[str] = set()
    names = []
    for one, found in pictures:
        named = PurePosixPath((one.file or one.source).replace("\\", "/"))
        suffix = found.path.suffix.lower() if found.is_plain else ".jpg"
        stem = re.sub(r"[^\w.-]+", "_", named.stem).strip("._-")[:LONGEST_STEM] or "picture"
        unique, number = stem, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{stem}-{number}"
        taken.add(unique.casefold())
        names.append(unique + suffix)
    return names
