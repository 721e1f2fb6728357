"""Two processes are one: the same losses, the same model, and a run may change its number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.sound_files import write_wav

from qianyan.models.registry import load_model
from qianyan.train.recipe import Stage, read_recipe
from qianyan.train.stage import StepReport
from qianyan.train.training import Places, Report, Training

RECIPE = """
precision = "float32"
seed = 3
[[data]]
path = "{data}"
[[stages]]
name = "one"
train = ["language", "embeddings", "merger"]
steps = 4
batch = 2
max_tokens = 256
save_every = 2
average = 0.9
rates = {{ language = 3e-3 }}
[[stages]]
name = "two"
train = ["vision"]
steps = 2
batch = 4
packing = false
max_tokens = 256
save_every = 0
rates = {{ language = 1e-3 }}
"""


def train(
    tmp_path: Path,
    source: Path,
    *,
    processes: int,
    name: str,
    last: str = "all",
    resume: bool = False,
) -> dict[tuple[str, int], float]:
    arguments = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), str(Path(__file__).with_name("train_in_processes.py")),
        str(tmp_path / "recipe.toml"), str(source), str(tmp_path / f"{name}-run"),
        str(tmp_path / f"{name}-model"), last, *(["resume"] if resume else []),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert (done.returncode == 0) == (last == "all"), done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("loss ")]
    return {(stage, int(step)): float(loss) for _, stage, step, loss in lines}


@pytest.fixture(scope="module")
def alone(
    checkpoint: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[tuple[str, int], float]]:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "recipe.toml").write_text(RECIPE.format(data=conversations), encoding="utf-8")
    return folder, train(folder, checkpoint, processes=1, name="alone")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder, dtype="float32").named_parameters())


def assert_same_model(folder: Path, name: str) -> None:
    expected, found = weights(folder / "alone-model"), weights(folder / f"{name}-model")
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-2, atol=2e-3, msg=key)


def test_two_processes_learn_what_one_does(
    checkpoint: Path, alone: tuple[Path, dict[tuple[str, int], float]]
) -> None:
    folder, losses = alone
    assert train(folder, checkpoint, processes=2, name="two") == pytest.approx(losses, abs=2e-4)
    assert_same_model(folder, "two")


def test_a_run_goes_on_with_another_number_of_processes(
    checkpoint: Path, alone: tuple[Path, dict[tuple[str, int], float]]
) -> None:
    folder, losses = alone
    begun = train(folder, checkpoint, processes=2, name="cut", last="3")
    rest = train(folder, checkpoint, processes=1, name="cut", resume=True)
    assert ("one", 3) in rest
    assert {**begun, **rest} == pytest.approx(losses, abs=2e-4)
    assert_same_model(folder, "cut")


HEARING = """
precision = "float32"
seed = 3
[[data]]
path = "{data}"
[[stages]]
name = "ears"
train = ["audio", "projector", "language"]
steps = 4
batch = 2
packing = false
max_tokens = 2048
save_every = 0
rates = {{ language = 1e-3 }}
"""


def test_two_processes_hear_what_one_does(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path
) -> None:
    """One has a sound where the other has none, or one of more blocks than are heard at once."""
    lines = sounds.read_text("utf-8").splitlines()
    turns = [{"from": "human", "value": "<audio>What?"}, {"from": "gpt", "value": "Long."}]
    long = write_wav(tmp_path / "long.wav", 66.0, 330)
    lines.append(json.dumps({"audio": str(long), "conversations": turns}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("bell.wav", "horn.wav", "clip.mkv", "red.png"):
        (tmp_path / name).symlink_to(sounds.parent / name)
    text = HEARING.format(data=tmp_path / "data.jsonl")
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    losses: dict[tuple[str, int], float] = {}

    def note(stage: Stage, report: Report) -> None:
        assert isinstance(report, StepReport)
        losses[stage.name, report.step] = report.loss

    where = Places(source=omni_checkpoint, run_dir=tmp_path / "r", out=tmp_path / "alone-model")
    Training(read_recipe(tmp_path / "recipe.toml"), where, on_report=note).run()
    found = train(tmp_path, omni_checkpoint, processes=2, name="two")
    assert found == pytest.approx(losses, abs=2e-4)
    assert_same_model(tmp_path, "two")
