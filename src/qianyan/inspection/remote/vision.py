"""Ask a model behind an OpenAI-compatible endpoint about pictures."""

import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

from PIL import Image

from qianyan.errors import EndpointError
from qianyan.inputs.grounding import Markup, Notation
from qianyan.inputs.images import smart_resize
from qianyan.inspection.remote.chat_endpoint import ChatEndpoint, Patience, RefusedError
from qianyan.inspection.remote.completions import (
    collect,
    options_sent,
    refused_option,
    to_answer,
    to_body,
    to_data_url,
)
from qianyan.inspection.remote.profile import EndpointProfile, find_profile, guess_profile
from qianyan.inspection.vision import Answer, Ask, least_pixels

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

    def seen_wh(
        self, photo_wh: tuple[int, int], visual_tokens: int | None = None
    ) -> tuple[int, int]:
        """Tell in which size a picture is sent."""
        profile = self.profile
        if visual_tokens is not None:
            most = min(visual_tokens * profile.factor**2, profile.max_pixels)
            least = least_pixels(profile.min_pixels, most)
            profile = replace(profile, min_pixels=least, max_pixels=most)
        return pinned_size(profile, photo_wh)

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        """Count the visual tokens of a picture sent in this size, by the profile's factor."""
        return math.ceil(seen_wh[0] / self.profile.factor) * math.ceil(
            seen_wh[1] / self.profile.factor
        )

    def ask(self, ask: Ask) -> Answer:
        """Answer one question."""
        seen_wh = self.seen_wh(ask.image.size, ask.visual_tokens)
        sent = ask.image.convert("RGB")
        if sent.size != seen_wh:
            sent = sent.resize(seen_wh, Image.Resampling.BICUBIC)
        return self._answer(ask, to_data_url(sent), seen_wh)

    def ask_unresized(self, ask: Ask) -> Answer:
        """Answer one question about the picture exactly as it is, which the server may resize."""
        url = to_data_url(ask.image.convert("RGB"), is_lossless=True)
        return self._answer(ask, url, ask.image.size)

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer several questions, up to `concurrency` of them at once."""
        if len(asks) < 2:
            return [self.ask(ask) for ask in asks]
        with ThreadPoolExecutor(min(self._concurrency, len(asks))) as pool:
            return list(pool.map(self.ask, asks))

    def _answer(self, ask: Ask, picture_url: str, seen_wh: tuple[int, int]) -> Answer:
        """Ask about a picture that is sent in this size."""
        answer = to_answer(self._complete(ask, picture_url), seen_wh, self.model)
        usage = replace(answer.usage, visual_tokens=self.count_tokens(seen_wh))
        return replace(answer, usage=usage)

    def _complete(self, ask: Ask, picture_url: str) -> dict[str, Any]:
        """Send a question; leave out what the endpoint refuses, and remember what that was.

        A refusal that stays has another reason: then nothing is remembered.
        """
        profile = self.profile
        left_out: list[str] = []
        while True:
            try:
                reply = self._send(ask, picture_url, profile)
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

    def _send(self, ask: Ask, picture_url: str, profile: EndpointProfile) -> dict[str, Any]:
        """Send a question once; a stream is closed when it has said enough."""
        body = to_body(ask, picture_url, profile)
        if ask.max_objects is None or "has_stream" not in options_sent(ask, profile):
            return self.endpoint.chat(body)
        with closing(self.endpoint.stream(body)) as deltas:
            return collect(deltas, ask.max_objects)


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
