"""Decoding in steps of few fixed shapes, which a CUDA graph records once and replays.

A decoding step is some hundred short kernels: launched one by one from Python they take longer
than they run. A graph launches all of them at once, but only ever on the same tensors; so a step's
requests are padded to one of some batch sizes and lengths, each with input tensors of its own that
are filled before every replay (torch.cuda.graphs; vLLM does the same). What pads a batch reads and
writes a block that belongs to nobody.

The fixed shapes need no device: without a `capture` the same padded step runs as it is.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qianyan.engine.blocks import BLOCK_SIZE, count_blocks
from qianyan.engine.cache import PagedCache, StepCache
from qianyan.engine.paged import MAX_GATHERED_ROWS, Batch
from qianyan.models.language_model import LanguageModel
from qianyan.models.text import SparseMoeBlock

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Requests of a step of fixed shape; a step of more is launched kernel by kernel."""

COUNTS = (1, 4, 16)
"""New tokens of each request of such a step: one, or what a format forces or drafts try as well."""

MAX_TOKENS = 256
"""Tokens of such a step, padding included; beyond it they cost a device time of their own."""

LENGTHS = (256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 24_576, 32_768)
"""Tokens of the longest request of such a step, at most a half more than there are."""

WARM_UP_RUNS = 2
"""Runs before recording: libraries allocate and choose their kernels in the first ones."""

Decoding = Literal["alone", "batched", "padded", "graphs"]
"""How requests that go on with their answers are computed.

"alone": attention takes one call for each request, the fastest on a processor. "batched": one call
for all. "padded": in steps of fixed shapes. "graphs": those steps recorded and replayed.
"""

Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
"""Records what a function launches on a device; what it gives does that again."""


def choose_decoding(model: nn.Module, device: torch.device, *, use_graphs: bool) -> Decoding:
    """Choose what suits a device and a model.

    Only CUDA has graphs. Experts are chosen on the host, which no graph records; a recording that
    was tried and failed may cost the device memory, so it is not tried.
    """
    has_experts = any(isinstance(part, SparseMoeBlock) for part in model.modules())
    if device.type == "cuda" and use_graphs and not has_experts:
        return "graphs"
    return "alone" if device.type == "cpu" else "batched"


@dataclass(frozen=True)
class Row:
    """The new tokens of a request that goes on with its answer: `start` tokens came before them.

    The logits of the last `num_rows` tokens are wanted.
    """

    token_ids: list[int]
    start: int
    position_ids: Tensor  # (axes, tokens)
    block_table: list[int]
    num_rows: int = 1

    @property
    def stop(self) -> int:
        """Count the tokens, the new ones among them."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True)
class Shape:
    """Sizes of a step: requests, new tokens, rows of logits and blocks of each."""

    size: int
    count: int
    num_rows: int
    num_blocks: int


class FixedStep:
    """One decoding step of a fixed shape, with its own input tensors."""

    def __init__(
        self,
        model: LanguageModel,
        cache: PagedCache,
        *,
        shape: Shape,
        axes: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._cache = cache
        self._shape = shape
        tokens = (shape.size, shape.count)
        parts = {
            "input_ids": tokens,
            "at": tokens,
            "position_ids": (axes, *tokens),
            "block_tables": (shape.size, shape.num_blocks),
            "logits_at": (shape.size * shape.num_rows,),
        }
        # One tensor, one transfer; the parts are views of it, here and on the device.
        total = sum(math.prod(sizes) for sizes in parts.values())
        self._host = torch.empty(total, dtype=torch.long, pin_memory=device.type == "cuda")
        self._there = torch.empty(total, dtype=torch.long, device=device)
        self._lines = {name: part.numpy() for name, part in _cut(self._host, parts).items()}
        self._inputs = _cut(self._there, parts)

    def fill(self, rows: Sequence[Row]) -> None:
        """Put a step's requests into the inputs, and padding into what is left.

        A request's last token fills up its line: computed again, it changes nothing. The last step
        must be over: its result was read.
        """
        lines, count = self._lines, self._shape.count
        for line in lines.values():
            line.fill(0)
        lines["block_tables"].fill(self._cache.padding_block)
        wanted: list[int] = []
        for index, row in enumerate(rows):
            places = [min(place, len(row.token_ids) - 1) for place in range(count)]
            lines["input_ids"][index] = [row.token_ids[place] for place in places]
            lines["at"][index] = [row.start + place for place in places]
            lines["position_ids"][:, index] = row.position_ids.numpy()[:, places]
            blocks = row.block_table[: count_blocks(row.stop)]
            lines["block_tables"][index, : len(blocks)] = blocks
            end = index * count + len(row.token_ids)
            wanted.extend(range(end - row.num_rows, end))
        lines["logits_at"][: len(wanted)] = wanted
        self._there.copy_(self._host, non_blocking=True)

    def run(self) -> Tensor:
        """Compute logits (rows, vocab), those of padding last, from the inputs as they are."""
        inputs, storage = self._inputs, self._cache.storage
        batch = Batch(inputs["block_tables"], inputs["at"])
        tokens = slice(0, self._shape.size * self._shape.count)
        cache = StepCache(storage, [], [(tokens, batch)], num_rows=storage.num_rows)
        hidden = self._model.embed(inputs["input_ids"].flatten())  # (tokens, hidden)
        position_ids = inputs["position_ids"].flatten(1)  # (axes, tokens)
        return self._model(hidden, position_ids, cache, inputs["logits_at"])


def _cut(flat: Tensor, parts: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Give views of one tensor, one after another, in these sizes."""
    pieces = torch.split(flat, [math.prod(sizes) for sizes in parts.values()])
    return {name: piece.view(parts[name]) for name, piece in zip(parts, pieces, strict=True)}


class FixedSteps:
    """The steps of all shapes that were needed so far, each made when it first is."""

    def __init__(
        self,
        model: LanguageModel,
        cache: PagedCache,
        *,
        device: torch.device,
        capture: Capture | None = None,
    ) -> None:
        """Take the model and its cache; `capture` records steps, None runs them as they are."""
        self._model = model
        self._cache = cache
        self._device = device
        self._capture = capture
        self._is_on = True
        self._steps: dict[Shape, tuple[FixedStep, Run]] = {}

    def forward(self, rows: Sequence[Row]) -> Tensor | None:
        """Give the wanted logits (rows, vocab) in order, valid until the next call.

        None where no fixed shape holds the rows, this model's steps cannot be recorded, or
        somebody watches the model's passes with hooks, which a replay does not call.
        """
        shape = find_shape(rows)
        is_watched = bool(getattr(self._model, "_forward_hooks", None))
        if shape is None or is_watched or not self._is_on:
            return None
        if shape not in self._steps and not self._make(shape, rows):
            return None
        step, run = self._steps[shape]
        step.fill(rows)
        return run()[: sum(row.num_rows for row in rows)]

    def _make(self, shape: Shape, rows: Sequence[Row]) -> bool:
        """Make a step and record it on real rows; give up on all where that is impossible."""
        step = FixedStep(
            self._model,
            self._cache,
            shape=shape,
            axes=len(rows[0].position_ids),
            device=self._device,
        )
        run = step.run
        if self._capture is not None:
            step.fill(rows)
            try:
                run = self._capture(run)
            except RuntimeError as error:
                self._is_on = False
                self._steps.clear()
                logger.warning("decoding without CUDA graphs error=%s", str(error).split("\n")[0])
                return False
        self._steps[shape] = step, run
        return True


def find_shape(rows: Sequence[Row]) -> Shape | None:
    """Find the smallest fixed shape that holds the rows; None when there is none so large."""
    size = _round_up(len(rows), BATCH_SIZES)
    count = _round_up(max(len(row.token_ids) for row in rows), COUNTS)
    length = _round_up(max(row.stop for row in rows), LENGTHS)
    if size is None or count is None or length is None:
        return None
    if size * count > MAX_TOKENS or size * length > MAX_GATHERED_ROWS:
        return None
    num_rows = 1 if all(row.num_rows == 1 for row in rows) else count
    return Shape(size, count, num_rows, length // BLOCK_SIZE)


def _round_up(number: int, sizes: tuple[int, ...]) -> int | None:
    return next((size for size in sizes if size >= number), None)


_RECORDING = threading.Lock()  # PyTorch allows one recording at a time in a process


class CudaCapture:
    """Records on one stream; all graphs share their memory, because one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._outputs: dict[torch.Size, Tensor] = {}

    def __call__(self, run: Run) -> Run:
        """Warm up, record, and give what replays; raises RuntimeError where that is impossible."""
        with _RECORDING, torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            # The stream that records also warms up: library handles belong to a stream.
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_RUNS):
                    like = run()
                # Outside the graphs' memory, and one for all lengths: logits are large.
                out = self._outputs.setdefault(like.shape, torch.empty_like(like))
                del like
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                out.copy_(run())

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
