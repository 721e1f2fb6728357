"""One forward pass: which tokens of which requests it computes, and which rows are drawn from.

Knows no torch. A pass may go on beyond what is known: behind an answer's last token it computes
drafts, guesses at what follows. The model says at each of them what really follows; as long as
that is the next draft, the row behind it is drawn from too, as if it had had a pass of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qianyan.engine.request import Request


@dataclass(frozen=True)
class Chunk:
    """Tokens start to stop of one request; `is_last` when the next token follows from them.

    The `drafts` among them, the last ones, are guessed.
    """

    request: Request
    start: int
    stop: int
    is_last: bool
    drafts: tuple[int, ...] = ()

    @property
    def num_known(self) -> int:
        """Where the drafts begin: so many tokens of the request were known."""
        return self.stop - len(self.drafts)

    @property
    def num_rows(self) -> int:
        """Count the rows of logits that are wanted: behind the last known token and each draft."""
        return 1 + len(self.drafts) if self.is_last else 0

    @property
    def token_ids(self) -> list[int]:
        """Give the tokens to compute."""
        return [*self.request.token_ids(self.start, self.num_known), *self.drafts]

    @property
    def num_agreed(self) -> int:
        """Count the first drafts that are the request's tokens by now."""
        came = self.request.token_ids(self.num_known, self.stop)
        pairs = enumerate(zip(came, self.drafts, strict=False))
        return next((index for index, (token, draft) in pairs if token != draft), len(came))


@dataclass(frozen=True)
class Draw:
    """A row of a pass's logits that a request's next token is drawn from.

    The chunk's first row is `first_row` of the pass, and the drawn one `index` further.
    """

    chunk: Chunk
    first_row: int
    index: int = 0

    @property
    def row(self) -> int:
        """Its place among the rows of the pass."""
        return self.first_row + self.index

    def next(self) -> "Draw | None":
        """Give the row behind what the request has become; None where it was not computed."""
        request = self.chunk.request
        index = request.num_tokens - self.chunk.num_known
        if request.is_finished or index > self.chunk.num_agreed:
            return None
        return replace(self, index=index)


@dataclass(frozen=True)
class Plan:
    """The chunks of one forward pass, in the order in which their tokens are packed."""

    chunks: tuple[Chunk, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chunks)

    @property
    def num_tokens(self) -> int:
        """Count the tokens of the pass."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)

    @property
    def draws(self) -> list[Draw]:
        """List the first row of each request whose next token is drawn from this pass."""
        return list(self._draws())

    def without_failed(self) -> "Plan":
        """Leave out requests that ended with an error since they were planned."""
        return Plan(tuple(chunk for chunk in self.chunks if chunk.request.error is None))

    def _draws(self) -> Iterator[Draw]:
        row = 0
        for chunk in self.chunks:
            if chunk.is_last:
                yield Draw(chunk, row)
            row += chunk.num_rows
