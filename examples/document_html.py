"""Turn a picture of a document page into clean HTML with the place of every part.

Usage: python examples/document_html.py PICTURE [MODEL]

A skill of Qwen2.5-VL; the bundled model cannot do it and says so.
"""

import sys
from pathlib import Path

import qianyan


def main(picture: str, model: str = "bundled") -> None:
    """Print the parts of the page, and save PICTURE.html beside the picture."""
    reader = qianyan.Reader(qianyan.Engine(model), lang="en")
    try:
        page = reader.to_html(picture)
    except qianyan.ReplyError as error:
        print(f"No answer: {error}")
        return
    for element in page.elements:
        place = "nowhere" if element.box is None else list(element.box)
        print(f"{element.tag} {element.kind} at {place}: {element.text}")
    saved = Path(picture).with_suffix(".html")
    saved.write_text(page.html, encoding="utf-8")
    print(f"{len(page.elements)} parts, saved as {saved.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
