"""Each generation that sees, from the command line: `inspect` places its boxes, `chat` answers.

Tiny checkpoints in the official file formats know two photos by heart and say what they show in
their own notation; the boxes must land in photo pixels. What is tested is the way, not the wisdom.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from qianyan.inputs.grounding import Notation
from qianyan.inputs.processor import Processor
from qianyan.inspection.prompts import listing_prompt
from qianyan.inspection.references import REFERENCES
from qianyan.models.attention import NoCache
from qianyan.models.registry import build_model, read_config
from qianyan.models.weights import initialise, save_checkpoint
from qianyan.train.bundled.judge_folder import judge_config
from qianyan.train.bundled.vocabulary import train_vocabulary, write_vocabulary

BOX = [112, 84, 224, 168]  # of the fire, in photo pixels: a quarter to a half of either side
LISTED = '[{{"bbox_2d": {box}, "label": "火灾", "sub_label": "严重"}}]'
THOUSANDTHS = LISTED.format(box=[250, 250, 500, 500])
STEPS = 600
PIXELS = 112 * 112
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": PIXELS,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


@dataclass(frozen=True)
class Lesson:
    """A photo, what is asked about it, and the answer word for word."""

    photo: Image.Image
    question: str
    answer: str

    @property
    def messages(self) -> list[dict[str, Any]]:
        parts = [{"type": "image", "image": self.photo}, {"type": "text", "text": self.question}]
        return [{"role": "user", "content": parts}]


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data))


def qwen2_vl(folder: Path, fire: Image.Image, clean: Image.Image) -> list[Lesson]:
    """Qwen2-VL counts in thousandths below 1000."""
    prompt = listing_prompt(lang="zh", notation=Notation.RELATIVE_BELOW_1000, seen_wh=(112, 112))
    tokenizer = train_vocabulary([prompt, THOUSANDTHS] * 3, size=700)
    write_vocabulary(tokenizer, folder)
    config = judge_config(tokenizer, width=64, depth=2)
    config |= {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "float32",
        "vision_config": {"depth": 2, "embed_dim": 64, "num_heads": 4, "hidden_size": 64},
    }
    stops = {"eos_token_id": [config["eos_token_id"]]}
    write(
        folder,
        {
            "config.json": config,
            "generation_config.json": stops,
            "preprocessor_config.json": PREPROCESSOR,
        },
    )
    return [Lesson(fire, prompt, THOUSANDTHS), Lesson(clean, prompt, "[]")]


def qwen_vl(folder: Path, fire: Image.Image, clean: Image.Image) -> list[Lesson]:
    """Qwen-VL boxes one phrase at a time, in thousandths of a squashed square."""
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "kv_channels": 32,
        "max_position_embeddings": 2048,
        "seq_length": 1024,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "no_bias": True,
        "visual": {
            "heads": 4,
            "image_size": 56,
            "image_start_id": 0,
            "layers": 1,
            "mlp_ratio": 2.0,
            "output_dim": 128,
            "patch_size": 14,
            "width": 64,
            "n_queries": 16,
        },
    }
    write(folder, {"config.json": config, "generation_config.json": {"chat_format": "chatml"}})
    start = Processor.from_folder(folder).tokenizer.token_id("<img>")
    config["visual"]["image_start_id"] = start  # type: ignore[index]
    write(folder, {"config.json": config})
    lessons = []
    for reference in REFERENCES:
        question = reference.question("zh")
        lessons.append(Lesson(clean, question, "没有"))
        is_fire = reference is REFERENCES[0]
        boxed = f"<ref>{reference.names['zh']}</ref><box>(250,250),(500,500)</box>"
        lessons.append(Lesson(fire, question, boxed if is_fire else "没有"))
    return lessons


def qwen2_5_vl(folder: Path, fire: Image.Image, clean: Image.Image) -> list[Lesson]:
    """Qwen2.5-VL counts pixels of the resized picture, here 112 x 112 of 448 x 336."""
    prompt = listing_prompt(lang="zh", notation=Notation.RESIZED_PIXELS, seen_wh=(112, 84))
    answer = LISTED.format(box=[28, 21, 56, 42])
    tokenizer = train_vocabulary([prompt, answer] * 3, size=700)
    write_vocabulary(tokenizer, folder)
    config = {**judge_config(tokenizer, width=64, depth=2), "torch_dtype": "float32"}
    stops = {"eos_token_id": [config["eos_token_id"]]}
    write(
        folder,
        {
            "config.json": config,
            "generation_config.json": stops,
            "preprocessor_config.json": PREPROCESSOR,
        },
    )
    return [Lesson(fire, prompt, answer), Lesson(clean, prompt, "[]")]


GENERATIONS: dict[str, Callable[[Path, Image.Image, Image.Image], list[Lesson]]] = {
    "Qwen-VL": qwen_vl,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
}


@pytest.fixture(scope="module", params=GENERATIONS)
def taught(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    fire_photo: Image.Image,
    clean_photo: Image.Image,
) -> Path:
    """A checkpoint folder of each generation that knows both photos by heart."""
    folder: Path = tmp_path_factory.mktemp("taught")
    lessons = GENERATIONS[request.param](folder, fire_photo, clean_photo)
    torch.manual_seed(7)
    model = build_model(read_config(folder))
    initialise(model, std=0.05)
    if request.param == "Qwen-VL":
        draw_eyes(model)
    learn_by_heart(model, Processor.from_folder(folder), lessons)
    save_checkpoint(model, folder)
    return folder


def draw_eyes(model: Any) -> None:
    """Draw the tower's own matrices, which no official training of ours starts from."""
    with torch.no_grad():
        for parameter in model.transformer.visual.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)


def learn_by_heart(model: Any, processor: Processor, lessons: Sequence[Lesson]) -> None:
    """Fit the model to all lessons in one packed pass a step."""
    end = processor.tokenizer.token_id("<|im_end|>")
    inputs = [processor(lesson.messages) for lesson in lessons]
    answers = [[*processor.tokenizer.encode(lesson.answer), end] for lesson in lessons]
    ids = [i.prompt_token_ids + a[:-1] for i, a in zip(inputs, answers, strict=True)]
    lengths = [len(each) for each in ids]
    positions = torch.cat(
        [
            model.place(i.prompt_token_ids, i.grid_thw).at(0, length)
            for i, length in zip(inputs, lengths, strict=True)
        ],
        dim=1,
    )
    ends = torch.tensor(lengths).cumsum(0).tolist()
    at = torch.cat([torch.arange(e - len(a), e) for e, a in zip(ends, answers, strict=True)])
    targets = torch.tensor([token for answer in answers for token in answer])
    packed = torch.tensor([token for each in ids for token in each])
    pixels = torch.cat([torch.from_numpy(i.pixel_values) for i in inputs])
    grids = [grid for i in inputs for grid in i.grid_thw]
    # What a picture shows decides an answer's first token alone: it weighs as much as the rest.
    sizes = torch.tensor([len(answer) for answer in answers])
    firsts = sizes.cumsum(0) - sizes
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(STEPS):
        hidden = model.embed(packed, model.encode_images(pixels, grids))
        logits = model(hidden, positions, NoCache(lengths), at)
        loss = cross_entropy(logits, targets) + cross_entropy(logits[firsts], targets[firsts])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 0.005:
            break
    torch.set_num_threads(threads)
    assert loss.item() < 0.05, f"not learnt by heart: loss {loss.item():.3f}"


def qianyan(*arguments: object, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qianyan", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        input=said,
    )


def test_inspect_places_the_boxes_of_each_generation(
    taught: Path, tmp_path: Path, fire_photo: Image.Image, clean_photo: Image.Image
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    fire_photo.save(site / "a.png")
    clean_photo.save(site / "b.png")
    out = tmp_path / "out"
    done = qianyan("inspect", site, "--model", taught, "--out", out, "--max-pixels", PIXELS)
    assert done.returncode == 0, done.stderr
    pictures = json.loads((out / "results.json").read_text())["pictures"]
    (found,) = pictures[0]["detections"]
    assert (found["label_id"], found["bbox_2d"]) == ("fire", BOX)
    assert pictures[1]["detections"] == []
    assert pictures[1]["error"] is None


def test_chat_answers_about_a_picture(
    taught: Path, tmp_path: Path, fire_photo: Image.Image
) -> None:
    fire_photo.save(tmp_path / "a.png")
    done = qianyan(
        *("chat", "--model", taught, "--once", "--image", tmp_path / "a.png"),
        *("--max-tokens", 8, "What burns?"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_pictures_of_other_kinds_are_errors_with_a_sentence(taught: Path, tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    done = qianyan("inspect", tmp_path / "words.jpg", "--model", taught, "--out", tmp_path / "out")
    assert done.returncode == 4
    (picture,) = json.loads((tmp_path / "out" / "results.json").read_text())["pictures"]
    assert picture["error"]["code"] == "not_a_picture"
    assert picture["detections"] is None
