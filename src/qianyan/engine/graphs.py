"""Decoding in steps of few fixed shapes, which a CUDA graph records once and replays.

A decoding step is some hundred short kernels: launched one by one from Python they take longer
than they run. A graph launches all of them at once, but only ever on the same tensors; so a step's
requests are padded to one of some batch sizes and lengths, each with input tensors of its own that
are filled before every replay (torch.cuda.graphs; vLLM does the same). What pads a batch reads and
writes a block that belongs to nobody.

The fixed shapes need no device: without a `capture` the same padded step runs as it is.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qianyan.engine.blocks import BLOCK_SIZE, count_blocks
from qianyan.engine.cache import PagedCache, StepCache
from qianyan.engine.paged import MAX_GATHERED_ROWS, Batch
from qianyan.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Requests of a step of fixed shape; a step of more is launched kernel by kernel."""

LENGTHS = (256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 24_576, 32_768)
"""Tokens of the longest request of such a step, at most a half more than there are."""

WARM_UP_RUNS = 2
"""Runs before recording: libraries allocate and choose their kernels in the first ones."""

Decoding = Literal["alone", "batched", "padded", "graphs"]
"""How requests that only decode are computed.

"alone": attention takes one call for each request, the fastest on a processor. "batched": one call
for all. "padded": in steps of fixed shapes. "graphs": those steps recorded and replayed.
"""

Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
"""Records what a function launches on a device; what it gives does that again."""


def choose_decoding(device: torch.device, *, use_graphs: bool) -> Decoding:
    """Choose what suits a device: only CUDA has graphs."""
    if device.type == "cuda" and use_graphs:
        return "graphs"
    return "alone" if device.type == "cpu" else "batched"


@dataclass(frozen=True)
class Row:
    """The one new token of a decoding request: `start` tokens came before it."""

    token_id: int
    start: int
    position_ids: Tensor  # (axes,)
    block_table: list[int]


class FixedStep:
    """One decoding step of a fixed number of requests and blocks, with its own input tensors."""

    def __init__(
        self,
        model: LanguageModel,
        cache: PagedCache,
        *,
        shape: tuple[int, int],
        axes: int,
        device: torch.device,
    ) -> None:
        """Make the inputs for `shape`, (requests, blocks of each)."""
        self._model = model
        self._cache = cache
        self._size, num_blocks = shape
        # One tensor, one transfer: id, start, positions and blocks of each request.
        columns = 2 + axes + num_blocks
        self._host = torch.empty(
            self._size, columns, dtype=torch.long, pin_memory=device.type == "cuda"
        )
        self._table = self._host.numpy()  # the same memory, written to several times faster
        self._inputs = torch.empty(self._size, columns, dtype=torch.long, device=device)
        self._first_block = 2 + axes

    def fill(self, rows: Sequence[Row]) -> None:
        """Put a step's requests into the inputs, and padding into what is left.

        The last step must be over: its result was read.
        """
        first_block = self._first_block
        self._table[:, :first_block] = 0
        self._table[:, first_block:] = self._cache.padding_block
        for own, row in zip(self._table, rows, strict=False):
            blocks = row.block_table[: count_blocks(row.start + 1)]
            own[0], own[1] = row.token_id, row.start
            own[2:first_block] = row.position_ids.numpy()
            own[first_block : first_block + len(blocks)] = blocks
        self._inputs.copy_(self._host, non_blocking=True)

    def run(self) -> Tensor:
        """Compute logits (requests, vocab), padding included, from the inputs as they are."""
        batch = Batch(self._inputs[:, self._first_block :], self._inputs[:, 1], count=1)
        storage = self._cache.storage
        cache = StepCache(storage, [], [(slice(0, self._size), batch)], num_rows=storage.num_rows)
        hidden = self._model.embed(self._inputs[:, 0])  # (requests, hidden)
        return self._model(hidden, self._inputs[:, 2 : self._first_block].t(), cache)


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
        self._steps: dict[tuple[int, int], tuple[FixedStep, Run]] = {}

    def forward(self, rows: Sequence[Row]) -> Tensor | None:
        """Give logits (requests, vocab), valid until the next call.

        None where no fixed shape holds the rows, this model's steps cannot be recorded, or
        somebody watches the model's passes with hooks, which a replay does not call.
        """
        shape = find_shape(len(rows), max(row.start + 1 for row in rows))
        is_watched = bool(getattr(self._model, "_forward_hooks", None))
        if shape is None or is_watched or not self._is_on:
            return None
        if shape not in self._steps and not self._make(shape, rows):
            return None
        step, run = self._steps[shape]
        step.fill(rows)
        return run()[: len(rows)]

    def _make(self, shape: tuple[int, int], rows: Sequence[Row]) -> bool:
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
                # Experts, for one, are chosen on the host: such a model decodes without graphs.
                self._is_on = False
                self._steps.clear()
                logger.warning("decoding without CUDA graphs error=%s", str(error).split("\n")[0])
                return False
        self._steps[shape] = step, run
        return True


def find_shape(num_requests: int, num_tokens: int) -> tuple[int, int] | None:
    """Find the smallest fixed shape, (requests, blocks); None when there is none so large."""
    size = bisect_left(BATCH_SIZES, num_requests)
    length = bisect_left(LENGTHS, num_tokens)
    if size == len(BATCH_SIZES) or length == len(LENGTHS):
        return None
    if BATCH_SIZES[size] * LENGTHS[length] > MAX_GATHERED_ROWS:
        return None
    return BATCH_SIZES[size], LENGTHS[length] // BLOCK_SIZE


class CudaCapture:
    """Records on one stream; all graphs share their memory, because one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._outputs: dict[torch.Size, Tensor] = {}

    def __call__(self, run: Run) -> Run:
        """Warm up, record, and give what replays; raises RuntimeError where that is impossible."""
        with torch.cuda.device(self._device):
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
