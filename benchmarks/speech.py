"""How soon is an answer heard, how long does all of it take, and does its cost grow?

    python benchmarks/speech.py
    python benchmarks/speech.py CHECKPOINT --runs FILE.jsonl [--peer ours] [--out FOLDER]

Without a checkpoint: CPU seconds of a code and of a block of sound (a quarter of a second) early in
an answer and at its tenth second, on random weights of the released 3B's shape, the DiT cut to 3 of
its 22 layers.

With one (make_omni_checkpoint.py): a question of text, an answer of --new-tokens tokens and ten
seconds of speech, by transformers' generate, which gives sound at its end, and by ours, which gives
it from the first block on; each run the first request of a fresh process. Finished runs are
appended to --runs and not repeated, so that one can be made at a time; runs beside which others
took more than --max-load of the machine count for nothing. With fewer --steps of the DiT, which are
all alike, what nine take is told beside: the DiT's share times nine by them. On a busy machine,
`--threads 1 --cpu --max-load 1` compares CPU seconds. Prints, and writes as JSON, seconds and
ratios to transformers'.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from make_omni_checkpoint import QUESTION, TALKER, TEXT, mrope, written
from peers import append, processor_name, read_runs, run
from torch import Tensor

from qianyan.models.omni.reordered import ReorderedLinear
from qianyan.models.omni.sequence import SequenceCache
from qianyan.models.omni.speakers import Speaker
from qianyan.models.omni.speech_decoder import SpeechDecoder
from qianyan.models.omni.talker import Talker, talker_config
from qianyan.models.omni.token2wav import Token2Wav, token2wav_config
from qianyan.models.weights import initialise

PEERS = {"transformers": "omni_transformers.py", "ours": "omni_ours.py"}
PROMPT, TEN_SECONDS = 60, 500
STEPS = 20
STEPS_RELEASED = 9
"""Of the DiT's Runge-Kutta method; all of them are alike."""


def cpu_s(function: Callable[[], Any], rounds: int = 1) -> float:
    """Give the least CPU seconds of some rounds, those of all threads together."""
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        function()
        taken.append(time.process_time() - begin)
    return min(taken)


def grow_codes() -> dict[str, float]:
    """Time the Talker's step behind the prompt and behind ten seconds of codes."""
    talker = TALKER | {"max_position_embeddings": 32768, "rope_parameters": mrope([16, 16, 0])}
    config = {"thinker_config": {"text_config": TEXT}, "talker_config": talker}
    model = Talker(talker_config(config)).bfloat16().eval()
    initialise(model, std=0.02)
    cache, places = SequenceCache(), iter(range(10**6))

    def step(tokens: int = 1) -> Tensor:
        at = torch.tensor([next(places) for _ in range(tokens)]).expand(3, -1)
        inputs = torch.randn(tokens, TEXT["hidden_size"]).bfloat16()
        return model(inputs, at, cache, torch.tensor([tokens - 1]))

    def steps() -> None:
        for _ in range(STEPS):
            step()

    step(PROMPT)
    steps()
    first = cpu_s(steps, 3)
    step(TEN_SECONDS - STEPS * 4)
    return {"first": first / STEPS, "tenth second": cpu_s(steps, 3) / STEPS}


def make_decoder() -> SpeechDecoder:
    """Make the speech decoder, whole but for the number of the DiT's layers."""
    dit = {"num_hidden_layers": 3, "look_ahead_layers": [1], "look_backward_layers": [0, 2]}
    parts = {"dit_config": dit, "bigvgan_config": {}}
    model = Token2Wav(token2wav_config({"token2wav_config": parts})).eval()
    initialise(model, std=0.02)
    for module in model.modules():
        if isinstance(module, ReorderedLinear):
            module.reorder()
    voice = Speaker(name="", cond=torch.randn(192), ref_mel=torch.randn(300, 80), bos_token=0)
    return SpeechDecoder(model, voice)


def grow_blocks() -> dict[str, float]:
    """Time the stretches of one length, from the first of them to the last of ten seconds."""
    decoder, taken = make_decoder(), []
    codes = [1] * (TEN_SECONDS // 50)
    for _ in range(50):
        made: list[Tensor] = []
        seconds = cpu_s(lambda made=made: made.append(decoder.push(codes)))  # type: ignore[misc]
        if len(made[0]):
            taken.append((len(made[0]), seconds))
    longest = max(count for count, _ in taken)
    blocks = longest / (24 * 240)
    same = [seconds / blocks for count, seconds in taken if count == longest]
    return {"first": same[0], "tenth second": same[-1]}


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what a code and a block cost as an answer grows."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        figures = {"code": grow_codes(), "block": grow_blocks()}
    print(f"{'CPU seconds':12}{'first':>10}{'10th s':>10}{'ratio':>8}")
    for name, row in figures.items():
        row["ratio"] = row["tenth second"] / row["first"]
        print(f"{name:12}{row['first']:10.3f}{row['tenth second']:10.3f}{row['ratio']:8.2f}")
    return {"cost_s": figures}


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What runs are told apart by, and what a reader must know of them."""
    config = json.loads((options.checkpoint / "config.json").read_text("utf-8"))
    shape = {
        "thinker_layers": config["thinker_config"]["text_config"]["num_hidden_layers"],
        "talker_layers": config["talker_config"]["num_hidden_layers"],
        "dit_layers": config["token2wav_config"]["dit_config"]["num_hidden_layers"],
        "bigvgan": "whole",
    }
    return {
        "checkpoint": options.checkpoint.resolve().name,
        "shape": shape,
        "codes": TEN_SECONDS,
        "new_tokens": options.new_tokens,
        "threads": options.threads,
        "steps": options.steps,
        "clock": "process_time" if options.cpu else "perf_counter",
    }


def believed(options: argparse.Namespace, known: dict[str, Any], peer: str) -> list[dict[str, Any]]:
    """The finished runs of a peer that had the machine nearly to themselves."""
    return [
        one
        for one in read_runs(options.runs)
        if one["peer"] == peer
        and all(one[name] == value for name, value in known.items())
        and one["other_load"] <= options.max_load
    ]


def ask(options: argparse.Namespace, known: dict[str, Any], peer: str) -> None:
    """Run a peer once and keep what it gave, if it gave what was asked."""
    task = known | {
        "checkpoint": str(options.checkpoint),
        "question": QUESTION,
        "prompt": written(QUESTION),
    }
    figures = run(PEERS[peer], task, sys.executable, options.timeout)
    if figures is None:
        return
    if (figures["samples"], figures["new_tokens"]) != (480 * TEN_SECONDS, options.new_tokens):
        print(
            f"{peer}: {figures['samples']} samples of {figures['new_tokens']} tokens",
            file=sys.stderr,
        )
        return
    at = datetime.now(UTC).isoformat(timespec="seconds")
    append(options.runs, {"peer": peer, "at": at, **known, **figures})
    print(f"{peer}: {figures['total_s']:.1f} s, others {figures['other_load']:.0%}", flush=True)


def compare(options: argparse.Namespace) -> dict[str, Any] | None:
    """Ask whom there is no run of yet; give the latest runs and their ratios once all are there."""
    known = facts(options)
    for peer in options.peer or PEERS:
        if not believed(options, known, peer):
            ask(options, known, peer)
    runs = {peer: believed(options, known, peer)[-1:] for peer in PEERS}
    if not all(runs.values()):
        print("Not every peer has a run of its own yet; the same command goes on.")
        return None
    (theirs,), (ours,) = runs["transformers"], runs["ours"]
    ratios = {}
    for steps in (options.steps, STEPS_RELEASED):
        first, whole, reference = (
            one[name] + one[dit] * (steps / options.steps - 1)
            for one, name, dit in (
                (ours | ours["parts"], "first_packet_s", "first_dit_s"),
                (ours | ours["parts"], "total_s", "dit_s"),
                (theirs | theirs["parts"], "total_s", "dit_s"),
            )
        )
        ratios[f"{steps} steps"] = {
            "first packet": first / reference,
            "all of it": whole / reference,
            "seconds": {"first packet": first, "all of it": whole, "transformers": reference},
        }
        print(
            f"{steps} steps: first packet {first:.1f} s, all {whole:.1f} s, transformers "
            f"{reference:.1f} s; ratios {first / reference:.3f} and {whole / reference:.3f}"
        )
    return {"ratios": ratios, "runs": [theirs, ours]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--runs", type=Path, help="file that finished runs are appended to")
    parser.add_argument("--peer", action="append", choices=PEERS, help="can be repeated")
    parser.add_argument("--new-tokens", type=int, default=36, help="of the answer's text")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--steps", type=int, default=STEPS_RELEASED, help="of the DiT, fewer where time is short"
    )
    parser.add_argument("--cpu", action="store_true", help="CPU seconds instead of a clock's")
    parser.add_argument("--max-load", type=float, default=0.1, help="share that others may take")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.checkpoint is not None and options.runs is None:
        parser.error("--runs is missing; expected a file that finished runs are appended to.")
    figures = grow(options) if options.checkpoint is None else compare(options)
    if figures is None:
        return
    now = datetime.now(UTC)
    what = "growth" if options.checkpoint is None else "peers-cpu" if options.cpu else "peers"
    versions = {name: version(name) for name in ("torch", "transformers", "qianyan")}
    head = {"when": now.isoformat(timespec="seconds"), "processor": processor_name()}
    head |= {"threads": options.threads, "versions": versions}
    target = options.out / f"{now:%Y-%m-%d}-speech-{what}-{platform.node()}.json"
    target.write_text(json.dumps(shortened(head | figures), indent=1) + "\n", "utf-8")
    print(f"written: {target.name}")


def shortened(value: Any) -> Any:
    """Round every number within to four digits."""
    if isinstance(value, dict):
        return {name: shortened(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shortened(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
