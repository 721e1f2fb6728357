"""Ask a model behind an OpenAI-compatible endpoint about pictures."""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL import Image

from qianyan.errors import EndpointError
from qianyan.inputs.grounding import Markup, Notation
from qianyan.inputs.images import smart_resize
from qianyan.inspection.completions import (
    refused_option,
    to_answer,
    to_body,
    to_data_url,
)
from qianyan.inspection.profile import EndpointProfile, find_profile, guess_profile
from qianyan.inspection.remote import ChatEndpoint, Patience, RefusedError
from qianyan.inspection.vision import Answer, Ask

# Hosted models named qwen-vl-plus, -max or -ocr are of later generations.
_FIRST_GENERATION = re.compile(r"qwen[-_ ]?vl([-_ ]?(chat|v1)|$)")
_BAD_REQUEST_STATUS = frozenset({400, 404, 415, 422, 501})


class RemoteVision:
    """A model behind an OpenAI-compatible endpoint.

    Pictures are resized here, to multiples of the profile's factor within its limits, so that the
    server's own resizing changes nothing and its boxes come back in a space we know. A schema or
    log-probabilities that the endpoint refuses are left out from then on.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        profile: EndpointProfile | None = None,
        patience: Patience | None = None,
        concurrency: int = 4,
    ) -> None:
        """Get ready to ask; without `model` the endpoint is asked for its first one.

        Without `profile` the saved one is used, or one guessed from the model's name. Raises
        EndpointError when the profile says that the model's boxes cannot be placed.
        """
        self.endpoint = ChatEndpoint(base_url, api_key, patience=patience, concurrency=concurrency)
        self._concurrency = concurrency
        address = self.endpoint.base_url
        self.model = model or (profile.model if profile else self.endpoint.first_model())
        known = profile or find_profile(address, self.model) or guess_profile(address, self.model)
        self.profile = replace(known, model=self.model)
        if not self.profile.can_place_boxes:
            raise EndpointError(
                f"The boxes of {self.model} at {address} cannot be placed: no way of reading its "
                f"coordinates fits better than an IoU of {self.profile.iou:.2f}. Use another "
                "model, or run 'qianyan doctor' again after changing the server."
            )
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name at the endpoint."""
        return self.model

    @property
    def notation(self) -> Notation:
        """What the numbers of its boxes mean."""
        return self.profile.notation

    @property
    def markup(self) -> Markup:
        """How it was trained to write places into an answer, going by its name."""
        return Markup.REF if _FIRST_GENERATION.search(self.model.lower()) else Markup.JSON

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size a picture is sent."""
        return pinned_size(self.profile, photo_wh)

    def ask(self, ask: Ask) -> Answer:
        """Answer one question."""
        seen_wh = self.seen_wh(ask.image.size)
        sent = ask.image.convert("RGB")
        if sent.size != seen_wh:
            sent = sent.resize(seen_wh, Image.Resampling.BICUBIC)
        return to_answer(self._complete(ask, to_data_url(sent)), seen_wh, self.model)

    def ask_unresized(self, ask: Ask) -> Answer:
        """Answer one question about the picture exactly as it is, which the server may resize."""
        url = to_data_url(ask.image.convert("RGB"), is_lossless=True)
        return to_answer(self._complete(ask, url), ask.image.size, self.model)

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer several questions, up to `concurrency` of them at once."""
        if len(asks) < 2:
            return [self.ask(ask) for ask in asks]
        with ThreadPoolExecutor(min(self._concurrency, len(asks))) as pool:
            return list(pool.map(self.ask, asks))

    def _complete(self, ask: Ask, picture_url: str) -> dict[str, Any]:
        """Send a question; leave out what the endpoint refuses, and remember what that was.

        A refusal that stays has another reason: then nothing is remembered.
        """
        profile = self.profile
        left_out: list[str] = []
        while True:
            try:
                reply = self.endpoint.chat(to_body(ask, picture_url, profile))
            except RefusedError as error:
                option = refused_option(ask, profile, error.said)
                if error.status not in _BAD_REQUEST_STATUS or option is None:
                    raise
                left_out.append(option)
                profile = profile.without(option)
                continue
            if left_out:
                with self._lock:  # another thread may have found out something else
                    self.profile = self.profile.without(*left_out)
            return reply


def pinned_size(profile: EndpointProfile, photo_wh: tuple[int, int]) -> tuple[int, int]:
    """Give the (width, height) to send a picture in, so that the server has nothing to resize."""
    height, width = smart_resize(
        photo_wh[1],
        photo_wh[0],
        factor=profile.factor,
        min_pixels=profile.min_pixels,
        max_pixels=profile.max_pixels,
    )
    return width, height
