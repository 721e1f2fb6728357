"""`qianyan train RECIPE` from the command line: killed and resumed, refused, out of room."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

RECIPE = """
model = "{model}"
precision = "float32"
[[data]]
path = "{data}"
[[stages]]
name = "site"
train = ["language", "embeddings"]
steps = {steps}
batch = 2
max_tokens = 512
save_every = 5
rates = {{ language = 1e-3 }}
"""


@pytest.fixture(scope="module")
def folder(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"number {number}"},
                {"role": "assistant", "content": f"{number} it is"},
            ]
        }
        for number in range(20)
    ]
    data = folder / "numbers.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    for name, steps in (("site", 60), ("short", 6)):
        text = RECIPE.format(model=random_checkpoint, data=data, steps=steps)
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


def start(folder: Path, *arguments: str, most_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "qianyan", "train", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # noqa: PLW1509
    )


def losses(run: Path) -> list[tuple[int, float]]:
    log = run / "log.jsonl"
    lines = log.read_text("utf-8").splitlines() if log.is_file() else []
    return [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines]


def test_a_training_killed_at_any_moment_goes_on_as_if_nothing_had_been(folder: Path) -> None:
    straight = start(folder, "site.toml", "--run", "straight", "--out", "straight-model")
    output, errors = straight.communicate(timeout=180)
    assert straight.returncode == 0, errors
    assert output.splitlines()[-1] == "straight-model"
    assert "site: step 60/60 · loss " in output

    killed = start(folder, "site.toml", "--run", "killed", "--out", "killed-model")
    end = time.monotonic() + 120
    while len(losses(folder / "killed")) < 12:
        assert killed.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (folder / "killed-model").exists()
    before = len(losses(folder / "killed"))

    resumed = start(folder, "site.toml", "--run", "killed", "--out", "killed-model", "--resume")
    _, errors = resumed.communicate(timeout=180)
    assert resumed.returncode == 0, errors
    taken = losses(folder / "killed")
    first = taken[before][0]
    assert 10 <= first - 1 <= before, "it went on from a saved step, not from the beginning"
    assert taken[before:] == losses(folder / "straight")[first - 1 :]
    for name in ("config.json", "model-00001-of-00001.safetensors"):
        one, other = (
            (folder / f"{run}-model" / name).read_bytes() for run in ("straight", "killed")
        )
        assert one == other


def test_without_room_the_state_before_is_kept_and_said(folder: Path) -> None:
    whole = start(folder, "short.toml", "--run", "full", "--out", "full-model")
    _, errors = whole.communicate(timeout=180)
    assert whole.returncode == 0, errors
    state = (folder / "full" / "last.pt").read_bytes()
    size = len(state) // 2
    again = start(folder, "short.toml", "--run", "full", "--out", "more-model", most_bytes=size)
    _, errors = again.communicate(timeout=180)
    assert again.returncode == 3
    assert "state cannot be saved in 'full'" in errors
    assert "the one before is kept" in errors
    assert (folder / "full" / "last.pt").read_bytes() == state


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.toml"], "The recipe 'nothing.toml' cannot be read"),
        (["finetune"], "The recipe 'finetune' names no model"),
        (["short.toml", "--data", "gone.jsonl"], "'gone.jsonl' cannot be read; expected a file"),
        (["short.toml", "--run", "new", "--resume"], "there is nothing to resume"),
        (["short.toml", "--run", "new", "--out", "."], "'.' is there already; expected the name"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    folder: Path, arguments: list[str], sentence: str
) -> None:
    done = start(folder, *arguments)
    _, errors = done.communicate(timeout=120)
    assert done.returncode in {2, 3}
    assert errors.startswith("qianyan: ")
    assert sentence in errors
    assert "Traceback" not in errors


def test_a_model_taught_by_labels_is_evaluated_on_them(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    images, annotations = [], []
    for number, side in enumerate((20, 40, 60)):
        name = f"{number}.png"
        photo = Image.new("RGB", (112, 112), (40, 60, 80))
        photo.paste((250, 120, 20), (10, 10, 10 + side, 10 + side))
        photo.save(tmp_path / name)
        images.append({"id": number, "file_name": name, "width": 112, "height": 112})
        annotations.append({"image_id": number, "category_id": 1, "bbox": [10, 10, side, side]})
    kinds = [{"id": number, "name": name} for number, name in enumerate(("smoke", "fire"))]
    labels = {"categories": kinds, "images": images, "annotations": annotations}
    (tmp_path / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    stages = "".join(
        f'[[stages]]\nname = "{name}"\ntrain = {json.dumps(parts)}\nsteps = 3\nbatch = 2\n'
        "max_tokens = 2048\nrates = { language = 1e-3 }\n"
        for name, parts in (
            ("tower", ["vision", "merger"]),
            ("all", ["vision", "merger", "language", "embeddings"]),
            ("answers", ["language"]),
        )
    )
    recipe = f'model = "{random_checkpoint}"\n[[data]]\npath = "labels.json"\n{stages}'
    (tmp_path / "labels.toml").write_text(recipe, encoding="utf-8")
    trained = start(tmp_path, "labels.toml", "--out", "model", "--run", "run")
    _, errors = trained.communicate(timeout=180)
    assert trained.returncode == 0, errors
    done = subprocess.run(
        [
            sys.executable, "-m", "qianyan", "eval", "--gt", "labels.json", "--model", "model",
            "--out", "eval", "--max-objects", "2",
        ],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 4}, done.stderr
    record = json.loads((tmp_path / "eval" / "eval.json").read_text("utf-8"))
    assert record["schema"] == "qianyan.eval/1"
    assert (tmp_path / "eval" / "eval.html").is_file()


def test_the_recipes_are_named(folder: Path) -> None:
    output, _ = start(folder, "recipes").communicate(timeout=60)
    assert output.split() == sorted(output.split())
    assert {"qwen-vl", "qwen2.5-vl", "lora"} <= set(output.split())


def test_what_is_held_out_is_measured_and_answered_and_shown_by_tensorboard(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = start(
        folder, "short.toml", "--held-out", "numbers.jsonl", "--run", "board", "--out",
        "board-model", "--tensorboard",
    )  # fmt: skip
    output, errors = done.communicate(timeout=180)
    assert done.returncode == 0, errors
    assert "on 20 held-out samples" in output
    assert "numbers.jsonl [" in output
    assert "\n  expected " in output
    assert "\n  answered " in output
    board = EventAccumulator(str(folder / "board" / "board"))
    board.Reload()
    steps = [event.step for event in board.Scalars("site/loss")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in board.Scalars("site/evaluation_loss")] == [6]
