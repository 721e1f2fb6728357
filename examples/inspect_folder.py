"""Inspect a folder of photos from Python and print what needs somebody's attention.

Usage: python examples/inspect_folder.py FOLDER [MODEL]
"""

import sys
from pathlib import Path

import qianyan


def main(folder: str, model: str = "bundled") -> None:
    """Print one line for each finding, failure and clean picture."""
    for verdict in qianyan.inspect([folder], model=model, lang="en"):
        name = Path(verdict.source).name
        if verdict.detections is None:
            print(f"{name}: NOT INSPECTED. {verdict.error.message}")
        for found in verdict.detections or ():
            score = "no score" if found.score is None else f"{found.score:.0%}"
            print(f"{name}: {found.label} {found.sub_label} at {found.box.as_list()} ({score})")
        if verdict.detections == ():
            print(f"{name}: nothing found (looked for {', '.join(verdict.checked)})")


if __name__ == "__main__":
    main(*sys.argv[1:])
