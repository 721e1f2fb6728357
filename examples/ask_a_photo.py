"""Ask a model about a photo and print the answer as it is written.

Usage: python examples/ask_a_photo.py PHOTO [QUESTION] [MODEL]
"""

import sys

import qianyan


def main(
    photo: str, question: str = "Describe this picture in one sentence.", model: str = "bundled"
) -> None:
    """Print the answer piece by piece."""
    engine = qianyan.Engine(model)
    parts = [
        {"type": "image_url", "image_url": {"url": photo}},
        {"type": "text", "text": question},
    ]
    for event in engine.stream([{"role": "user", "content": parts}], max_tokens=64):
        print(getattr(event, "text", "\n"), end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
