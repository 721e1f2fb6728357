"""A checkpoint quantised once, into a folder: what it holds, and what stands in the way."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qianyan.engine.engine import Engine
from qianyan.engine.folder import is_complete
from qianyan.engine.memory import describe
from qianyan.engine.quantizing import QuantizeProgress, quantize_model
from qianyan.errors import CheckpointError, ConfigError
from qianyan.models.quantize import Kind
from qianyan.models.registry import build_model, read_config, read_config_json
from qianyan.models.weights import initialise, list_tensors, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny one, wide enough to have matrices that are worth quantising."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("wide") / "model")
    data = read_config_json(folder)
    data |= {"hidden_size": 128, "intermediate_size": 256, "torch_dtype": "float32"}
    data["rope_scaling"] = {"type": "mrope", "mrope_section": [4, 6, 6]}
    data["vision_config"]["out_hidden_size"] = 128
    (folder / "config.json").write_text(json.dumps(data))
    torch.manual_seed(0)
    model = build_model(read_config(folder))
    initialise(model, std=0.1)
    save_checkpoint(model, folder)
    return folder


@pytest.mark.parametrize(("kind", "bits", "size"), [("int8", 8, -1), ("int4", 4, 128)])
def test_the_folder_holds_all_that_the_original_does(
    checkpoint: Path, tmp_path: Path, kind: Kind, bits: int, size: int
) -> None:
    seen: list[QuantizeProgress] = []
    out = quantize_model(checkpoint, tmp_path / "new" / "q", to=kind, on_progress=seen.append)
    assert out == tmp_path / "new" / "q"
    weights = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert {path.name for path in out.iterdir()} == weights | {
        path.name for path in checkpoint.iterdir() if path.name != "model.safetensors"
    }
    assert [path.name for path in out.parent.iterdir()] == ["q"]
    data = read_config_json(out)
    assert data.pop("quantization_config") == {
        "quant_method": "qianyan",
        "version": 1,
        "bits": bits,
        "group_size": size,
        "sym": kind == "int8",
        "torch_dtype": "float32",
    }
    assert data == read_config_json(checkpoint)
    assert is_complete(out)
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert [one.done_bytes for one in seen] == sorted(one.done_bytes for one in seen)
    names = set(list_tensors(out))
    assert {f"model.layers.0.mlp.up_proj.{p}" for p in ("codes", "zeros", "scales")} <= names
    assert "model.layers.0.mlp.up_proj.weight" not in names


def test_it_loads_without_a_word_and_says_what_it_is(checkpoint: Path, tmp_path: Path) -> None:
    out = quantize_model(checkpoint, tmp_path / "q", to="int8")
    talk = [{"role": "user", "content": "the box"}]
    answer = Engine(out).chat(talk, max_tokens=8, temperature=0)
    expected = Engine(checkpoint, quantize="int8").chat(talk, max_tokens=8, temperature=0)
    assert answer.token_ids == expected.token_ids
    facts = describe(out)
    assert facts.quantization == "qianyan, 8 bits, a group each row"
    assert facts.weights_bytes["stored"] < describe(checkpoint).weights_bytes["stored"]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_what_is_foretold_is_what_is_stored(checkpoint: Path, tmp_path: Path, kind: Kind) -> None:
    source = tmp_path / "bfloat16"
    source.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (source / path.name).write_bytes(path.read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(halves, source / "model.safetensors")
    out = quantize_model(source, tmp_path / "q", to=kind)
    assert describe(out).weights_bytes["stored"] == describe(source).weights_bytes[kind]


def test_what_cannot_be_quantised_is_one_sentence_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    done = quantize_model(checkpoint, tmp_path / "done", to="int8")
    with pytest.raises(ConfigError, match=r"quantised already \(qianyan, 8 bits\)"):
        quantize_model(done, tmp_path / "twice", to="int4")
    with pytest.raises(CheckpointError, match="done' is there already; expected the name of a new"):
        quantize_model(checkpoint, done, to="int8")
    for unknown in ("int2", "none", "w8a8"):
        with pytest.raises(ConfigError, match=f"quantize is '{unknown}'; expected int8 or int4"):
            quantize_model(checkpoint, tmp_path / "new", to=unknown)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is not a folder"):
        quantize_model(tmp_path / "nowhere", tmp_path / "x", to="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def broken(source: Path, folder: Path, change: str) -> Path:
    """Copy a checkpoint with something wrong in its weights."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    else:
        tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("missing", r"1 missing \(model\.layers\.1\.mlp\.down_proj\.weight\)"),
        ("shape", r"1 of another shape \(model\.layers\.1\.mlp\.down_proj\.weight is \(128, 255\)"),
        ("nan", "not a finite number"),
    ],
)
def test_damaged_weights_leave_nothing(
    checkpoint: Path, tmp_path: Path, change: str, sentence: str
) -> None:
    source = broken(checkpoint, tmp_path / "source", change)
    with pytest.raises(CheckpointError, match=sentence):
        quantize_model(source, tmp_path / "q", to="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_without_room_is_told_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GB and 0\.0 GB are free .* nothing was"):
        quantize_model(checkpoint, tmp_path / "q", to="int8")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    """Files of this process may not grow beyond a few kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"q' cannot be written \(File too large\)"):
            quantize_model(checkpoint, tmp_path / "q", to="int8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, time
from qianyan.engine.quantizing import quantize_model
def wait(progress):
    print("begun", flush=True)
    time.sleep(60)
quantize_model(sys.argv[1], sys.argv[2], to="int8", on_progress=wait)
"""


def test_a_killed_run_leaves_no_model_and_the_next_one_succeeds(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q"
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        with pytest.raises(CheckpointError, match="q' is being written by another run"):
            quantize_model(checkpoint, out, to="int8")
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    assert not is_complete(tmp_path / "q.unfinished")
    started = time.monotonic()
    quantize_model(checkpoint, out, to="int8")
    assert time.monotonic() - started < 30
    assert is_complete(out)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_the_form_of_another_version_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = quantize_model(checkpoint, tmp_path / "q", to="int4")
    data = read_config_json(out)
    data["quantization_config"]["version"] = 2
    (out / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="version of quantization_config is '2'; expected 1"):
        Engine(out)


def test_codes_are_those_of_the_nearest_steps(checkpoint: Path, tmp_path: Path) -> None:
    out = quantize_model(checkpoint, tmp_path / "q", to="int8")
    saved = load_file(out / "model-00001-of-00001.safetensors")
    weight = load_file(checkpoint / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    codes, zeros, scales = (
        saved[f"model.layers.0.mlp.up_proj.{part}"].float() for part in ("codes", "zeros", "scales")
    )
    assert bool((zeros == 128).all())
    error = (codes * scales - weight).abs()  # codes of 8 bits are saved around zero
    assert bool((error <= 1.1 * scales).all())
    assert torch.equal(scales, scales.bfloat16().float())


def test_an_embedding_model_stays_one(embedding_checkpoint: Path, tmp_path: Path) -> None:
    out = quantize_model(embedding_checkpoint, tmp_path / "q", to="int8")
    plain, coarse = (Engine(one).embed(["hard hat"]).vectors for one in (embedding_checkpoint, out))
    assert 0.99 < float((plain * coarse).sum()) < 1
