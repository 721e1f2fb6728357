"""`qianyan bench` as a program: the bundled pair on a terminal, checkpoints for other programs."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.models.registry import build_model, qwen2_config
from qianyan.models.weights import initialise, save_checkpoint

Terminal = runpy.run_path(str(Path(__file__).with_name("terminal.py")))["Terminal"]
OWN_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def bench(*arguments: str) -> tuple[dict[str, Any], str]:
    """Run `qianyan bench --json`; return what it printed and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "qianyan", "bench", "--json", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout), done.stderr


def test_the_bundled_pair_is_measured_on_a_terminal(tmp_path: Path) -> None:
    with Terminal("bench", "--lang", "en", "--pictures", "2", folder=tmp_path) as screen:
        screen.expect(" question")  # what it does, on a line that moves
        screen.expect("machine: ")
        screen.expect("model: bundled (Qwen2_5_VLForConditionalGeneration), float32")
        screen.expect("2 together: ")
        screen.expect("detector and judge together: ")
        screen.expect("Most time goes to ")
        assert screen.close() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_sees_is_measured_into_a_folder(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "figures"
    pixels = str(28 * 28 * 12)
    record, said = bench(
        *("--model", str(random_checkpoint), "--pictures", "3", "--lang", "en"),
        *("--max-pixels", pixels, "--out", str(out)),
    )
    assert json.loads((out / "bench.json").read_text("utf-8")) == record
    with Image.open(out / "bench.png") as chart:
        assert chart.format == "PNG"
    model = record["model"]
    t, h, w = model["steady"]["grids"][0]
    assert 0 < t * h * w <= 12 * 4
    assert model["batch"]["pictures"] in (2, 3)
    assert model["steady"]["decode_passes"] < model["steady"]["completion_tokens"]
    assert all(model["shares"][part] > 0 for part in ("vision", "prefill", "decode"))
    assert record["pair_pictures_per_minute"] is None
    steps = [line for line in said.splitlines() if line.endswith("…")]
    assert len(steps) == 5
    assert "\x1b" not in said


@pytest.fixture
def text_checkpoint(random_checkpoint: Path, tmp_path: Path) -> Path:
    """A decoder without eyes that speaks the random checkpoint's vocabulary."""
    folder = tmp_path / "text"
    shutil.copytree(random_checkpoint, folder, ignore=shutil.ignore_patterns(*OWN_FILES))
    seeing = json.loads((random_checkpoint / "config.json").read_text("utf-8"))
    wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    wanted += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")
    wanted += ("vocab_size", "tie_word_embeddings", "eos_token_id", "torch_dtype")
    config = {"model_type": "qwen2"} | {name: seeing[name] for name in wanted}
    (folder / "config.json").write_text(json.dumps(config))
    model = build_model(qwen2_config(config))
    initialise(model, std=0.05)
    save_checkpoint(model, folder)
    return folder


def test_a_checkpoint_that_reads_only_is_measured_without_pictures(text_checkpoint: Path) -> None:
    record, _ = bench("--model", str(text_checkpoint), "--pictures", "1")
    model = record["model"]
    assert model["steady"]["grids"] == []
    assert model["steady"]["parts"]["vision"] == 0
    assert model["vision_flops"] == 0
    assert model["shares"]["vision"] is None
    assert model["batch"] is None
    assert model["prefill_flops"] > 0
