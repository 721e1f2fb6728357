"""Read named fields off a picture of a form, a receipt or a sign.

Usage: python examples/extract_fields.py PICTURE [MODEL] [FIELD,FIELD,...]
"""

import sys

import qianyan


def main(picture: str, model: str = "bundled", fields: str = "title,date,number") -> None:
    """Print each field and its value; a field that is not in the picture has none."""
    reader = qianyan.Reader(qianyan.Engine(model), lang="en")
    try:
        values = reader.extract(picture, fields.split(","))
    except qianyan.ReplyError as error:
        print(f"No answer: {error}")
        return
    for name, value in values.items():
        print(f"{name}: {'not in the picture' if value is None else value}")


if __name__ == "__main__":
    main(*sys.argv[1:])
