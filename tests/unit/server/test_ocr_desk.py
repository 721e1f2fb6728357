"""The offline reader's line: how many wait, and that who leaves gives the place back."""

import asyncio
import base64
import io
import threading
from typing import Any

import pytest
from PIL import Image

from qianyan.inputs.media import MediaLimits
from qianyan.server.errors import RefusedError
from qianyan.server.extraction import Extraction, ExtractionOptions, read_ocr_options
from qianyan.server.ocr_desk import OcrDesk
from qianyan.server.ocr_offline import OfflineReader

OPTIONS = read_ocr_options({"task": "text_recognition"})


class SlowReader(OfflineReader):
    """A reader that waits until it is told to go on; everything around it is real."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def extract(self, image: Image.Image, options: ExtractionOptions) -> Extraction:
        assert self.go_on.wait(30)
        return Extraction(text=f"{image.width}x{image.height} {options.task}")


def part() -> dict[str, Any]:
    held = io.BytesIO()
    Image.new("RGB", (40, 30)).save(held, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": uri}}


def test_more_than_may_wait_are_refused_and_later_taken() -> None:
    async def ask() -> None:
        desk, reader = OcrDesk(MediaLimits(), max_waiting=2), SlowReader()
        desk.reader = reader
        waiting = [asyncio.ensure_future(desk.extract(part(), OPTIONS)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as refused:
            await desk.extract(part(), OPTIONS)
        assert (refused.value.status, refused.value.retry_after_s) == (429, 5)
        waiting[1].cancel()
        reader.go_on.set()
        _, turn, extraction = await waiting[0]
        assert turn.degrees == 0
        assert extraction.text == "40x30 text_recognition"
        while True:  # the cancelled one gives its place back when its turn is over
            try:
                await desk.extract(part(), OPTIONS)
            except RefusedError:
                await asyncio.sleep(0.01)
            else:
                break
        desk.close()

    asyncio.run(asyncio.wait_for(ask(), 30))
