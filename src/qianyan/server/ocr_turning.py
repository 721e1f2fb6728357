"""Pictures that lie on their side or upside down: turned to be read, their places brought back.

Text on its side is told by the shape of its lines, text upside down by how badly it reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from qianyan.inputs.grounding import PhotoPoint, PhotoQuad, Size
from qianyan.server.ocr_places import Line

Degrees = Literal[0, 90, 180, 270]
_TRANSPOSES = {
    90: Image.Transpose.ROTATE_270,  # Pillow counts the other way round
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


def turned(image: Image.Image, degrees: int) -> Image.Image:
    """Turn a picture clockwise by a multiple of 90 degrees."""
    return image.transpose(_TRANSPOSES[degrees]) if degrees else image


@dataclass(frozen=True)
class Turn:
    """By how much a picture was turned clockwise to be read, and its width and height before."""

    degrees: Degrees
    sent_wh: Size

    @property
    def notes(self) -> tuple[str, ...]:
        """Say so, where it was turned."""
        if not self.degrees:
            return ()
        return (f"the picture was turned clockwise by {self.degrees} degrees to be read",)

    def to_sent(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the places of an ocr_result back to the picture as it was before."""
        if not self.degrees or "words_info" not in result:
            return dict(result)
        words = [
            Line(text=word["text"], corners=self._corners(word["location"])).to_json()
            for word in result["words_info"]
        ]
        return {**result, "words_info": words}

    def _corners(self, location: list[int]) -> PhotoQuad:
        a, b, c, d, e, f, g, h = location
        return self._point(a, b), self._point(c, d), self._point(e, f), self._point(g, h)

    def _point(self, x: int, y: int) -> PhotoPoint:
        width, height = self.sent_wh
        back = {90: (y, height - x), 180: (width - x, height - y), 270: (width - y, x)}
        return back[self.degrees]
