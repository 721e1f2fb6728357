"""Read text without a model that sees: PP-OCR through rapidocr, which brings its weights along.

Chinese and English in one; other scripts need other weights, which are not fetched. It finds lines
and reads them, so it serves the tasks that ask for text or for text with places.
"""

import threading
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from qianyan.errors import ConfigError, InputError
from qianyan.inputs.grounding import PhotoQuad
from qianyan.server.extraction import Extraction, ExtractionOptions, to_words
from qianyan.server.ocr_places import Line

TASKS = ("text_recognition", "advanced_recognition")
LEAST_SCORE = 0.5
"""Lines that the reader is less sure of are left out, as its own makers do."""


class OfflineReader:
    """The reader; loaded with the first picture, used by one thread at a time."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()

    def extract(self, image: Image.Image, options: ExtractionOptions) -> Extraction:
        """Read an upright RGB picture.

        Raises InputError for a task that needs a model that sees, ConfigError without the extra.
        """
        if options.task not in TASKS:
            raise InputError(
                f"The task {options.task} needs a model that sees pictures, and none is loaded; "
                f"expected {' or '.join(TASKS)}."
            )
        lines = self.read(image)
        text = "\n".join(line.text for line in lines)
        if options.task == "text_recognition":
            return Extraction(text=text)
        return to_words(lines, text)

    def read(self, image: Image.Image) -> list[Line]:
        """Read the lines of an upright RGB picture, from top to bottom; none is a statement."""
        pixels = np.asarray(image)[:, :, ::-1]  # it expects BGR
        with self._one_at_a_time:
            found = self._reader(np.ascontiguousarray(pixels))
        if found.boxes is None:
            return []
        return [
            Line(text=text, corners=_inside(box, image.size))
            for box, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
            if text.strip() and score >= LEAST_SCORE
        ]

    @cached_property
    def _reader(self) -> Any:
        try:
            from rapidocr import RapidOCR  # noqa: PLC0415  (extra: ocr)
        except ImportError as error:
            raise ConfigError(
                "Reading text without a model that sees needs the extra: "
                "pip install 'qianyan[ocr]'."
            ) from error
        return RapidOCR(params={"Global.log_level": "critical"})


def _inside(box: np.ndarray, size: tuple[int, int]) -> PhotoQuad:
    """Round corners to pixels of the picture."""
    farthest = np.array(size) - 1
    (a, b), (c, d), (e, f), (g, h) = np.clip(np.rint(box), 0, farthest).astype(int).tolist()
    return (a, b), (c, d), (e, f), (g, h)
