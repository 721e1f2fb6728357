"""Labels as tools write them: COCO's JSON, Pascal VOC's XML files, YOLO's text files.

Beyond plain COCO an image may have `labeled_categories`, the categories that somebody looked for
in it; without it, and in the other formats, every category of the data set counts: those that occur
in it, and in VOC's form those that labelmap.txt names. An annotation's `bbox_head` is the whole
head where `bbox` is only the hat; its `sub_label` is an attribute in VOC's form.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import yaml
from PIL import Image, UnidentifiedImageError

from qianyan.errors import ConfigError, quote
from qianyan.labels.photos import (
    Corners,
    Kind,
    LabelledBox,
    LabelledPhoto,
    find_kind,
    from_xywh,
    inside,
    known_kind,
)

logger = logging.getLogger(__name__)

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_LABEL_BYTES = 10_000_000
"""Largest file of one picture's labels."""
MOST_NAMED = 20


def read_labels(
    path: Path, *, images: Path | None = None, leave_out: Iterable[str] = ()
) -> list[LabelledPhoto]:
    """Read labels in whatever format they are: a COCO file, or a folder in VOC's or YOLO's form.

    Args:
        path: the file or folder.
        images: where the pictures lie; None looks in the usual places beside the labels.
        leave_out: classes of the data set that are none of ours.

    Raises ConfigError for what is none of these, has no photo, or a class that is not known.
    """
    others = frozenset(leave_out)
    if path.is_file():
        photos = read_coco(path, images=images, leave_out=others)
    elif (path / "Annotations").is_dir() or any(path.glob("*.xml")):
        photos = read_voc(path, images=images, leave_out=others)
    elif path.is_dir():
        photos = read_yolo(path, images=images, leave_out=others)
    else:
        raise ConfigError(
            f"{quote(path)} is not there; expected a COCO file, or a folder in VOC's or YOLO's "
            "form."
        )
    if not photos:
        raise ConfigError(f"{quote(path)} has no labelled photo; expected at least one.")
    return photos


def read_coco(
    path: Path, *, images: Path | None = None, leave_out: frozenset[str] = frozenset()
) -> list[LabelledPhoto]:
    """Read a COCO file.

    Its pictures lie in `images`; else in images/ beside it, or beside its folder annotations/; else
    beside it.
    """
    roots = (
        (path.parent, path.parent.parent) if path.parent.name == "annotations" else (path.parent,)
    )
    usual = (root / "images" for root in roots if (root / "images").is_dir())
    folder = images or next(usual, path.parent)
    try:
        data = json.loads(path.read_text("utf-8"))
        kinds = {
            category["id"]: find_kind(category["name"], where=quote(path.name), others=leave_out)
            for category in data["categories"]
        }
        named = {category["name"]: kinds[category["id"]] for category in data["categories"]}
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in data["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        return [
            _coco_photo(folder, image, by_image[image["id"]], kinds, named)
            for image in data["images"]
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{quote(path)} cannot be opened; expected a COCO-like file.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{quote(path)} is not a COCO-like annotation file; expected images, annotations "
            "and categories."
        ) from error


def _coco_photo(
    folder: Path,
    image: Mapping[str, Any],
    annotations: Iterable[Mapping[str, Any]],
    kinds: Mapping[Any, Kind | None],
    named: Mapping[str, Kind | None],
) -> LabelledPhoto:
    categories = image.get("labeled_categories", list(named))
    labelled = frozenset(kind for name in categories if (kind := named.get(name)) is not None)
    size = _coco_size(folder, image)
    boxes = (
        (kind, from_xywh(each["bbox"]), from_xywh(head) if head else None, each.get("sub_label"))
        for each in annotations
        if (kind := kinds[each["category_id"]]) in labelled and kind is not None
        for head in [each.get("bbox_head")]
    )
    return LabelledPhoto(
        path=folder / image["file_name"],
        width=size[0],
        height=size[1],
        labelled=labelled,
        boxes=tuple(_within(boxes, size, image["file_name"])),
        source=str(image.get("source", "")),
        tags=tuple(map(str, image.get("tags", ()))),
    )


def _coco_size(folder: Path, image: Mapping[str, Any]) -> tuple[int, int]:
    """Give a photo's width and height, from the file itself where the labels do not say."""
    if image.get("width") and image.get("height"):
        return int(image["width"]), int(image["height"])
    name = image["file_name"]
    try:
        with Image.open(folder / name) as photo:
            return photo.size
    except OSError as error:
        raise ConfigError(
            f"The size of {quote(name)} is neither in the labels nor can it be read from the file."
        ) from error


def read_voc(
    folder: Path, *, images: Path | None = None, leave_out: frozenset[str] = frozenset()
) -> list[LabelledPhoto]:
    """Read a folder of VOC's XML files, or one with Annotations/ and JPEGImages/."""
    inner = folder / "Annotations"
    labels = inner if inner.is_dir() else folder
    pictures = images or next(
        (one for one in (folder / "JPEGImages", folder / "images") if one.is_dir()), labels
    )
    read = [_voc_file(path) for path in sorted(labels.glob("*.xml"))]
    names = {thing.name for _, _, things in read for thing in things}
    kinds = {name: find_kind(name, where=quote(folder.name), others=leave_out) for name in names}
    labelled = frozenset(kind for kind in kinds.values() if kind is not None)
    labelled |= _voc_label_map(folder / "labelmap.txt", leave_out)
    return [
        LabelledPhoto(
            path=pictures / name,
            width=size[0],
            height=size[1],
            labelled=labelled,
            boxes=tuple(
                _within(
                    ((kinds[one.name], one.box, None, one.sub_label) for one in things), size, name
                )
            ),
        )
        for name, size, things in read
    ]


def _voc_label_map(path: Path, leave_out: frozenset[str]) -> frozenset[Kind]:
    """Read which of our kinds a data set looks for, from lines of name:colour:parts:actions."""
    if not path.is_file():
        return frozenset()
    lines = (line.strip() for line in _read_small(path).splitlines())
    named = {line.split(":")[0] for line in lines if line and not line.startswith("#")}
    known = (known_kind(name) for name in named - leave_out)
    return frozenset(kind for kind in known if kind is not None)


class _VocThing(NamedTuple):
    name: str
    box: Corners
    sub_label: str | None


def _voc_file(path: Path) -> tuple[str, tuple[int, int], list[_VocThing]]:
    """Read one XML file: the picture's name and size, and its things with their boxes."""
    text = _read_small(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError(f"{quote(path.name)} declares entities; expected plain VOC.")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  (no entities: refused above)
        size = (_number(root, "size/width"), _number(root, "size/height"))
        things = []
        for thing in root.iter("object"):
            corners = [float(thing.findtext(f"bndbox/{name}", "")) for name in _VOC_CORNERS]
            box = (corners[0], corners[1], corners[2], corners[3])
            things.append(_VocThing(thing.findtext("name", ""), box, _voc_sub_label(thing)))
    except (ElementTree.ParseError, ValueError) as error:
        raise ConfigError(
            f"{quote(path.name)} is not VOC; expected a size, and objects with a name and a bndbox."
        ) from error
    name = root.findtext("filename") or f"{path.stem}.jpg"
    return Path(name).name, size, things


def _voc_sub_label(thing: ElementTree.Element) -> str | None:
    """Find the sub-label among the attributes that CVAT's and datumaro's VOC has."""
    attributes = thing.iterfind("attributes/attribute")
    named = (each for each in attributes if each.findtext("name") == "sub_label")
    return next((each.findtext("value") or None for each in named), None)


_VOC_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _number(root: ElementTree.Element, where: str) -> int:
    return int(float(root.findtext(where, "")))


def read_yolo(
    folder: Path, *, images: Path | None = None, leave_out: frozenset[str] = frozenset()
) -> list[LabelledPhoto]:
    """Read YOLO's labels: data.yaml or classes.txt names the classes, labels/ beside images/.

    A picture without a file of labels shows nothing that was looked for, as YOLO's tools take it.
    Where there is a folder images/, what lies beside it is none of the data set.
    """
    names = _yolo_names(folder)
    kinds = [find_kind(name, where=quote(folder.name), others=leave_out) for name in names]
    labelled = frozenset(kind for kind in kinds if kind is not None)
    within = images or (folder / "images" if (folder / "images").is_dir() else folder)
    pictures = sorted(path for path in within.rglob("*") if path.suffix.lower() in PICTURES)
    photos = []
    for path in pictures:
        try:
            with Image.open(path) as image:
                size = image.size
        except (OSError, UnidentifiedImageError):
            logger.warning("left out: %s cannot be read as a picture", quote(path.name))
            continue
        things = _yolo_things(_yolo_labels(path, folder), kinds, size)
        boxes = tuple(_within(things, size, path.name))
        photos.append(LabelledPhoto(path, *size, labelled, boxes))
    return photos


def _yolo_names(folder: Path) -> list[str]:
    for path in (folder / "data.yaml", folder / "dataset.yaml"):
        if path.is_file():
            try:
                names = yaml.safe_load(_read_small(path))["names"]
            except (yaml.YAMLError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{quote(path.name)} has no names; expected the classes."
                ) from error
            ordered = [names[key] for key in sorted(names)] if isinstance(names, dict) else names
            return [str(name) for name in ordered]
    for path in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if path.is_file():
            return _read_small(path).strip().splitlines()
    raise ConfigError(
        f"{quote(folder)} has no data.yaml and no classes.txt; expected YOLO's class names, or "
        "VOC's XML files."
    )


def _yolo_labels(picture: Path, folder: Path) -> Path:
    """Name the labels of a picture: in labels/ where it lies in images/, else beside it."""
    parts = list(picture.relative_to(folder).parts) if picture.is_relative_to(folder) else []
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        return (folder / Path(*parts)).with_suffix(".txt")
    beside = picture.with_suffix(".txt")
    return beside if beside.is_file() else folder / "labels" / f"{picture.stem}.txt"


_Thing = tuple[Kind | None, Corners, Corners | None, str | None]


def _yolo_things(path: Path, kinds: list[Kind | None], size: tuple[int, int]) -> Iterator[_Thing]:
    """Yield the things of one file: class, middle and size as shares of the picture."""
    if not path.is_file():
        return
    width, height = size
    for number, line in enumerate(_read_small(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            index, *numbers = line.split()
            x, y, w, h = (float(each) for each in numbers)
            kind = kinds[int(index)]
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"{quote(path.name)}, line {number}, is {quote(line)}; expected a class from 0 to "
                f"{len(kinds) - 1}, the middle, width and height."
            ) from error
        corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width,
                   (y + h / 2) * height)  # fmt: skip
        yield kind, corners, None, None


def _within(things: Iterable[_Thing], size: tuple[int, int], name: str) -> Iterator[LabelledBox]:
    """Cut boxes to their photo; those wholly outside are left out and named."""
    for kind, box, head, sub_label in things:
        if kind is None:
            continue
        cut = inside(box, width=size[0], height=size[1])
        if cut is None:
            logger.warning("left out: a box of %s lies outside the photo %s", kind, quote(name))
            continue
        whole = None if head is None else inside(head, width=size[0], height=size[1])
        yield LabelledBox(kind, cut, whole, sub_label)


def _read_small(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_LABEL_BYTES:
            raise ConfigError(f"{quote(path.name)} has more than {MAX_LABEL_BYTES} bytes.")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{quote(path.name)} cannot be read; expected text.") from error
