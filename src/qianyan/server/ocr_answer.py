"""An answer of the offline reader, followed like one of the model; it takes no seat of it."""

from collections.abc import AsyncIterator

from qianyan.engine.request import Finished, TokenText, Usage
from qianyan.inputs.images import Photo
from qianyan.inputs.media import Seen, SeenImage
from qianyan.server.answer import Event
from qianyan.server.extraction import Extraction
from qianyan.server.ocr_turning import Turn
from qianyan.server.searching import TurnsSoFar
from qianyan.server.told import Telling, Told

NO_TOKEN = -1
"""The id of a text that no model wrote."""


class OcrAnswer:
    """What was read, as one piece of text and the end."""

    def __init__(self, photo: Photo, turn: Turn, extraction: Extraction, telling: Telling) -> None:
        size = photo.rgb.size
        seen = Seen((SeenImage(size, size, photo.notes),))
        self.request = TurnsSoFar(
            prompt_token_ids=[], num_reasoning_tokens=0, num_cached_tokens=0, seen=seen
        )
        self._text = extraction.text
        self._told = Told(
            text=extraction.text,
            token_ids=[],
            prompt_token_ids=[],
            logprobs=None,
            finish_reason="stop",
            usage=Usage(prompt_tokens=0, completion_tokens=0, forwarded_tokens=0),
            images=seen.images,
            notes=("read by the offline reader (rapidocr), not by the model", *turn.notes),
            telling=telling,
            ocr_result=extraction.ocr_result,
        )

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._read()

    async def begun(self) -> None:
        """It has."""

    def leave(self) -> None:
        """It has ended."""

    async def _read(self) -> AsyncIterator[Event]:
        if self._text:
            yield TokenText(text=self._text, token_id=NO_TOKEN)
        yield Finished(completion=self._told)
