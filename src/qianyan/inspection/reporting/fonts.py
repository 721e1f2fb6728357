"""The font of labels and reports: where it lies, what it can write, what to do with the rest.

The bundled font is a subset of Noto Sans SC (assets/fonts/README.md). A character that no font
at hand can write is never drawn as an empty box: `writable` spells it as its code point, so
that it can still be told apart and looked up.
"""

import logging
import shutil
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from PIL import ImageFont

from qianyan.errors import ConfigError, quote

log = logging.getLogger(__name__)

FONT_FOLDER = Path(str(files("qianyan"))) / "assets" / "fonts"
FONT_FILE = FONT_FOLDER / "NotoSansSC-Regular.ttf"
BOLD_FONT_FILE = FONT_FOLDER / "NotoSansSC-Bold.ttf"
LICENCE_FILE = FONT_FOLDER / "OFL.txt"
FONT_SUFFIXES = (".ttf", ".otf", ".ttc")

# A noncharacter: no font maps it, so it draws the font's "missing" glyph to compare with.
UNMAPPED = "\uffff"
PROBE_SIZE = 24
# Controls and formats: invisible, and able to make a name read backwards.
INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp"})


@lru_cache(maxsize=64)
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """Open a font file at a size in pixels; ConfigError where it is not a font."""
    try:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise ConfigError(
            f"Font file {quote(path.name)} cannot be read as a TrueType or OpenType font. "
            "Replace or remove it."
        ) from error


@lru_cache(maxsize=65536)
def _has_glyph(char: str, path: Path) -> bool:
    if char == " ":
        return True
    font = load_font(path, PROBE_SIZE)
    mask, missing = font.getmask(char), font.getmask(UNMAPPED)
    return mask.size != missing.size or bytes(mask) != bytes(missing)


def missing_glyphs(text: str, font: Path = FONT_FILE) -> set[str]:
    """Name the characters of a text that the font cannot write, invisible controls among them."""
    return {
        char
        for char in set(text)
        if unicodedata.category(char) in INVISIBLE or not _has_glyph(char, font)
    }


def find_font(text: str, fonts: Sequence[Path]) -> Path | None:
    """Pick the first font that writes the whole text, or None."""
    return next((font for font in fonts if not missing_glyphs(text, font)), None)


def writable(text: str, fonts: Sequence[Path] = (FONT_FILE,)) -> str:
    """Spell what no font can write as code points, `[U+9F98]`, and say so in the log.

    Line breaks and tabs become spaces; neighbours share one bracket.
    """
    text = " ".join(text.replace("\t", " ").splitlines())
    missing = set.intersection(*(missing_glyphs(text, font) for font in fonts))
    if not missing:
        return text
    codes = sorted(f"U+{ord(char):04X}" for char in missing)
    log.warning(
        "No font at hand can write %d characters; they are spelt as code points. "
        "Put a font that has them into the fonts folder. codes=%s",
        len(codes),
        ",".join(codes[:20]),
    )
    spelt: list[str] = []
    run: list[str] = []
    for char in [*text, ""]:
        if char in missing:
            run.append(f"U+{ord(char):04X}")
            continue
        if run:
            spelt.append(f"[{' '.join(run)}]")
            run = []
        spelt.append(char)
    return "".join(spelt)


def lay_out_fonts(folder: Path) -> None:
    """Put the bundled font and its licence into a results folder, leaving a user's files alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (FONT_FILE, LICENCE_FILE):
        target = folder / source.name
        if not target.exists():
            shutil.copyfile(source, target)


def user_fonts(folder: Path) -> tuple[Path, ...]:
    """List the fonts a user dropped into a results folder; ConfigError for an unreadable one."""
    if not folder.is_dir():
        return ()
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in FONT_SUFFIXES and path.name != FONT_FILE.name
    ]
    for path in found:
        load_font(path, PROBE_SIZE)
    return tuple(found)
