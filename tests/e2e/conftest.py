"""Two tiny Qwen2.5-VL checkpoints in the official format: one random, one taught by heart."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from qianyan.inputs.grounding import Notation
from qianyan.inputs.processor import ModelInputs, Processor
from qianyan.inspection.prompts import listing_prompt
from qianyan.models.attention import NoCache
from qianyan.models.registry import build_model, qwen2_5_vl_config
from qianyan.models.vision_language import VisionLanguageModel
from qianyan.models.weights import initialise, save_checkpoint
from qianyan.train.bundled.judge_folder import judge_config
from qianyan.train.bundled.vocabulary import train_vocabulary, write_vocabulary

PHOTO_WH = (448, 336)
SEEN_WH = (224, 168)
SEEN_PIXELS = 224 * 168
FIRE = '[{"bbox_2d": [56, 42, 112, 84], "label": "火灾", "sub_label": "严重"}]'
STEPS = 150


@dataclass(frozen=True)
class Lesson:
    """A photo and what is to be said about it, word for word; asked to list, or as stated."""

    photo: Image.Image
    answer: str
    question: str = ""


def draw_fire() -> Image.Image:
    """Draw a red rectangle where FIRE says, in photo pixels."""
    photo = Image.new("RGB", PHOTO_WH, (120, 120, 120))
    photo.paste((235, 40, 20), (112, 84, 224, 168))
    return photo


def draw_clean() -> Image.Image:
    """Draw nothing but a blue sky over grass."""
    photo = Image.new("RGB", PHOTO_WH, (90, 150, 230))
    photo.paste((60, 140, 60), (0, 200, *PHOTO_WH))
    return photo


@pytest.fixture(scope="session")
def fire_photo() -> Image.Image:
    """The photo with a fire at (112, 84)-(224, 168)."""
    return draw_fire()


@pytest.fixture(scope="session")
def clean_photo() -> Image.Image:
    """The photo without a hazard."""
    return draw_clean()


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learnt nothing."""
    return write_checkpoint(tmp_path_factory.mktemp("random"), lessons=[])


@pytest.fixture(scope="session")
def taught_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows two photos by heart: a fire in one, nothing in the other."""
    lessons = [Lesson(draw_fire(), FIRE), Lesson(draw_clean(), "[]")]
    return write_checkpoint(tmp_path_factory.mktemp("taught"), lessons=lessons)


def write_checkpoint(folder: Path, *, lessons: list[Lesson]) -> Path:
    """Write all files of a tiny checkpoint, its model taught the lessons if there are any."""
    prompt = listing_prompt(lang="zh", notation=Notation.RESIZED_PIXELS, seen_wh=SEEN_WH)
    words = [text for one in lessons if one.question for text in (one.question, one.answer)]
    tokenizer = train_vocabulary([prompt, FIRE, *words] * 3, size=700)
    write_vocabulary(tokenizer, folder)
    config = {**judge_config(tokenizer, width=64, depth=2), "torch_dtype": "float32"}
    files = {
        "config.json": config,
        "generation_config.json": {
            "eos_token_id": [config["eos_token_id"]],
            "pad_token_id": config["pad_token_id"],
        },
        "preprocessor_config.json": {
            "min_pixels": 3136,
            "max_pixels": 12_845_056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    model = build_model(qwen2_5_vl_config(config))
    initialise(model, std=0.05)
    if lessons:
        teach(model, Processor.from_folder(folder, max_pixels=SEEN_PIXELS), prompt, lessons)
    torch.set_num_threads(threads)
    save_checkpoint(model, folder)
    return folder


def teach(
    model: VisionLanguageModel,
    processor: Processor,
    prompt: str,
    lessons: list[Lesson],
) -> None:
    """Fit the model to the lessons until it would say every token of them."""
    questions, targets = [], []
    for lesson in lessons:
        text = lesson.question or prompt
        parts = [{"type": "image", "image": lesson.photo}, {"type": "text", "text": text}]
        questions.append(processor([{"role": "user", "content": parts}]))
        targets.append(processor.tokenizer.encode(f"{lesson.answer}<|im_end|>"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(STEPS):
        loss = torch.stack(
            [answer_loss(model, *pair) for pair in zip(questions, targets, strict=True)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step > 40 and loss.item() < 0.005:
            return
    raise AssertionError(f"not learnt by heart after {STEPS} steps: loss {loss.item():.3f}")


def answer_loss(
    model: VisionLanguageModel, question: ModelInputs, target: list[int]
) -> torch.Tensor:
    """Average the loss over the answer's tokens."""
    token_ids = question.prompt_token_ids + target
    features = model.encode_images(torch.from_numpy(question.pixel_values), question.grid_thw)
    hidden = model.embed(torch.tensor(token_ids), features)
    positions = model.place(token_ids, question.grid_thw).prompt
    at = torch.arange(len(question.prompt_token_ids) - 1, len(token_ids) - 1)
    logits = model(hidden, positions, NoCache([len(token_ids)]), at)
    return cross_entropy(logits, torch.tensor(target))
