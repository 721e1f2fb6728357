"""From a plan to logits: lists become tensors, pictures become features, once for each request."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qianyan.engine.cache import DenseCache
from qianyan.engine.scheduler import Chunk, Plan
from qianyan.inputs.processor import ModelInputs
from qianyan.models.language_model import LanguageModel
from qianyan.models.positions import Grid, Positions


@dataclass
class Prompt:
    """What the runner knows of one request beside its token ids.

    `vision_rows` are the prompt's places for the features of pictures and videos. Pixels are let
    go as soon as the features exist.
    """

    positions: Positions
    vision_rows: Tensor  # (merged_tokens,)
    grid_thw: tuple[Grid, ...] = ()
    pixel_values: Tensor | None = None  # packed over all pictures and videos, in order
    vision_features: Tensor | None = None  # (merged_tokens, hidden)

    @property
    def num_patches(self) -> int:
        """Count the patches of all pictures and videos."""
        return sum(t * h * w for t, h, w in self.grid_thw)


class Runner:
    """Runs plans on one model; owns what is kept between the passes of a request."""

    def __init__(
        self, model: LanguageModel, *, device: torch.device, max_encode_patches: int
    ) -> None:
        self._model = model
        self._device = device
        self._max_encode_patches = max_encode_patches
        self._prompts: dict[int, Prompt] = {}
        self._cache = DenseCache()

    def to_prompt(self, inputs: ModelInputs) -> Prompt:
        """Place a prompt's tokens; raise InputError when tokens and pictures do not agree."""
        return Prompt(
            positions=self._model.place(
                inputs.prompt_token_ids, inputs.grid_thw, inputs.second_per_grid_ts
            ),
            vision_rows=self._model.vision_rows(torch.tensor(inputs.prompt_token_ids)),
            grid_thw=inputs.grid_thw,
            pixel_values=None
            if inputs.pixel_values is None
            else torch.from_numpy(inputs.pixel_values),
        )

    def add(self, request_id: int, prompt: Prompt) -> None:
        """Keep a prompt until its request is released."""
        self._prompts[request_id] = prompt

    def release(self, request_ids: Iterable[int]) -> None:
        """Let go of requests; unknown ids are fine."""
        for request_id in request_ids:
            self._prompts.pop(request_id, None)
            self._cache.release([request_id])

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Tensor:
        """Run the plan's tokens; return float logits (requests, vocab) for those that sample."""
        chunks = [(chunk, self._prompts[chunk.request.request_id]) for chunk in plan.chunks]
        self._encode([prompt for _, prompt in chunks if prompt.pixel_values is not None])
        input_ids = [
            token_id
            for chunk in plan.chunks
            for token_id in chunk.request.token_ids(chunk.start, chunk.stop)
        ]
        hidden = self._model.embed(torch.tensor(input_ids, device=self._device))  # (tokens, hidden)
        first, last_rows = 0, []
        for chunk, prompt in chunks:
            _place_features(hidden[first : first + chunk.stop - chunk.start], chunk, prompt)
            first += chunk.stop - chunk.start
            if chunk.is_last:
                last_rows.append(first - 1)
        position_ids = torch.cat(
            [prompt.positions.at(chunk.start, chunk.stop) for chunk, prompt in chunks], dim=1
        )  # (axes, tokens)
        return self._model(
            hidden,
            position_ids.to(self._device),
            self._cache.step(plan),
            torch.tensor(last_rows, dtype=torch.long, device=self._device),
        )

    def _encode(self, prompts: list[Prompt]) -> None:
        """Turn pixels into features, several requests at a time."""
        batch: list[Prompt] = []
        num_patches = 0
        for prompt in prompts:
            if batch and num_patches + prompt.num_patches > self._max_encode_patches:
                self._encode_together(batch)
                batch, num_patches = [], 0
            batch.append(prompt)
            num_patches += prompt.num_patches
        if batch:
            self._encode_together(batch)

    def _encode_together(self, prompts: list[Prompt]) -> None:
        pixel_values = [p.pixel_values for p in prompts if p.pixel_values is not None]
        grid_thw = [grid for prompt in prompts for grid in prompt.grid_thw]
        packed = pixel_values[0] if len(pixel_values) == 1 else torch.cat(pixel_values)
        features = self._model.encode_images(packed.to(self._device), grid_thw)
        counts = [len(prompt.vision_rows) for prompt in prompts]
        for prompt, own in zip(prompts, torch.split(features, counts), strict=True):
            prompt.vision_features, prompt.pixel_values = own, None


def _place_features(hidden: Tensor, chunk: Chunk, prompt: Prompt) -> None:
    """Put vision features at their rows of a chunk's hidden (tokens, hidden), in place."""
    if prompt.vision_features is None or chunk.start >= prompt.positions.prompt.shape[1]:
        return
    bounds = torch.tensor([chunk.start, chunk.stop])
    begin, end = torch.searchsorted(prompt.vision_rows, bounds).tolist()
    rows = (prompt.vision_rows[begin:end] - chunk.start).to(hidden.device)
    hidden[rows] = prompt.vision_features[begin:end].to(hidden.dtype)
