"""Read the text in a picture line by line, with the place of each line.

Usage: python examples/ocr.py PICTURE [MODEL]
"""

import sys

import qianyan


def main(picture: str, model: str = "bundled") -> None:
    """Print each line of text and its box."""
    reader = qianyan.Reader(qianyan.Engine(model), lang="en", max_objects=20)
    try:
        words = reader.read_words(picture)
    except qianyan.ReplyError as error:
        print(f"No answer: {error}")
        return
    for word in words:
        print(f"{list(word.box)} {word.text}")
    print(f"{len(words)} lines of text")


if __name__ == "__main__":
    main(*sys.argv[1:])
