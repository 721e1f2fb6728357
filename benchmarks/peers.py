"""How fast is qianyan beside other engines, on the inspection's work?

    python benchmarks/peers.py CHECKPOINT --runs FILE.jsonl
    python benchmarks/peers.py CHECKPOINT --runs FILE.jsonl --peer ours-int8 --peer openvino-int8 \\
        --openvino-python VENV/bin/python --openvino-model FOLDER

The work: the inspection's rules and question (peer_runs/question.txt, some 460 tokens), one drawn
picture of 1008 x 756 pixels (972 visual tokens) and an answer of exactly four detections: ours
under the schema, of others as many tokens (--new-tokens). With --pictures there are several
questions, each about a picture of its own; where a peer takes too long, --ask asks it fewer, and
the time for a picture is what counts. Every run is the first request of a fresh process; peers
take turns, round after round. Each finished run is appended to --runs at once, as one line, and
runs that are there already are not repeated, so that a round can be interrupted, and one peer can
run at a time. `other_load` is what other processes took of the machine meanwhile: runs with more
than --max-load are kept on file, but count for nothing and are run again. What the machine gives at
that time is measured before each round and written beside each of its runs. CHECKPOINT comes from
make_checkpoint.py, or is a released one. At the end the medians and the ratios of the times for a
picture to the first peer with runs are printed and written to results/. Without arguments nothing
is run.
"""

import argparse
import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from qianyan.train.bundled.scenes import draw_scene

HERE = Path(__file__).resolve().parent
QUESTION = HERE / "peer_runs" / "question.txt"
"""Words before and after the picture; fixed, so that runs of different days compare."""
PICTURE_WH = (1008, 756)
PEERS = {
    "transformers-bf16": ("transformers_bf16.py", "none"),
    "openvino-int8": ("openvino_int8.py", "int8"),
    "ours-bf16": ("ours.py", "none"),
    "ours-int8": ("ours.py", "int8"),
    "ours-int4": ("ours.py", "int4"),
    "ours-w8a8": ("ours.py", "w8a8"),
    "ours-w4a8": ("ours.py", "w4a8"),
}
ALWAYS = ("transformers-bf16", "ours-bf16")
FIGURES = (
    "preparation_s",
    "vision_s",
    "prefill_s",
    "first_token_s",
    "decode_tokens_per_s",
    "end_to_end_s",
    "picture_s",
    "peak_rss_bytes",
)
LIMITS_TIMEOUT_S = 120
TICKS_S = os.sysconf("SC_CLK_TCK")


def draw_pictures(folder: Path, count: int) -> list[str]:
    """Draw the photos as JPEG, the same for every peer and every round."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(count):
        path = folder / f"scene-{seed}.jpg"
        if not path.is_file():
            width, height = PICTURE_WH
            Image.fromarray(draw_scene(seed, width=width, height=height).rgb).save(path, quality=90)
        paths.append(str(path))
    return paths


def read_question() -> list[str]:
    return QUESTION.read_text("utf-8").rstrip("\n").split("<picture>")


def busy_s() -> float:
    """Processor time that everything on this machine has used so far."""
    values = [
        int(word) for word in Path("/proc/stat").read_text("utf-8").split("\n")[0].split()[1:]
    ]
    return (sum(values[:3]) + sum(values[5:8])) / TICKS_S


def run(script: str, task: dict[str, Any], python: str, timeout_s: float) -> dict[str, Any] | None:
    """Run a script in a fresh process; None, with what it said, when there are no figures."""
    command = [python, str(HERE / "peer_runs" / script), json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"])}
    before, children, started = busy_s(), os.times(), time.perf_counter()
    try:
        done = subprocess.run(  # noqa: S603  (our own scripts)
            command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"{script}: not done within {timeout_s:g} s", file=sys.stderr)
        return None
    wall_s, after = time.perf_counter() - started, os.times()
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        print(f"{script}: exit status {done.returncode}, {said}", file=sys.stderr)
        return None
    own_s = after.children_user + after.children_system
    own_s -= children.children_user + children.children_system
    other = max(0.0, busy_s() - before - own_s) / wall_s / (os.cpu_count() or 1)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"other_load": round(other, 3)}


def append(file: Path, record: dict[str, Any]) -> None:
    """Add one line in one write, whole even when several processes add theirs."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    target = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(target, line.encode())
        os.fsync(target)
    finally:
        os.close(target)


def read_runs(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What a run is told apart by, and what a reader must know of it."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)  # noqa: S603
    config = json.loads((options.checkpoint / "config.json").read_text("utf-8"))
    versions = {}
    for package in ("torch", "transformers", "qianyan"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "question": hashlib.sha256(QUESTION.read_bytes()).hexdigest()[:8],
        "checkpoint": options.checkpoint.resolve().name,
        "layers": config.get("num_hidden_layers"),
        "blocks": config.get("vision_config", {}).get("depth"),
        "together": options.pictures,
        "threads": options.threads,
        "processor": processor_name(),
        "commit": commit.stdout.strip(),
        "versions": versions,
    }


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


SAME = ("question", "checkpoint", "layers", "blocks", "together", "threads")


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(name) == other[name] for name in SAME)


def believed(options: argparse.Namespace, known: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished runs of the same task that had the machine nearly to themselves."""
    return [
        one
        for one in read_runs(options.runs)
        if is_same(one, known) and one["other_load"] <= options.max_load
    ]


def read_task(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.runs.parent / "peer-pictures"
    return {
        "checkpoint": str(options.checkpoint),
        "openvino_model": str(options.openvino_model),
        "pictures": draw_pictures(folder, options.ask or options.pictures),
        "question": read_question(),
        "threads": options.threads,
        "new_tokens": options.new_tokens,
    }


def go_round(options: argparse.Namespace, known: dict[str, Any], number: int) -> None:
    """Run what is missing of a round, after a look at what the machine gives at that time."""
    done = {one["peer"] for one in believed(options, known) if one["round"] == number}
    missing = [peer for peer in options.peer if peer not in done]
    if not missing:
        return
    task = read_task(options)
    limits = run("limits.py", task, sys.executable, LIMITS_TIMEOUT_S)
    for peer in missing:
        script, weights = PEERS[peer]
        python = options.openvino_python if peer == "openvino-int8" else sys.executable
        figures = run(script, task | {"weights": weights}, python, options.timeout)
        if figures is None:
            continue
        at, asked = datetime.now(UTC).isoformat(timespec="seconds"), len(task["pictures"])
        figures |= {"asked": asked, "picture_s": figures["end_to_end_s"] / asked}
        record = {"peer": peer, "round": number, "at": at, **known, **figures, "limits": limits}
        append(options.runs, record)
        said = f"{figures['picture_s']:.2f} s a picture, others {figures['other_load']:.0%}"
        print(f"round {number}, {peer}: {said}", flush=True)


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Take medians by peer, and the ratio of the times for a picture to the first peer's."""
    summary: dict[str, dict[str, Any]] = {}
    for peer in PEERS:
        own = [one for one in runs if one["peer"] == peer]
        if not own:
            continue
        known = {name: [one[name] for one in own if one.get(name) is not None] for name in FIGURES}
        row: dict[str, Any] = {n: statistics.median(v) for n, v in known.items() if v}
        row |= {"runs": len(own), "other_load": max(one["other_load"] for one in own)}
        summary[peer] = row | {"asked": min(one["asked"] for one in own)}
    reference = next(iter(summary.values()), {}).get("picture_s")
    for row in summary.values():
        row["ratio"] = row["picture_s"] / reference
    return summary


def shorten(value: Any) -> Any:
    """Round every number within to four digits, for the file that is kept."""
    if isinstance(value, dict):
        return {name: shorten(inner) for name, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_results(
    options: argparse.Namespace, known: dict[str, Any], summary: dict[str, dict[str, Any]]
) -> Path:
    """Keep the medians, and of every run what is not the same for all."""
    runs = [
        {name: value for name, value in one.items() if value != known.get(name)}
        for one in read_runs(options.runs)
        if is_same(one, known)
    ]
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    name = f"{day}-peers-{known['checkpoint']}-x{options.pictures}-{platform.node()}.json"
    target = HERE / "results" / name
    target.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(shorten(one), ensure_ascii=False) for one in runs)
    head = json.dumps({"task": known, "summary": shorten(summary)}, indent=1, ensure_ascii=False)
    target.write_text(f'{head[:-2]},\n "runs": [\n{lines}\n]}}\n', "utf-8")
    return target


def show(summary: dict[str, dict[str, Any]]) -> None:
    heads = (
        "runs",
        "asked",
        "prepare",
        "vision",
        "prefill",
        "first",
        "tokens/s",
        "total s",
        "s each",
        "GB",
        "ratio",
        "others",
    )
    print(f"\n{'peer':18}" + "".join(f"{head:>9}" for head in heads))
    for peer, row in summary.items():
        cells = [f"{row['runs']:9}{row['asked']:9}"]
        for name in FIGURES:
            value = row.get(name)
            scale = 1e9 if name == "peak_rss_bytes" else 1
            cells.append(f"{'-':>9}" if value is None else f"{value / scale:9.2f}")
        print(f"{peer:18}" + "".join(cells) + f"{row['ratio']:9.2f}{row['other_load']:9.0%}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--runs", type=Path, help="file that finished runs are appended to")
    parser.add_argument("--peer", action="append", choices=PEERS, help="can be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=1, help="questions asked together")
    parser.add_argument(
        "--ask",
        type=int,
        help="fewer questions, where a peer takes too long; counted by the picture",
    )
    parser.add_argument("--new-tokens", type=int, default=140, help="length of others' answers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-load", type=float, default=0.1, help="share that others may take")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one run")
    parser.add_argument("--openvino-python", help="python of an environment with openvino-genai")
    parser.add_argument("--openvino-model", type=Path, help="export of the same checkpoint")
    options = parser.parse_args()
    options.peer = options.peer or [
        peer for peer in PEERS if peer in ALWAYS or (options.openvino_python and "openvino" in peer)
    ]
    if options.checkpoint is None:
        return options
    if options.runs is None:
        parser.error("--runs is missing; expected a file that finished runs are appended to.")
    if not (options.checkpoint / "config.json").is_file():
        parser.error(f"{options.checkpoint} has no config.json; expected a checkpoint folder.")
    if "openvino-int8" in options.peer and not (options.openvino_python and options.openvino_model):
        parser.error("openvino-int8 needs --openvino-python and --openvino-model.")
    return options


def main() -> None:
    options = read_options()
    if options.checkpoint is None:
        print("Nothing is run without a checkpoint; see python benchmarks/peers.py --help.")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # takes the running peer along
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    known = facts(options)
    for number in range(1, options.rounds + 1):
        go_round(options, known, number)
    summary = summarise(believed(options, known))
    if not summary:
        print("No run had the machine to itself; the same command runs them again.")
        return
    show(summary)
    print(f"\nwritten: {write_results(options, known, summary).name}")


if __name__ == "__main__":
    main()
