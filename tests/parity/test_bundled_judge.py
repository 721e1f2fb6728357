"""The bundled judge is an ordinary Qwen2.5-VL folder: transformers reads and answers it alike."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.inputs.crops import square_crop
from qianyan.train.bundled.scenes import draw_scene
from qianyan.train.bundled.sentences import load_questions

JUDGE = Path(str(files("qianyan").joinpath("assets/bundled/judge")))
PROMPTS = [
    ("fire", "hazard", "zh"),
    ("fire", "hazard", "en"),
    ("smoke", "hazard", "zh"),
    ("lookalikes", "hazard", "en"),
    ("helmets", "head", "zh"),
    ("bare_heads", "head", "en"),
    ("fire_and_smoke", "severity", "zh"),
    ("fire_and_smoke", "describe", "zh"),
    ("helmets", "describe", "en"),
]
LIMIT = 32


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(JUDGE, dtype="float32")


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    """The same folder as transformers loads it."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(JUDGE, dtype=torch.float32)
    return model.eval()


def picture(kind: str, asked: str) -> Image.Image:
    """Draw an unseen scene, whole for a description, else the crop around its first object."""
    scene = draw_scene(8_500_000_001, width=400, height=300, kind=kind)  # type: ignore[arg-type]
    image = Image.fromarray(scene.rgb)
    if asked == "describe":
        return image
    thing = scene.objects[0] if scene.objects else None
    box = (150.0, 100.0, 250.0, 200.0) if thing is None else thing.head_box or thing.box
    return square_crop(image, box)


def ask(kind: str, asked: str, language: str) -> list[dict[str, object]]:
    question = load_questions()[asked].words(language)  # type: ignore[arg-type]
    content = [
        {"type": "image", "image": picture(kind, asked)},
        {"type": "text", "text": question},
    ]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(("kind", "asked", "language"), PROMPTS)
def test_greedy_answers_are_those_of_transformers(
    engine: Engine, oracle: torch.nn.Module, kind: str, asked: str, language: str
) -> None:
    """Same prompt ids from the tokenizer's files, same pixel values, same greedy tokens."""
    done = engine.chat(ask(kind, asked, language), max_tokens=LIMIT, temperature=0)
    inputs = engine.processor(ask(kind, asked, language))
    prompt = torch.tensor([done.prompt_token_ids])
    oracle.model.rope_deltas = None
    with torch.no_grad():
        generated = oracle.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            mm_token_type_ids=(prompt == oracle.config.image_token_id).int(),
            pixel_values=torch.from_numpy(inputs.pixel_values),
            image_grid_thw=torch.tensor(inputs.grid_thw),
            max_new_tokens=LIMIT,
            do_sample=False,
        )
    said = generated[0, prompt.shape[1] :].tolist()
    ends = set(oracle.generation_config.eos_token_id)
    assert [token for token in said if token not in ends] == [
        token for token in done.token_ids if token not in ends
    ]
    assert done.finish_reason == "stop"


def test_prompt_ids_are_those_of_the_folders_own_tokenizer(engine: Engine) -> None:
    """transformers renders the folder's template and encodes with its tokenizer: the same ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(JUDGE)
    for kind, asked, language in PROMPTS:
        messages = ask(kind, asked, language)
        inputs = engine.processor(messages)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = int(np.prod(inputs.grid_thw[0])) // 4
        text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
        assert tokenizer(text)["input_ids"] == inputs.prompt_token_ids


def test_pixel_values_are_those_of_the_oracles_pillow_processor(engine: Engine) -> None:
    """The folder's preprocessor_config.json gives both sides the same small pictures."""
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = module.Qwen2VLImageProcessorPil.from_pretrained(JUDGE)
    for kind, asked, language in PROMPTS:
        inputs = engine.processor(ask(kind, asked, language))
        theirs = processor(images=[picture(kind, asked)], return_tensors="pt")
        assert theirs["image_grid_thw"].tolist() == [list(inputs.grid_thw[0])]
        np.testing.assert_allclose(inputs.pixel_values, theirs["pixel_values"].numpy(), atol=1e-5)


def test_the_folder_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in JUDGE.iterdir()) <= 12 * 1024 * 1024
