"""Embeddings: a text becomes one vector of length 1, for checkpoints that were trained for it.

Such a checkpoint (Qwen3-Embedding, arXiv 2506.05176) has the files of sentence-transformers beside
config.json: modules.json names what follows the decoder, 1_Pooling/config.json says which states
make the vector, config_sentence_transformers.json which words stand before a query. The state of
the last token behind the last norm is the vector; of its numbers the first ones may be enough
(Matryoshka, arXiv 2205.13147). Texts are packed into passes, and nothing is kept behind them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from qianyan.engine.faults import is_out_of_memory
from qianyan.errors import CapacityError, ConfigError, InputError, NoMemoryError, quote
from qianyan.inputs.tokenizer import Tokenizer, read_json
from qianyan.models.attention import NoCache
from qianyan.models.registry import ARCHITECTURES, Model
from qianyan.models.text import CausalLM

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
USUAL_KINDS = ("query", "document")
"""Kinds that every model takes, with a prompt for them or without."""
POOLING = "lasttoken"
MODE = "pooling_mode_"
ARCHITECTURE = ARCHITECTURES["qwen3"].name

Input = str | Sequence[int]
"""A text, or token ids, which are taken as they are."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """How texts are embedded.

    `dimensions` are the first numbers of each vector that are kept, None all. `instruction` is the
    task that queries stand for, in words; `kind` names one of the checkpoint's prompts, such as
    query or document, None its default. Token ids stand alone.
    """

    dimensions: int | None = None
    kind: str | None = None
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors in the order of their texts, (texts, dimensions) in float32, and what they took."""

    vectors: Tensor
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Texts as token ids, and which of them, by their places, are computed in each pass."""

    token_ids: Sequence[Sequence[int]]
    dimensions: int
    passes: Sequence[Sequence[int]] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        """Count the tokens of all texts."""
        return sum(map(len, self.token_ids))

    def gather(self, parts: Sequence[Tensor]) -> Embeddings:
        """Put what the passes gave into the order of the texts."""
        order = torch.tensor(list(chain.from_iterable(self.passes)), dtype=torch.long)
        vectors = torch.cat(list(parts))[order.argsort()]
        return Embeddings(vectors=vectors, num_tokens=self.num_tokens)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Words that stand before a text, by its kind; `usual` is the kind of texts of none."""

    by_kind: Mapping[str, str]
    usual: str | None = None


class Embedder:
    """An embedding model, for one thread at a time; `read` may be called from any."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        prompts: Prompts,
        *,
        max_length: int,
        max_batch_tokens: int,
    ) -> None:
        """Take a loaded checkpoint; texts have `max_length` tokens at most."""
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._max_length = max_length
        self._max_batch_tokens = max_batch_tokens

    @property
    def num_dimensions(self) -> int:
        """The numbers of a whole vector."""
        return self._model.config.hidden_size

    def read(self, inputs: Sequence[Input], options: EmbeddingOptions) -> TokenBatch:
        """Turn texts into token ids, and plan the passes.

        Raises InputError for what cannot be embedded, CapacityError for a text that is too long.
        """
        whole = self.num_dimensions
        dimensions = whole if options.dimensions is None else options.dimensions
        if not 1 <= dimensions <= whole:
            raise InputError(
                f"dimensions is {dimensions}; expected 1 to {whole}, as many as this model's "
                "embeddings have."
            )
        prompt = self._prompt(options)
        token_ids = [self._encode(one, prompt, at) for at, one in enumerate(inputs)]
        return TokenBatch(token_ids=token_ids, dimensions=dimensions, passes=self._plan(token_ids))

    @torch.inference_mode()
    def run(self, batch: TokenBatch, places: Sequence[int]) -> Tensor:
        """Compute one pass: give (texts, dimensions) in float32, each of length 1.

        Raises NoMemoryError.
        """
        own = [batch.token_ids[place] for place in places]
        counts = [len(ids) for ids in own]
        device = self._model.model.embed_tokens.weight.device
        input_ids = torch.tensor(list(chain.from_iterable(own)), device=device)
        position_ids = torch.cat([torch.arange(count) for count in counts]).unsqueeze(0)
        last_rows = torch.tensor(list(accumulate(counts)), device=device) - 1
        try:
            hidden = self._model.embed(input_ids)  # (tokens, hidden)
            states = self._model.model(hidden, position_ids.to(device), NoCache(counts), last_rows)
            kept = states.float().cpu()[:, : batch.dimensions]  # (texts, dimensions)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise NoMemoryError(
                f"There is no memory to embed {sum(counts)} tokens at once. Send shorter texts, or "
                "lower max_batch_tokens."
            ) from error
        return functional.normalize(kept, dim=-1)

    def embed(self, inputs: Sequence[Input], options: EmbeddingOptions) -> Embeddings:
        """Embed texts; raises what `read` and `run` do."""
        batch = self.read(inputs, options)
        return batch.gather([self.run(batch, places) for places in batch.passes])

    def _prompt(self, options: EmbeddingOptions) -> str:
        if options.instruction:
            return f"Instruct: {options.instruction}\nQuery:"
        kind = self._prompts.usual if options.kind is None else options.kind
        known = {**dict.fromkeys(USUAL_KINDS, ""), **self._prompts.by_kind}
        if kind is not None and kind not in known:
            raise InputError(f"kind is {quote(kind)}; expected one of {', '.join(known)}.")
        return known[kind] if kind else ""

    def _encode(self, one: Input, prompt: str, at: int) -> list[int]:
        is_text = isinstance(one, str)
        token_ids = (
            self._tokenizer.encode_whole(f"{prompt}{one}") if is_text else list(map(int, one))
        )
        if not token_ids:
            raise InputError(f"The text at place {at} is empty; expected some text.")
        most = self._model.config.vocab_size
        wrong = next((token_id for token_id in token_ids if not 0 <= token_id < most), None)
        if wrong is not None:
            raise InputError(f"The text at place {at} has token {wrong}; expected 0 to {most - 1}.")
        if len(token_ids) > self._max_length:
            raise CapacityError(
                f"The text at place {at} is {len(token_ids)} tokens; expected at most "
                f"{self._max_length}. Send it in parts."
            )
        return token_ids

    def _plan(self, token_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Part texts into passes, the short ones first: equal lengths are attended in one call."""
        passes: list[list[int]] = []
        room = 0
        for place in sorted(range(len(token_ids)), key=lambda place: len(token_ids[place])):
            count = len(token_ids[place])
            if not passes or count > room:
                passes.append([])
                room = self._max_batch_tokens
            passes[-1].append(place)
            room -= count
        return passes


def is_embedding_folder(folder: Path) -> bool:
    """Tell whether a checkpoint was made for embeddings."""
    return (folder / MODULES).is_file()


def open_embedder(
    folder: Path, model: Model, tokenizer: Tokenizer, *, max_length: int, max_batch_tokens: int
) -> Embedder | None:
    """Make the embedder of a loaded checkpoint; None of one that was not made for embeddings.

    Raises ConfigError for another way to embed than Qwen3-Embedding's.
    """
    if not is_embedding_folder(folder):
        return None
    architecture = type(model).__name__
    config = read_json(folder / "config.json")
    if not isinstance(model, CausalLM) or config.get("model_type") != "qwen3":
        raise ConfigError(
            f"{MODULES} says that {quote(folder.name)} makes embeddings, and it is a "
            f"{architecture}; expected {ARCHITECTURE}, as Qwen3-Embedding is."
        )
    _check_modules(folder)
    return Embedder(
        model,
        tokenizer,
        _read_prompts(folder),
        max_length=max_length,
        max_batch_tokens=max_batch_tokens,
    )


def _read_prompts(folder: Path) -> Prompts:
    data = read_json(folder / PROMPTS)
    by_kind, usual = data.get("prompts") or {}, data.get("default_prompt_name")
    is_text = isinstance(by_kind, dict) and all(isinstance(one, str) for one in by_kind.values())
    if not is_text or not (usual is None or (isinstance(usual, str) and usual in by_kind)):
        raise ConfigError(
            f"{PROMPTS} has prompts that are no texts, or a default_prompt_name that none of them "
            "has; copy the file again."
        )
    return Prompts(by_kind=by_kind, usual=usual)


def _check_modules(folder: Path) -> None:
    """Refuse modules that would make other vectors than ours."""
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        paths = {str(one["type"]).rpartition(".")[2]: str(one["path"]) for one in modules}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{MODULES} is no list of modules; copy the file again.") from error
    others = sorted(set(paths) - set(KNOWN_MODULES))
    if others or "Pooling" not in paths:
        raise ConfigError(
            f"{MODULES} names {', '.join(map(quote, others)) or 'no Pooling'}; expected "
            f"{', '.join(KNOWN_MODULES)}, as Qwen3-Embedding has."
        )
    pooling = read_json(folder / Path(paths["Pooling"]).name / "config.json")
    modes = {key.removeprefix(MODE) for key, is_used in pooling.items() if MODE in key and is_used}
    if "pooling_mode" in pooling:  # the form of newer versions
        modes.add(str(pooling["pooling_mode"]))
    if modes != {POOLING}:
        raise ConfigError(
            f"{paths['Pooling']}/config.json pools by {', '.join(sorted(modes)) or 'nothing'}; "
            f"expected {POOLING}, as Qwen3-Embedding does. Copy the file where it is missing."
        )
