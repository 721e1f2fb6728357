"""Count things in a picture by boxing each one first.

Usage: python examples/count.py PICTURE [MODEL] [WHAT]
"""

import sys

import qianyan


def main(picture: str, model: str = "bundled", what: str = "person") -> None:
    """Print the number of boxes, and whether the model says the same number."""
    reader = qianyan.Reader(qianyan.Engine(model), lang="en", max_objects=5)
    try:
        count = reader.count(picture, [what])
    except qianyan.ReplyError as error:
        print(f"No answer: {error}")
        return
    print(f"{count.number} boxed as {what}")
    if not count.agrees:
        print(f"But the model says {count.stated}: look again.")


if __name__ == "__main__":
    main(*sys.argv[1:])
