"""Read text without a model that sees: PP-OCR through rapidocr, which brings its weights along.

Chinese and English in one; other scripts need other weights, which are not fetched. It finds lines
and reads them, so it serves the tasks that ask for text or for text with places.
"""

import threading
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from qianyan.errors import InputError, MediaError
from qianyan.inputs.grounding import PhotoQuad
from qianyan.server.extraction import Extraction, ExtractionOptions, to_words
from qianyan.server.ocr_places import Line
from qianyan.server.ocr_turning import Degrees, turned

TASKS = ("text_recognition", "multi_lan", "advanced_recognition")
LEAST_SCORE = 0.5
"""Lines that the reader is less sure of are left out, as its own makers do."""


TALL = 1.5
"""From this ratio of height to width on the reader takes a line to lie on its side."""
SURE_SCORE = 0.9
"""Lines that read this well are the right way up."""


class OfflineReader:
    """The reader; loaded with the first picture, used by one thread at a time."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()

    def extract(self, image: Image.Image, options: ExtractionOptions) -> Extraction:
        """Read an upright RGB picture.

        Raises InputError for a task that needs a model that sees; MediaError as `read`.
        """
        self.check_task(options)
        lines = self.read(image)
        text = "\n".join(line.text for line in lines)
        if options.task != "advanced_recognition":
            return Extraction(text=text)
        return to_words(lines, text)

    def check_task(self, options: ExtractionOptions) -> None:
        """Raise InputError for a task that needs a model, before anything is read for it."""
        if options.task not in TASKS:
            raise InputError(
                f"The task {options.task} needs a model that reads pictures, and none is loaded; "
                f"expected {', '.join(TASKS)}, or a server with such a model."
            )

    def read(self, image: Image.Image) -> list[Line]:
        """Read the lines of an upright RGB picture, from top to bottom; none is a statement.

        Raises MediaError missing_extra without the extra.
        """
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

    def find_turn(self, image: Image.Image) -> Degrees:
        """Tell by how much an RGB picture has to be turned clockwise for its text to stand upright.

        0 where there is no text. Raises MediaError as `read`.
        """
        lies, score = self._look(image)
        first: Degrees = 270 if lies else 0
        if score >= SURE_SCORE or score == 0:
            return first
        other: Degrees = 90 if lies else 180
        return other if self._look(turned(image, 180))[1] > score else first

    def _look(self, image: Image.Image) -> tuple[bool, float]:
        """Read lines as they lie: whether most are on their side, and how well they read, 0 to 1.

        A line on its side is read as if its upper end were on the right.
        """
        pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        with self._one_at_a_time:
            found = self._reader(pixels, use_cls=False, text_score=0.0)
        if found.boxes is None:
            return False, 0.0
        across = np.linalg.norm(found.boxes[:, 1] - found.boxes[:, 0], axis=1)
        down = np.linalg.norm(found.boxes[:, 3] - found.boxes[:, 0], axis=1)
        lying = down > TALL * across
        lengths = np.maximum(across, down)
        lies = bool(lengths[lying].sum() > lengths[~lying].sum())
        scores, kept = np.asarray(found.scores), lying == lies
        return lies, float(np.average(scores[kept], weights=lengths[kept]))

    @cached_property
    def _reader(self) -> Any:
        try:
            from rapidocr import RapidOCR  # noqa: PLC0415  (extra: ocr)
        except ImportError as error:
            raise MediaError(
                "Reading text in pictures without a model that reads them needs the extra: "
                "pip install 'qianyan[ocr]'.",
                code="missing_extra",
            ) from error
        return RapidOCR(params={"Global.log_level": "critical"})


def _inside(box: np.ndarray, size: tuple[int, int]) -> PhotoQuad:
    """Round corners to pixels of the picture."""
    farthest = np.array(size) - 1
    (a, b), (c, d), (e, f), (g, h) = np.clip(np.rint(box), 0, farthest).astype(int).tolist()
    return (a, b), (c, d), (e, f), (g, h)
