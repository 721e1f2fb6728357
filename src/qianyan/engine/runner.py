"""From a plan to logits: lists become tensors, pictures and sounds features, once for each.

What a tower takes by itself is a medium of its own here: each temporal patch of a video, and each
block of a sound. So what goes on shares its beginning with what it was before.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import itemgetter

import torch
from torch import Tensor

from qianyan.engine.cache import FeatureCache, PagedCache
from qianyan.engine.faults import features_error
from qianyan.engine.graphs import CudaCapture, Decoding, FixedSteps, Row
from qianyan.engine.options import PromptSize
from qianyan.engine.plan import Chunk, Plan
from qianyan.engine.request import Request
from qianyan.engine.upload import Upload
from qianyan.errors import InputError, QianyanError
from qianyan.inputs.processor import ModelInputs
from qianyan.models.language_model import LanguageModel
from qianyan.models.omni.thinker import Thinker
from qianyan.models.positions import Grid, Positions

MAX_FEATURE_BYTES = 128 * 2**20
"""Features of media that stay for later questions; the least recently used go."""


@dataclass(frozen=True)
class Medium:
    """A picture, a moment of a video or a block of a sound, and what tells it from others.

    `values` are its own packed pixels, or its mel frames where there is no grid; `rows` are its
    places in the prompt, ascending.
    """

    digest: bytes
    values: Tensor
    grid_thw: Grid | None = None
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def num_patches(self) -> int:
        """Count the patches, or what costs a sound's tower as much: two mel frames."""
        return len(self.values) // 2 if self.grid_thw is None else math.prod(self.grid_thw)

    @property
    def described(self) -> str:
        """Name it with its size."""
        if self.grid_thw is None:
            return f"a sound of {len(self.values) / 100:g} seconds"
        return f"a picture or frames of a video, {self.num_patches} patches"


@dataclass
class Prompt:
    """What the runner knows of one request beside its token ids.

    `rows` are the prompt's places for the features of media, ascending, and `features` are sorted
    like them; those of a video and of its sound are mixed. Pixels and mel frames are let go as soon
    as their features exist. Where no pass has needed them, as a beginning was known, they stay.
    """

    positions: Positions
    rows: Tensor  # (features,)
    media: tuple[Medium, ...] = ()  # what is seen, then what is heard, until features exist
    looks: tuple[tuple[int, bytes], ...] = ()  # first row and digest of each medium, ascending
    num_heard: int = 0  # rows that are heard
    features: Tensor | None = None  # (features, hidden)

    @property
    def size(self) -> PromptSize:
        """Count the tokens."""
        return PromptSize(
            num_tokens=self.positions.prompt.shape[1],
            num_vision_tokens=len(self.rows) - self.num_heard,
            num_audio_tokens=self.num_heard,
        )

    def waiting(self, start: int, stop: int) -> tuple[Medium, ...]:
        """List the media from `start` on that have no features yet, if `stop` needs any of them."""
        ahead = tuple(one for one in self.media if one.rows[-1] >= start)
        needed = any(bool(((one.rows >= start) & (one.rows < stop)).any()) for one in ahead)
        return ahead if needed else ()

    def take(self, known: Mapping[bytes, Tensor]) -> None:
        """Take features of the media, and let go of what they were made of."""
        for medium in self.media:
            own = known.get(medium.digest)
            if own is None:
                continue
            if len(own) == len(self.rows):
                self.features = own
                continue
            if self.features is None:
                self.features = own.new_zeros(len(self.rows), own.shape[1])
            first, last = torch.searchsorted(self.rows, medium.rows[[0, -1]]).tolist()
            if last - first == len(own) - 1:
                self.features[first : last + 1] = own
            else:  # between those of another medium
                self.features[torch.searchsorted(self.rows, medium.rows).to(own.device)] = own
        self.media = tuple(one for one in self.media if one.digest not in known)

    def name_block(self, start: int, token_ids: list[int], before: bytes) -> bytes:
        """Say what the keys and values of a full block depend on, in 16 bytes.

        The key of the block before it, its tokens, and where they stand: positions hold a
        picture's shape and a video's time, and for the first generation the prompt's length; what
        pictures show and sounds say is in their digests.
        """
        stop = start + len(token_ids)
        name = hashlib.blake2b(before, digest_size=16)
        name.update(torch.tensor(token_ids).numpy().tobytes())
        name.update(self.positions.at(start, stop).contiguous().numpy().tobytes())
        # Those before have their part in the key before.
        first, last = (bisect_left(self.looks, row, key=itemgetter(0)) for row in (start, stop))
        for _, digest in self.looks[first:last]:
            name.update(digest)
        return name.digest()


class Runner:
    """Runs plans on one model; owns what is kept between the passes of a request."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        device: torch.device,
        max_encode_patches: int,
        num_blocks: int,
        decoding: Decoding,
    ) -> None:
        self._model = model
        self._ears = model if isinstance(model, Thinker) else None
        self._device = device
        self._upload = Upload(device)
        self._max_encode_patches = max_encode_patches
        self._prompts: dict[int, Prompt] = {}
        self._cache = PagedCache(num_blocks, device, is_batched=decoding != "alone")
        self._fixed_steps: FixedSteps | None = None
        if decoding in ("padded", "graphs"):
            capture = CudaCapture(device) if decoding == "graphs" else None
            self._fixed_steps = FixedSteps(model, self._cache, device=device, capture=capture)
        self._features = FeatureCache(MAX_FEATURE_BYTES)

    def to_prompt(self, inputs: ModelInputs) -> Prompt:
        """Place a prompt's tokens; raise InputError when tokens and media do not agree."""
        positions = self._model.place(
            inputs.prompt_token_ids, inputs.grid_thw, inputs.second_per_grid_ts
        )
        ids = torch.tensor(inputs.prompt_token_ids)
        media = _seen(inputs)
        grids = [medium.grid_thw for medium in media if medium.grid_thw is not None]
        rows = list(_split(self._model.vision_rows(ids), grids)) if media else []
        num_seen = sum(map(len, rows))
        if inputs.input_features is not None:
            heard = self._heard(inputs)
            rows += self._audio_rows(ids, heard)
            media += heard
        media = tuple(replace(one, rows=own) for one, own in zip(media, rows, strict=True))
        together = torch.cat(rows) if rows else ids.new_empty(0)
        looks = tuple(sorted((int(one.rows[0]), one.digest) for one in media))
        num_heard = len(together) - num_seen
        return Prompt(positions, together.sort().values, media, looks, num_heard)

    def _heard(self, inputs: ModelInputs) -> tuple[Medium, ...]:
        """Take a prompt's packed mel frames apart, and name each block by its content."""
        assert self._ears is not None, "sounds for a model that does not hear"
        audio = self._ears.config.audio
        sounds = torch.split(torch.from_numpy(inputs.input_features), list(inputs.num_audio_frames))
        blocks = [block for sound in sounds for block in torch.split(sound, audio.block_frames)]
        # The last frames of a sound may be too few for a token.
        whole = [block for block in blocks if audio.num_tokens(len(block))]
        return tuple(Medium(_digest(block, None), block) for block in whole)

    def _audio_rows(self, input_ids: Tensor, heard: Sequence[Medium]) -> list[Tensor]:
        """Give each sound's rows of a prompt."""
        assert self._ears is not None, "sounds for a model that does not hear"
        rows, counts = self._ears.audio_rows(input_ids), self._count_tokens(heard)
        if len(rows) != sum(counts):
            raise InputError(
                f"The prompt holds {len(rows)} places for sound; expected {sum(counts)}, one for "
                "each 40 ms."
            )
        return list(torch.split(rows, counts))

    def _count_tokens(self, heard: Sequence[Medium]) -> list[int]:
        assert self._ears is not None, "sounds for a model that does not hear"
        return [self._ears.config.audio.num_tokens(len(medium.values)) for medium in heard]

    def add(self, request_id: int, prompt: Prompt) -> None:
        """Keep a prompt until its request is released."""
        self._prompts[request_id] = prompt

    def release(self, request_ids: Iterable[int]) -> None:
        """Let go of requests; unknown ids are fine."""
        for request_id in request_ids:
            self._prompts.pop(request_id, None)

    @torch.inference_mode()
    def look(self, plan: Plan) -> None:
        """Turn the pictures that the plan's tokens stand for into features, once for each picture.

        A request whose pictures cannot be looked at gets its `error` set; the others go on.
        """
        pending = []
        for chunk in plan.chunks:
            prompt = self._prompts[chunk.request.request_id]
            if media := prompt.waiting(chunk.start, chunk.stop):
                pending.append((chunk.request, prompt, media))
        try:
            self._encode([(prompt, media) for _, prompt, media in pending])
        except (RuntimeError, MemoryError, QianyanError):
            for request, prompt, media in pending:
                self._look_alone(request, prompt, media)

    def _look_alone(self, request: Request, prompt: Prompt, media: Iterable[Medium]) -> None:
        """Look at one request's pictures one by one; where one fails, the request does."""
        known = self._features.find(medium.digest for medium in media)
        for medium in media:
            if medium.digest in known:
                continue
            try:
                known |= self._encode_together([medium])
            except (RuntimeError, MemoryError, QianyanError) as error:
                request.error = features_error(error, medium.described, self._device)
                return
        prompt.take(known)

    @torch.inference_mode()
    def look_again(self, prompt: Prompt) -> None:
        """Take in what no pass has needed, as the prompt's keys and values were known."""
        if prompt.media:
            self._encode([(prompt, prompt.media)])

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Tensor:
        """Run the plan's tokens; return float logits (rows, vocab), in order, of each chunk's rows.

        They are valid until the next call. The pictures were looked at.
        """
        chunks = [(chunk, self._prompts[chunk.request.request_id]) for chunk in plan.chunks]
        logits = self._decode(chunks)
        if logits is not None:
            return logits
        input_ids = [token_id for chunk in plan.chunks for token_id in chunk.token_ids]
        stops = list(accumulate(chunk.stop - chunk.start for chunk in plan.chunks))
        last_rows = [
            row
            for stop, chunk in zip(stops, plan.chunks, strict=True)
            for row in range(stop - chunk.num_rows, stop)
        ]
        positions = [prompt.positions.at(chunk.start, chunk.stop) for chunk, prompt in chunks]
        found = [_find_features(chunk, prompt) for chunk, prompt in chunks]
        starts = (0, *stops)
        ids, position_ids, logits_at, rows = self._upload.together(
            [
                torch.tensor(input_ids),
                torch.cat(positions, dim=1),  # (axes, tokens)
                torch.tensor(last_rows, dtype=torch.long),
                torch.cat([own + start for (own, _), start in zip(found, starts, strict=False)]),
            ]
        )
        hidden = self._model.embed(ids)  # (tokens, hidden)
        features = [own for _, several in found for own in several]
        if features:
            hidden[rows] = torch.cat(features).to(hidden.dtype)
        return self._model(hidden, position_ids, self._cache.step(plan), logits_at)

    def _decode(self, chunks: list[tuple[Chunk, Prompt]]) -> Tensor | None:
        """Run a pass of nothing but answers in a step of fixed shape; None where there is none."""
        if self._fixed_steps is None or not all(_goes_on(*each) for each in chunks):
            return None
        return self._fixed_steps.forward([_to_row(*each) for each in chunks])

    def _encode(self, wanted: list[tuple[Prompt, tuple[Medium, ...]]]) -> None:
        """Turn what prompts want into features, several requests at a time, each medium once."""
        known = self._features.find(medium.digest for _, media in wanted for medium in media)
        batch: dict[bytes, Medium] = {}
        for _, media in wanted:
            new = {medium.digest: medium for medium in media if medium.digest not in known}
            if batch and _count_patches(batch | new) > self._max_encode_patches:
                known |= self._encode_together(list(batch.values()))
                batch = {}
            batch |= {digest: medium for digest, medium in new.items() if digest not in known}
        if batch:
            known |= self._encode_together(list(batch.values()))
        for prompt, _ in wanted:
            prompt.take(known)

    def _encode_together(self, media: list[Medium]) -> dict[bytes, Tensor]:
        """Run each tower once, and keep what they give."""
        seen = [(medium, medium.grid_thw) for medium in media if medium.grid_thw is not None]
        heard = [medium for medium in media if medium.grid_thw is None]
        fresh: dict[bytes, Tensor] = {}
        if seen:
            grids = [grid for _, grid in seen]
            features = self._model.encode_images(self._upload(_pack(m for m, _ in seen)), grids)
            own = _split(features, grids)
            fresh |= {medium.digest: one for (medium, _), one in zip(seen, own, strict=True)}
        if heard:
            assert self._ears is not None, "sounds for a model that does not hear"
            num_frames = [len(medium.values) for medium in heard]
            features = self._ears.encode_audio(self._upload(_pack(heard)), num_frames)
            own = torch.split(features, self._count_tokens(heard))
            fresh |= {medium.digest: one for medium, one in zip(heard, own, strict=True)}
        self._features.keep(fresh)
        return fresh


def _seen(inputs: ModelInputs) -> tuple[Medium, ...]:
    """Take a prompt's packed pixels apart, and name each picture and moment by its content."""
    if inputs.pixel_values is None:
        return ()
    pixels = torch.from_numpy(inputs.pixel_values)
    grids = [(1, height, width) for times, height, width in inputs.grid_thw for _ in range(times)]
    return tuple(
        Medium(_digest(own, grid), own, grid)
        for own, grid in zip(_split(pixels, grids), grids, strict=True)
    )


def _pack(media: Iterable[Medium]) -> Tensor:
    """Lay the values of media one after the other; those that lie so already are not copied."""
    values = [medium.values for medium in media]
    first, at = values[0], values[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for one in values:
        if one.data_ptr() != at or one.untyped_storage().data_ptr() != storage:
            return torch.cat(values)
        at += one.nbytes
    # A split leaves its parts where they were.
    return first.as_strided((sum(map(len, values)), *first.shape[1:]), first.stride())


def _digest(values: Tensor, grid: Grid | None) -> bytes:
    """Hash what a tower is given: equal digests have equal features.

    Processors have instructions for SHA-256: 18 MB of rows take 10 ms, with BLAKE2b 19.
    """
    digest = hashlib.sha256(repr((grid, tuple(values.shape))).encode())
    digest.update(values.flatten().numpy().data)
    return digest.digest()


def _split(packed: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
    """Cut rows that are packed over media into each medium's own; rows go by its patches."""
    patches = [math.prod(grid) for grid in grids]
    total = sum(patches)
    assert all(len(packed) * count % total == 0 for count in patches), f"{len(packed)} for {grids}"
    return torch.split(packed, [len(packed) * count // total for count in patches])


def _count_patches(media: dict[bytes, Medium]) -> int:
    return sum(medium.num_patches for medium in media.values())


def _find_features(chunk: Chunk, prompt: Prompt) -> tuple[Tensor, list[Tensor]]:
    """Find the rows of a chunk that hold features, and those features (rows, hidden)."""
    if prompt.features is None or chunk.start >= prompt.positions.prompt.shape[1]:
        return prompt.rows[:0], []
    bounds = torch.tensor([chunk.start, chunk.stop])
    begin, end = torch.searchsorted(prompt.rows, bounds).tolist()
    return prompt.rows[begin:end] - chunk.start, [prompt.features[begin:end]]


def _to_row(chunk: Chunk, prompt: Prompt) -> Row:
    """Say what a step of fixed shape needs of one request."""
    position_ids = prompt.positions.at(chunk.start, chunk.stop)
    table = chunk.request.block_table
    return Row(chunk.token_ids, chunk.start, position_ids, table, chunk.num_rows)


def _goes_on(chunk: Chunk, prompt: Prompt) -> bool:
    """Whether a chunk holds the newest tokens of an answer, and none of the prompt."""
    return chunk.is_last and chunk.start >= prompt.positions.prompt.shape[1]
