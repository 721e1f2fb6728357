"""What is on disk: every model with its size, its licence, and whether it is all there.

A licence is read from the front matter of the model's README, else from its LICENSE. What the two
names of a licence say about commercial use is stated only for licences whose text is known:
Apache-2.0 and MIT; Qwen RESEARCH LICENSE AGREEMENT ("for non-commercial purposes only"); Qwen and
Tongyi Qianwen LICENSE AGREEMENT (a licence must be requested above 100 million monthly active
users). Everything else is for the user to read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qianyan.engine.checkpoint import BUNDLED, BUNDLED_FOLDER
from qianyan.engine.folder import is_complete, size_bytes
from qianyan.engine.places import Place, all_places
from qianyan.errors import ConfigError
from qianyan.models.registry import read_config_json

README = "README.md"
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
READ_CHARACTERS = 1 << 16  # of a README or LICENSE; both begin with what matters
UNKNOWN = "unknown; read the licence before use"


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A model's licence; `is_commercial` None is unknown, `note` says what to mind."""

    id: str
    name: str
    is_commercial: bool | None
    note: str


APACHE = Licence(
    id="apache-2.0", name="Apache License 2.0", is_commercial=True, note="commercial use allowed"
)
MIT = Licence(id="mit", name="MIT License", is_commercial=True, note="commercial use allowed")
QWEN_RESEARCH = Licence(
    id="qwen-research",
    name="Qwen Research Licence",
    is_commercial=False,
    note="NON-COMMERCIAL: research and evaluation only; commercial use needs a licence from Qwen",
)
TONGYI_RESEARCH = replace(
    QWEN_RESEARCH, id="tongyi-qianwen-research", name="Tongyi Qianwen Research Licence"
)
QWEN = Licence(
    id="qwen",
    name="Qwen Licence",
    is_commercial=True,
    note="commercial use with conditions: above 100 million monthly active users request a licence",
)
TONGYI = replace(QWEN, id="tongyi-qianwen", name="Tongyi Qianwen Licence")

# By the id or name that a README states, longest first: "qwen-research" before "qwen".
STATED = {
    "tongyi-qianwen-research": TONGYI_RESEARCH,
    "tongyi-qianwen": TONGYI,
    "qwen-research": QWEN_RESEARCH,
    "qwen": QWEN,
    "apache-2.0": APACHE,
    "mit": MIT,
}
ENDINGS = ("", "-license", "-license-agreement")
# By the title of a LICENSE, in capitals without the spaces.
TITLES = {
    "TONGYIQIANWENRESEARCHLICENSEAGREEMENT": TONGYI_RESEARCH,
    "TONGYIQIANWENLICENSEAGREEMENT": TONGYI,
    "QWENRESEARCHLICENSEAGREEMENT": QWEN_RESEARCH,
    "QWENLICENSEAGREEMENT": QWEN,
    "APACHELICENSEVERSION2.0": APACHE,
    "MITLICENSE": MIT,
}
TITLE_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class ModelOnDisk:
    """A model that lies on disk, or a part of one; `source` is a hub, "bundled" or "folder"."""

    name: str
    folder: Path
    source: str
    architecture: str | None
    size_bytes: int
    licence: Licence | None
    is_complete: bool


def list_models() -> list[ModelOnDisk]:
    """List the models on disk: the bundled pair, both hubs' caches, folders pulled elsewhere.

    A model without weights of a kind that is read here is listed as incomplete.
    """
    return [_bundled(), *sorted(_pulled(), key=lambda model: (model.name, model.source))]


def _bundled() -> ModelOnDisk:
    judge = BUNDLED_FOLDER / "judge"
    return ModelOnDisk(
        name=BUNDLED,
        folder=BUNDLED_FOLDER,
        source=BUNDLED,
        architecture=read_architecture(judge),
        size_bytes=size_bytes(BUNDLED_FOLDER),
        licence=read_licence(BUNDLED_FOLDER),
        is_complete=is_complete(judge) and is_complete(BUNDLED_FOLDER / "detector"),
    )


def _pulled() -> Iterator[ModelOnDisk]:
    for place in all_places():
        architecture = read_architecture(place.folder)
        if architecture is not None or _has_weights(place):
            yield ModelOnDisk(
                name=place.name,
                folder=place.folder,
                source=place.source,
                architecture=architecture,
                size_bytes=size_bytes(place.folder),
                licence=read_licence(place.folder),
                is_complete=is_complete(place.folder),
            )


def _has_weights(place: Place) -> bool:
    """Say whether a folder holds safetensors or the begun transfer of some model's file."""
    return any(place.folder.rglob("*.safetensors")) or any(place.folder.rglob("*.incomplete"))


def read_architecture(folder: Path) -> str | None:
    """Read the class that config.json names; None when it names none."""
    try:
        config = read_config_json(folder)
    except (ConfigError, OSError):
        return None
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else config.get("model_type")
    return name if isinstance(name, str) else None


def read_licence(folder: Path) -> Licence | None:
    """Read a model's licence; None when its folder states none.

    Where README and LICENSE disagree about commercial use, it is taken to be forbidden. The bundled
    models are under the package's own licence.
    """
    if folder.is_relative_to(BUNDLED_FOLDER):
        return APACHE
    stated, written = _stated_licence(folder), _written_licence(folder)
    if stated is None or written is None:
        return stated or written
    if stated.is_commercial is None:
        return written
    if stated.is_commercial and written.is_commercial is False:
        return replace(written, note=f"{written.note} (its README says {stated.id})")
    return stated


def _stated_licence(folder: Path) -> Licence | None:
    """Read `license` and `license_name` from a README's front matter."""
    text = _read(folder / README)
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    fields = dict(_front_matter(match[1])) if match else {}
    name = fields.get("license_name") or fields.get("license")
    if name is None:
        return None
    word = name.lower().replace(" ", "-").replace("_", "-")
    for id_, licence in STATED.items():
        if any(word == id_ + ending for ending in ENDINGS):
            return licence
    link = fields.get("license_link")
    return Licence(
        id=name, name=name, is_commercial=None, note=f"{UNKNOWN}: {link}" if link else UNKNOWN
    )


def _front_matter(text: str) -> Iterator[tuple[str, str]]:
    """Yield the plain fields of a YAML head; a value may stand on the line below, as in a list."""
    lines = text.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        match = re.fullmatch(r"(license|license_name|license_link)\s*:\s*(.*)", line)
        if match:
            value = match[2].strip()
            if value in ("", "|", ">", "|-", ">-"):
                value = below.strip().removeprefix("- ") if below[:1] in (" ", "-") else ""
            value = value.strip().strip("'\"[]").strip()
            if value:
                yield match[1], value[:200]


def _written_licence(folder: Path) -> Licence | None:
    """Tell a licence by the title of its text."""
    for name in LICENCE_FILES:
        text = _read(folder / name)
        title = "".join(text.split()).upper()[:TITLE_CHARACTERS].replace(",", "").strip("#*")
        if title:
            for start, licence in TITLES.items():
                if title.startswith(start):
                    return licence
            first = next(line.strip() for line in text.splitlines() if line.strip())[:80]
            return Licence(id="other", name=first, is_commercial=None, note=f"{UNKNOWN}: {name}")
    return None


def _read(file: Path) -> str:
    """Read the beginning of a text file; empty when there is none."""
    try:
        with file.open(encoding="utf-8", errors="replace") as text:
            return text.read(READ_CHARACTERS)
    except OSError:
        return ""
