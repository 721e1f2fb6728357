"""What quantising costs in quality, held to the bounds that docs/decisions/0019 states.

Layer by layer on random weights of released shapes, and on the bundled judge: its answers to drawn
scenes, weighed again by its quantised self. The judge lists no boxes, and the detector, which draws
them, is not quantised: what changes of a finding are labels and scores
(`test_quantized.py::test_the_bundled_pair_finds_in_the_demo_pictures_what_it_found_before`).
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from qianyan.engine.checkpoint import BUNDLED_FOLDER
from qianyan.engine.engine import Engine
from qianyan.models.attention import NoCache
from qianyan.models.quantize import QuantizedLinear, quantize_weight
from qianyan.models.registry import load_model
from qianyan.train.bundled.judge_folder import patch_config
from qianyan.train.bundled.lessons import Lesson, Packer
from qianyan.train.bundled.scenes import draw_scene
from qianyan.train.bundled.sentences import load_questions

JUDGE = BUNDLED_FOLDER / "judge"
SHAPES = {  # (out, in) of Qwen2-VL-2B, its tower, and Qwen2.5-VL-3B
    "2B k_proj": (256, 1536),
    "2B o_proj": (1536, 1536),
    "2B down_proj": (1536, 8960),
    "tower fc1": (5120, 1280),
    "3B down_proj": (2048, 11008),
}
COSINES = {  # of a layer's outputs
    ("normal", "int8"): 0.9999,
    ("normal", "int4"): 0.994,
    ("laplace", "int8"): 0.9998,
    ("laplace", "int4"): 0.99,
}
SCENES = 16
SEEN_WH = (112, 112)  # a size that the judge sees as it is
PERPLEXITY_DRIFT = {"none": 0.005, "int8": 0.005, "int4": 0.02}  # against float32
AGREEMENT = {"none": 0.98, "int8": 0.98, "int4": 0.96}  # answers' tokens that are the likeliest


@pytest.mark.parametrize(("tails", "kind"), COSINES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_layer_of_a_released_shape_points_where_the_plain_one_does(
    shape: tuple[int, int], tails: str, kind: str
) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=random)
    if tails == "laplace":
        weight = weight.sign() * torch.empty(shape).exponential_(generator=random)
    weight = (0.02 * weight).bfloat16()
    hidden = torch.randn(4, shape[1], generator=random).bfloat16()
    bits, size = (8, shape[1]) if kind == "int8" else (4, 128)
    layer = QuantizedLinear(shape[1], shape[0], bits=bits, group_size=size)
    for name, value in quantize_weight(weight, bits=bits, group_size=size).items():
        setattr(layer, name, value)
    layer.use_kernels()
    expected = (hidden.float() @ weight.float().t()).double()
    with torch.inference_mode():
        found = layer(hidden).double()
    cosine = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert float(cosine) >= COSINES[tails, kind]


class Weighed(NamedTuple):
    """A model's view of the answers: their perplexity, and the share of likeliest tokens."""

    perplexity: float
    agreement: float


@cache
def answers() -> list[Lesson]:
    """Ask the judge in float32 about drawn scenes, in both languages."""
    engine = Engine(JUDGE, dtype="float32")
    words = [
        load_questions()[name].words(language)
        for name in ("describe", "hazard", "head")
        for language in ("zh", "en")
    ]
    lessons = []
    for seed in range(SCENES):
        scene = Image.fromarray(draw_scene(seed, width=448, height=448).rgb).resize(SEEN_WH)
        for question in words:
            parts = [{"type": "image", "image": scene}, {"type": "text", "text": question}]
            talk = [{"role": "user", "content": parts}]
            said = engine.chat(talk, max_tokens=48, temperature=0).text
            lessons.append(Lesson(np.asarray(scene), question, said))
    return lessons


@cache
@torch.inference_mode()
def weigh(dtype: str, kind: str) -> Weighed:
    model: Any = load_model(JUDGE, dtype=dtype, quantize=kind)
    packer = Packer(model, Tokenizer.from_file(str(JUDGE / "tokenizer.json")), patch_config())
    losses: list[Tensor] = []
    likeliest: list[Tensor] = []
    for lesson in answers():
        assert lesson.pixels is not None
        grid = packer.grid(lesson)
        assert grid is not None
        pack = packer.pack([lesson])
        features = model.encode_images(packer.patches([lesson.pixels]), [grid])
        logits = model(
            model.embed(pack.input_ids, features),
            pack.position_ids,
            NoCache(pack.lengths),
            logits_at=pack.logits_at,
        )
        losses.append(cross_entropy(logits, pack.targets, reduction="none"))
        likeliest.append(logits.argmax(dim=-1) == pack.targets)
    return Weighed(
        perplexity=float(torch.cat(losses).mean().exp()),
        agreement=float(torch.cat(likeliest).double().mean()),
    )


def test_the_judges_own_answers_are_its_likeliest() -> None:
    """Else the drift below is measured on something else."""
    assert weigh("float32", "none").agreement == 1
    assert len({lesson.answer for lesson in answers()}) > 8, "scenes all alike"


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("bfloat16", "none"), *((d, k) for d in ("float32", "bfloat16") for k in ("int8", "int4"))],
)
def test_the_judges_answers_stay_as_likely(dtype: str, kind: str) -> None:
    exact, found = weigh("float32", "none"), weigh(dtype, kind)
    assert abs(found.perplexity / exact.perplexity - 1) <= PERPLEXITY_DRIFT[kind], found
    assert found.agreement >= AGREEMENT[kind], found
