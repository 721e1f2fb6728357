"""Box things in a picture, and draw the boxes into a copy of it.

Usage: python examples/box.py PICTURE [MODEL] [WHAT]
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

import qianyan


def main(picture: str, model: str = "bundled", what: str = "fire") -> None:
    """Print one box for each thing, and save PICTURE-boxed.png beside the picture."""
    photo = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    reader = qianyan.Reader(qianyan.Engine(model), lang="en", max_objects=5)
    try:
        boxes = reader.find(photo, [what])
    except qianyan.ReplyError as error:
        print(f"No answer: {error}")
        return
    pen = ImageDraw.Draw(photo)
    for number, found in enumerate(boxes, 1):
        print(f"{number}. {found.label} at {list(found.box)}")
        pen.rectangle(found.box, outline="red", width=3)
    boxed = Path(picture).with_name(f"{Path(picture).stem}-boxed.png")
    photo.save(boxed)
    print(f"{len(boxes)} found, drawn into {boxed.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
