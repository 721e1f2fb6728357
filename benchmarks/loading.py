"""What does loading a model take: seconds until the first token, and memory at the peak?

    python benchmarks/loading.py CHECKPOINT --saved FOLDER_INT8 FOLDER_INT4
    python benchmarks/loading.py CHECKPOINT --way transformers --way plain --rounds 5
    python benchmarks/loading.py CHECKPOINT --way int8 --picture

CHECKPOINT is plain; `--saved` are folders that `qianyan models quantize` made of it. Each run is a
fresh process that loads the model and answers a short text, or with --picture a question about a
drawn picture of 1008 x 756 pixels, until its first token; ways take turns. The first round fills
the file cache and does not count. Seconds are from the start of the process, interpreter and
imports included.

Memory is the kernel's count of the process, apart: `anonymous` is its own, `file` are pages of the
checkpoint that it has mapped and read, which the system may take back. `final` is what it holds
after the first token, when all weights of the decoder have been read, or with --picture the tower's
too; `loading` and `peak` are the highest marks at the end of loading and at the first token, both
kinds together. The target is `loading` and `peak` at most 1.15 of `final`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

MESSAGE = "What must everyone on a building site wear?"
PICTURE_WH = (1008, 756)
MARKS = {"VmHWM": "peak", "VmRSS": "final", "RssAnon": "anonymous", "RssFile": "file"}
FIGURES = ("load_s", "total_s", "loading_mb", "peak_mb", "final_mb", "anonymous_mb", "file_mb")


def memory_mb() -> dict[str, int]:
    """Read the kernel's marks of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return {
        MARKS[words[0][:-1]]: int(words[1]) * 1024 // 10**6
        for words in lines
        if words and words[0][:-1] in MARKS
    }


def marks(loaded_at: float, loading_mb: int) -> dict[str, Any]:
    """Give the figures of a run whose first token is there."""
    memory = {f"{name}_mb": value for name, value in memory_mb().items()}
    return {"loaded_at": loaded_at, "first_at": time.time(), "loading_mb": loading_mb, **memory}


def answer_ours(folder: str, quantize: str, picture: Path | None) -> dict[str, Any]:
    from qianyan.engine.engine import Engine  # noqa: PLC0415  (importing is part of what is timed)

    engine = Engine(folder, quantize=quantize)
    loaded_at, loading = time.time(), memory_mb()["peak"]
    parts: list[dict[str, Any]] = [{"type": "text", "text": MESSAGE}]
    if picture is not None:
        parts.insert(0, {"type": "image", "image": Image.open(picture)})
    engine.chat([{"role": "user", "content": parts}], max_tokens=1, temperature=0)
    return marks(loaded_at, loading)  # while the model is held


def answer_theirs(folder: str) -> dict[str, Any]:
    import torch  # noqa: PLC0415  (importing is part of what is timed)
    from transformers import AutoModelForImageTextToText, AutoTokenizer  # noqa: PLC0415  (likewise)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    loaded_at, loading = time.time(), memory_mb()["peak"]
    talk = f"<|im_start|>user\n{MESSAGE}<|im_end|>\n<|im_start|>assistant\n"
    with torch.inference_mode():
        model.generate(**tokenizer(talk, return_tensors="pt"), max_new_tokens=1, do_sample=False)
    return marks(loaded_at, loading)


def run_once(way: str, folder: str, picture: Path | None, started: float) -> None:
    """Be one run: print its figures."""
    if way == "transformers":
        figures = answer_theirs(folder)
    else:
        kind = way if way in ("int8", "int4") else "none"
        figures = answer_ours(folder, kind, picture)
    times = {"load_s": figures.pop("loaded_at"), "total_s": figures.pop("first_at")}
    print(json.dumps({name: at - started for name, at in times.items()} | figures))


def start(way: str, folder: str, picture: Path | None) -> dict[str, Any]:
    """Run one way in a fresh process."""
    command = [sys.executable, __file__, folder, "--one", way, "--started", repr(time.time())]
    command += ["--picture-file", str(picture)] if picture is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (ours)
    if done.returncode:
        sys.exit(f"{way} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def name_ways(checkpoint: str, saved: list[str], ways: list[str]) -> dict[str, tuple[str, str]]:
    """Give what runs under each name: way and folder."""
    plain = ways or ["transformers", "plain", "int8", "int4"]
    named = {way: (way, checkpoint) for way in plain}
    return named | {f"saved {Path(folder).name}": ("saved", folder) for folder in saved}


def draw(folder: Path) -> Path:
    """Draw the picture, in a process that is not measured."""
    from qianyan.train.bundled.scenes import draw_scene  # noqa: PLC0415  (not in the measured processes)

    width, height = PICTURE_WH
    path = folder / "scene.jpg"
    Image.fromarray(draw_scene(0, width=width, height=height).rgb).save(path, quality=90)
    return path


def take_turns(
    ways: dict[str, tuple[str, str]], picture: Path | None, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Run every way once a round; the first round only counts where it is the only one."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (way, folder) in ways.items():
            figures = start(way, folder, picture)
            print(name, number or "(does not count)", figures, file=sys.stderr)
            if number or not rounds:
                runs[name].append(figures)
    return runs


def print_table(medians: dict[str, dict[str, float]]) -> None:
    first = next(iter(medians.values()))["total_s"]
    titles = ("way", *FIGURES, "loading/final", "peak/final", "total, ratio")
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for name, row in medians.items():
        cells = [f"{row[key]:.2f}" if key.endswith("_s") else f"{row[key]:.0f}" for key in FIGURES]
        cells += [f"{row[key] / row['final_mb']:.2f}" for key in ("loading_mb", "peak_mb")]
        print(f"| {name} | " + " | ".join([*cells, f"{row['total_s'] / first:.2f}"]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--saved", nargs="*", default=[], help="folders of models quantize")
    parser.add_argument("--way", action="append", default=[], help="instead of all ways")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", action="store_true", help="ask about a picture")
    parser.add_argument("--out", type=Path, help="folder for the figures as JSON")
    parser.add_argument("--picture-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_once(given.one, given.checkpoint, given.picture_file, given.started)
        return
    ways = name_ways(given.checkpoint, given.saved, given.way)
    with TemporaryDirectory() as scratch:
        picture = draw(Path(scratch)) if given.picture else None
        runs = take_turns(ways, picture, given.rounds)
    medians = {
        name: {key: statistics.median(run[key] for run in rows) for key in FIGURES}
        for name, rows in runs.items()
    }
    print_table(medians)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        at = datetime.now(UTC)
        record = {"at": at.isoformat(), "machine": platform.processor(), "runs": runs}
        record |= {"checkpoint": Path(given.checkpoint).name, "picture": given.picture}
        kind = "picture" if given.picture else "text"
        path = given.out / f"{at:%Y-%m-%d}-loading-{kind}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
