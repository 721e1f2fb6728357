"""From a plan to logits: lists become tensors, pictures become features, once for each request."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qianyan.engine.cache import DenseCache
from qianyan.engine.scheduler import Chunk, Plan
from qianyan.inputs.processor import ModelInputs
from qianyan.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration


@dataclass
class Prompt:
    """What the runner knows of one request beside its token ids.

    `position_ids` is (3, prompt_tokens); the answer's tokens continue at `next_position` on all
    axes. `image_rows` are the prompt's places for picture features. Pixels are let go as soon as
    the features exist.
    """

    position_ids: Tensor
    next_position: int
    image_rows: Tensor  # (merged_tokens,)
    grid_thw: tuple[tuple[int, int, int], ...] = ()
    pixel_values: Tensor | None = None  # (patches, channels*time*height*width)
    image_features: Tensor | None = None  # (merged_tokens, hidden)


class Runner:
    """Runs plans on one model; owns what is kept between the passes of a request."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, *, max_encode_patches: int
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._max_encode_patches = max_encode_patches
        self._prompts: dict[int, Prompt] = {}
        self._cache = DenseCache()

    def to_prompt(self, inputs: ModelInputs) -> Prompt:
        """Place a prompt's tokens; raise InputError when tokens and pictures do not agree."""
        position_ids = self._model.position_ids(inputs.prompt_token_ids, inputs.image_grid_thw)
        input_ids = torch.tensor(inputs.prompt_token_ids)
        is_image = input_ids == self._model.config.image_token_id
        return Prompt(
            position_ids=position_ids,
            next_position=int(position_ids.max()) + 1,
            image_rows=is_image.nonzero().squeeze(-1),
            grid_thw=inputs.image_grid_thw,
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
        position_ids = torch.cat([_positions(*pair) for pair in chunks], dim=1)  # (3, tokens)
        logits: Tensor = self._model(
            hidden,
            position_ids.to(self._device),
            self._cache.step(plan),
            torch.tensor(last_rows, dtype=torch.long, device=self._device),
        )
        return logits

    def _encode(self, prompts: list[Prompt]) -> None:
        """Turn pixels into features, several requests at a time."""
        batch: list[Prompt] = []
        num_patches = 0
        for prompt in prompts:
            assert prompt.pixel_values is not None
            if batch and num_patches + len(prompt.pixel_values) > self._max_encode_patches:
                self._encode_together(batch)
                batch, num_patches = [], 0
            batch.append(prompt)
            num_patches += len(prompt.pixel_values)
        if batch:
            self._encode_together(batch)

    def _encode_together(self, prompts: list[Prompt]) -> None:
        pixel_values = [p.pixel_values for p in prompts if p.pixel_values is not None]
        grid_thw = [grid for prompt in prompts for grid in prompt.grid_thw]
        features = self._model.encode_images(torch.cat(pixel_values).to(self._device), grid_thw)
        counts = [len(prompt.image_rows) for prompt in prompts]
        for prompt, own in zip(prompts, torch.split(features, counts), strict=True):
            prompt.image_features, prompt.pixel_values = own, None


def _place_features(hidden: Tensor, chunk: Chunk, prompt: Prompt) -> None:
    """Put picture features at their rows of a chunk's hidden (tokens, hidden), in place."""
    if prompt.image_features is None or chunk.start >= prompt.position_ids.shape[1]:
        return
    bounds = torch.tensor([chunk.start, chunk.stop])
    begin, end = torch.searchsorted(prompt.image_rows, bounds).tolist()
    rows = (prompt.image_rows[begin:end] - chunk.start).to(hidden.device)
    hidden[rows] = prompt.image_features[begin:end].to(hidden.dtype)


def _positions(chunk: Chunk, prompt: Prompt) -> Tensor:
    """Give a chunk's positions, (3, tokens)."""
    num_prompt_tokens = prompt.position_ids.shape[1]
    placed = prompt.position_ids[:, chunk.start : chunk.stop]
    begin = max(chunk.start, num_prompt_tokens)
    if begin >= chunk.stop:
        return placed
    offset = prompt.next_position - num_prompt_tokens
    answered = torch.arange(begin + offset, chunk.stop + offset).expand(3, -1)
    return torch.cat([placed, answered], dim=1)
