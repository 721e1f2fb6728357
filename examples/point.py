"""Point at things in a picture.

Usage: python examples/point.py PICTURE [MODEL] [WHAT]
"""

import sys

import qianyan


def main(picture: str, model: str = "bundled", what: str = "fire") -> None:
    """Print one pixel of the picture for each thing."""
    reader = qianyan.Reader(qianyan.Engine(model), lang="en", max_objects=5)
    try:
        points = reader.point(picture, [what])
    except qianyan.ReplyError as error:
        print(f"No answer: {error}")
        return
    for number, found in enumerate(points, 1):
        print(f"{number}. {found.label} at ({found.x}, {found.y})")
    print(f"{len(points)} found")


if __name__ == "__main__":
    main(*sys.argv[1:])
