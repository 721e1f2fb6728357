"""A small Qwen2.5-VL with random weights; a few conversations about drawn pictures, and sounds."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.sound_files import write_conversations

from qianyan.models.registry import build_model, qwen2_5_vl_config
from qianyan.models.weights import initialise
from qianyan.train.bundled.judge_folder import judge_config, write_judge
from qianyan.train.bundled.sentences import corpus
from qianyan.train.bundled.vocabulary import train_vocabulary

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a random model with two tower blocks and one decoder layer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    tokenizer = train_vocabulary([*corpus(), *COLOURS, "What colour is it?"])
    config = judge_config(tokenizer, width=64, depth=2)
    torch.manual_seed(0)
    model = build_model(qwen2_5_vl_config(config))
    initialise(model, std=0.05)
    write_judge(model, tokenizer, config, folder)
    return folder


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file of conversations: pictures in LLaVA's form, texts in OpenAI's."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, (colour, rgb) in enumerate(list(COLOURS.items()) * 4):
        name = f"{number}.png"
        Image.new("RGB", (112, 112), rgb).save(folder / name)
        turns = [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": colour},
        ]
        lines.append({"image": name, "conversations": turns})
        spoken = [
            {"role": "user", "content": f"Say {colour} " + "and more " * (number % 5)},
            {"role": "assistant", "content": colour},
            {"role": "user", "content": "Again"},
            {"role": "assistant", "content": f"{colour} {colour}"},
        ]
        lines.append({"messages": spoken})
    path = folder / "colours.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file of conversations: sounds in both forms, a picture, a video with sound, text."""
    return write_conversations(tmp_path_factory.mktemp("sounds"))
