"""Questions with their answers, packed the way the model reads them.

A lesson is one turn of ChatML: a picture (or none), a question, and the answer that the judge
should give. All lessons of a step run as one packed pass, `(tokens, hidden)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from qianyan.inputs.patches import GridTHW, PatchConfig, make_patches
from qianyan.models.attention import NoCache
from qianyan.models.language_model import LanguageModel
from qianyan.train.bundled.crops import Bytes

# What a wrong token costs: the letter decides, the end after it is nearly free, and a whole
# sentence weighs as much as one letter.
_END_WEIGHT = 0.1


@dataclass(frozen=True)
class Lesson:
    """One question about a picture (height, width, 3), or about none, and its answer."""

    pixels: Bytes | None
    question: str
    answer: str


@dataclass(frozen=True)
class Pack:
    """Lessons as one pass: `logits_at` are the places before the answers' tokens."""

    input_ids: Tensor  # (tokens,)
    position_ids: Tensor  # (3, tokens)
    lengths: tuple[int, ...]
    logits_at: Tensor  # (answer_tokens,)
    targets: Tensor  # (answer_tokens,)
    weights: Tensor  # (answer_tokens,)
    firsts: Tensor  # (lessons,) rows of the logits that belong to each answer's first token


class Packer:
    """Turns lessons into ids, positions and patches for one model."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        pixels: PatchConfig,
    ) -> None:
        self.model, self.tokenizer, self.pixels = model, tokenizer, pixels
        self.end: int = tokenizer.encode("<|im_end|>").ids[0]
        self._prompts: dict[tuple[str, GridTHW | None], tuple[list[int], Tensor]] = {}

    def pack(self, lessons: Sequence[Lesson]) -> Pack:
        """Pack lessons in the given order."""
        ids: list[int] = []
        positions: list[Tensor] = []
        lengths: list[int] = []
        logits_at: list[int] = []
        targets: list[int] = []
        firsts: list[int] = []
        weights: list[float] = []
        for lesson in lessons:
            prompt, places = self._prompt(lesson.question, self.grid(lesson))
            answer = [*self.tokenizer.encode(lesson.answer).ids, self.end]
            start = len(ids)
            ids += prompt + answer[:-1]
            tail = torch.arange(1, len(answer)) + places[0, -1]
            positions.append(torch.cat([places, tail.expand(3, -1)], dim=1))
            lengths.append(len(ids) - start)
            firsts.append(len(targets))
            logits_at += range(start + len(prompt) - 1, len(ids))
            targets += answer
            is_letter = len(answer) == 2
            weights += [1.0, _END_WEIGHT] if is_letter else [1 / len(answer)] * len(answer)
        return Pack(
            input_ids=torch.tensor(ids),
            position_ids=torch.cat(positions, dim=1),
            lengths=tuple(lengths),
            logits_at=torch.tensor(logits_at),
            targets=torch.tensor(targets),
            weights=torch.tensor(weights),
            firsts=torch.tensor(firsts),
        )

    def grid(self, lesson: Lesson) -> GridTHW | None:
        """Give the patches of a lesson's picture in time, height and width."""
        if lesson.pixels is None:
            return None
        height, width, _ = lesson.pixels.shape
        return self.pixels.grid((width, height))

    def patches(self, pictures: Sequence[Bytes]) -> Tensor:
        """Cut pictures that already have the size the model sees into (patches, 1176)."""
        images = [Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures]
        return torch.from_numpy(make_patches(images, self.pixels))

    def _prompt(self, question: str, grid: GridTHW | None) -> tuple[list[int], Tensor]:
        key = question, grid
        if key not in self._prompts:
            pads = "<|image_pad|>" * (grid[1] * grid[2] // 4) if grid else ""
            picture = f"<|vision_start|>{pads}<|vision_end|>" if grid else ""
            text = f"<|im_start|>user\n{picture}{question}<|im_end|>\n<|im_start|>assistant\n"
            ids = self.tokenizer.encode(text).ids
            places = self.model.place(ids, [grid] if grid else []).prompt
            if len(self._prompts) > 4096:  # made-up questions would fill the memory
                self._prompts.clear()
            self._prompts[key] = ids, places
        return self._prompts[key]


@torch.no_grad()
def letter_probabilities(
    packer: Packer,
    pictures: Sequence[Bytes],
    question: str,
    letters: Sequence[str],
    *,
    batch: int = 64,
) -> np.ndarray:
    """Ask one closed question about many pictures: (pictures, letters), each row sums to 1.

    The probability that the model gives to anything but the letters is left out.
    """
    model = packer.model
    ids = [packer.tokenizer.token_to_id(letter) for letter in letters]
    rows = []
    for start in range(0, len(pictures), batch):
        lessons = [Lesson(each, question, letters[0]) for each in pictures[start : start + batch]]
        grids = [grid for lesson in lessons if (grid := packer.grid(lesson))]
        features = model.encode_images(packer.patches(pictures[start : start + batch]), grids)
        pack = packer.pack(lessons)
        logits = model(
            model.embed(pack.input_ids, features),
            pack.position_ids,
            NoCache(pack.lengths),
            logits_at=pack.logits_at[pack.firsts],
        )
        rows.append(logits[:, ids].softmax(dim=-1).numpy())
    return np.concatenate(rows)
