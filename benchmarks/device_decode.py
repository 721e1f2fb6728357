"""How near does the engine come to an accelerator's limits, and how far ahead of transformers?

    python benchmarks/device_decode.py CHECKPOINT --out benchmarks/results
    python benchmarks/device_decode.py CHECKPOINT --batch 1 8 --no-transformers --no-graphs

CHECKPOINT is a Qwen2-VL or Qwen2.5-VL folder in bfloat16; `make_checkpoint.py` writes random ones.
Measured on the device: bandwidth and matrix rates; decoding of a batch of answers, each about a
picture of 1008 x 756 pixels, by the bytes of weights, keys and values that a step has to read;
prefill of text and the vision tower, by their operations; transformers with the same pictures and
words at one batch size. Everything runs once unseen (kernels are chosen, graphs recorded), then
--rounds times; medians are printed and written as JSON. Goals: decode 0.80 of the bandwidth,
prefill 0.60 of the matrix rate, 5 times transformers at batch 8.

Without an accelerator it says so and ends well; --device cpu tries the script itself.
"""

import argparse
import gc
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qianyan.engine.costs import (
    compute_dtype,
    kept_bytes_per_token,
    read_bytes_per_pass,
    text_costs,
    vision_flops,
)
from qianyan.engine.engine import Engine
from qianyan.engine.limits import measure_limits, synchronise
from qianyan.engine.scheduler import EngineConfig
from qianyan.models.attention import NoCache
from qianyan.models.registry import read_config
from qianyan.train.bundled.scenes import draw_scene

PICTURE_WH = (1008, 756)
GRID = (1, 54, 72)
WORDS = "List what is dangerous here. " * 80
GOALS = {"decode_share": 0.8, "prefill_share": 0.6, "times_transformers": 5.0}
COMPARED_BATCH = 8


def find_device() -> str | None:
    """Find the first accelerator that PyTorch can use here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


@cache  # drawing is no part of what is timed
def pictures(count: int) -> list[Image.Image]:
    """Draw photos, each another one."""
    width, height = PICTURE_WH
    return [
        Image.fromarray(draw_scene(seed, width=width, height=height).rgb) for seed in range(count)
    ]


def questions(count: int) -> list[list[dict[str, Any]]]:
    """Ask the same about several photos."""
    text = {"type": "text", "text": WORDS}
    return [
        [{"role": "user", "content": [{"type": "image", "image": picture}, text]}]
        for picture in pictures(count)
    ]


def seconds(run: Callable[[], object], device: str, rounds: int) -> float:
    """Give the median time of a pass, after two that set kernels up."""
    taken = []
    for _ in range(rounds + 2):
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[2:])


def decode_once(engine: Engine, batch: int, max_tokens: int) -> dict[str, float]:
    """Answer a batch; time the steps in which every request gets one token and none has ended."""
    asked = questions(batch)
    begin = time.perf_counter()
    prepared = [
        engine.prepare(messages, {"max_tokens": max_tokens, "temperature": 0}) for messages in asked
    ]
    for request, prompt in prepared:
        engine.submit(request, prompt)
    requests = [request for request, _ in prepared]
    steps: list[float] = []
    contexts: list[int] = []
    while not all(request.is_finished for request in requests):
        before = [request.num_tokens for request in requests]
        started = time.perf_counter()
        engine.step()  # ends with the tokens on the host: the device is done
        taken = time.perf_counter() - started
        grown = [request.num_tokens - old for request, old in zip(requests, before, strict=True)]
        is_decoding = all(request.num_forwarded_tokens for request in requests)
        if is_decoding and all(count == 1 for count in grown):
            steps.append(taken)
            contexts.append(sum(before))
    return {
        "step_s": statistics.median(steps[1:]),
        "steps": len(steps),
        "context_tokens": statistics.mean(contexts),
        "end_to_end_s": time.perf_counter() - begin,
        "new_tokens": sum(len(request.output_token_ids) for request in requests) / batch,
    }


def measure_decode(
    engine: Engine, options: argparse.Namespace, read_bytes: int, rate: float
) -> list[dict[str, float]]:
    """Measure each batch size: tokens a second, and the share of the bandwidth that is used."""
    found = []
    per_token = kept_bytes_per_token(engine.model)
    for batch in options.batch:
        decode_once(engine, batch, options.new_tokens)
        runs = [decode_once(engine, batch, options.new_tokens) for _ in range(options.rounds)]
        one = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        num_bytes = read_bytes + per_token * one["context_tokens"]
        one |= {
            "batch": batch,
            "tokens_per_s": batch / one["step_s"],
            "decode_share": num_bytes / one["step_s"] / rate,
        }
        found.append(one)
        print(
            f"decode, batch {batch}: {one['tokens_per_s']:.1f} tokens/s, "
            f"{one['decode_share']:.2f} of the bandwidth (goal {GOALS['decode_share']})"
        )
    return found


@torch.inference_mode()
def measure_passes(
    engine: Engine, folder: Path, options: argparse.Namespace, rate: float
) -> dict[str, float]:
    """Time a prefill of text and a pass of the tower, against the matrix rate."""
    model, config, device = engine.model, read_config(folder), options.device
    dtype = compute_dtype(model)
    ids = torch.arange(options.prefill_tokens, device=device) % 1000
    positions = model.place(ids.tolist()).prompt.to(device)
    last = torch.tensor([len(ids) - 1], device=device)
    prefill_s = seconds(
        lambda: model(model.embed(ids), positions, NoCache([len(ids)]), last),
        device,
        options.rounds,
    )
    flops = text_costs(config).flops(len(ids), len(ids))
    grids = [GRID] * options.look_pictures
    patches = sum(t * h * w for t, h, w in grids)
    pixels = torch.randn(patches, config.vision.patch_values, device=device).to(dtype)
    vision_s = seconds(lambda: model.encode_images(pixels, grids), device, options.rounds)
    found = {
        "prefill_s": prefill_s,
        "prefill_share": flops / prefill_s / rate,
        "vision_s": vision_s,
        "vision_share": vision_flops(config, grids) / vision_s / rate,
    }
    print(
        f"prefill of {len(ids)} tokens: {prefill_s * 1000:.1f} ms, {found['prefill_share']:.2f} of "
        f"the matrix rate (goal {GOALS['prefill_share']})\n"
        f"vision, {len(grids)} pictures: {vision_s * 1000:.1f} ms, {found['vision_share']:.2f}"
    )
    return found


def measure_transformers(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Let transformers answer the same questions, as many tokens; its own generate and cache."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer  # noqa: PLC0415  (slow)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (  # noqa: PLC0415
        Qwen2VLImageProcessorPil,
    )

    batch, new_tokens = options.compared_batch, options.new_tokens
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model = model.eval().to(options.device)
    process = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def answer(count: int) -> float:
        shown = pictures(batch)
        begin = time.perf_counter()
        pixels = process(images=shown, return_tensors="pt")
        places = (pixels["image_grid_thw"].prod(dim=1) // 4).tolist()
        texts = [
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"<|vision_start|>{'<|image_pad|>' * each}<|vision_end|>{WORDS}<|im_end|>\n"
            "<|im_start|>assistant\n"
            for each in places
        ]
        ids = tokenizer(texts, return_tensors="pt")
        is_picture = ids["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")
        inputs = {
            **ids,
            "pixel_values": pixels["pixel_values"].bfloat16(),
            "image_grid_thw": pixels["image_grid_thw"],
            "mm_token_type_ids": is_picture.int(),
        }
        with torch.inference_mode():
            model.generate(
                **{name: tensor.to(options.device) for name, tensor in inputs.items()},
                min_new_tokens=count,
                max_new_tokens=count,
                do_sample=False,
            )
        synchronise(options.device)
        return time.perf_counter() - begin

    answer(2)
    first = statistics.median(answer(1) for _ in range(options.rounds))
    whole = statistics.median(answer(new_tokens) for _ in range(options.rounds))
    found = {
        "batch": batch,
        "first_token_s": first,
        "end_to_end_s": whole,
        "tokens_per_s": batch * (new_tokens - 1) / (whole - first),
    }
    print(f"transformers, batch {batch}: {found['tokens_per_s']:.1f} tokens/s")
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything on one device."""
    limits = measure_limits(options.device)
    rate = limits.matrix_rates["bfloat16"] or limits.matrix_rates["float32"] or math.nan
    name = torch.cuda.get_device_name(options.device) if "cuda" in options.device else None
    print(
        f"{name or options.device}: reads {limits.read_bytes_per_s / 1e9:.0f} GB/s, "
        f"{rate / 1e12:.2f} TFLOP/s"
    )
    # Nothing of the first round is known in the second.
    config = EngineConfig(max_reuse_tokens=0, use_graphs=not options.no_graphs)
    engine = Engine(options.checkpoint, dtype="bfloat16", device=options.device, config=config)
    read_bytes = read_bytes_per_pass(engine.model, read_config(options.checkpoint))
    figures: dict[str, Any] = {
        "device": name or options.device,
        "torch": torch.__version__,
        "read_bytes_per_s": limits.read_bytes_per_s,
        "matrix_rates": limits.matrix_rates,
        "graphs": not options.no_graphs,
        "decode": measure_decode(engine, options, read_bytes, limits.read_bytes_per_s),
        "passes": measure_passes(engine, options.checkpoint, options, rate),
    }
    del engine
    gc.collect()
    if "cuda" in options.device:
        torch.cuda.empty_cache()
    if not options.no_transformers:
        theirs = figures["transformers"] = measure_transformers(options.checkpoint, options)
        ours = next(one for one in figures["decode"] if one["batch"] == theirs["batch"])
        figures["times_transformers"] = ours["tokens_per_s"] / theirs["tokens_per_s"]
        figures["times_transformers_end_to_end"] = theirs["end_to_end_s"] / ours["end_to_end_s"]
        print(
            f"{figures['times_transformers']:.1f} times transformers in decoding (goal "
            f"{GOALS['times_transformers']:g}), {figures['times_transformers_end_to_end']:.1f} "
            "end to end"
        )
    return figures


def main() -> None:
    """Find the device, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--device", help="the first accelerator unless stated")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--compared-batch", type=int, default=COMPARED_BATCH)
    parser.add_argument("--new-tokens", type=int, default=150)
    parser.add_argument("--prefill-tokens", type=int, default=2048)
    parser.add_argument("--look-pictures", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--out", type=Path, help="folder of the JSON; none is written without")
    options = parser.parse_args()
    options.device = options.device or find_device()
    if options.device is None:
        print("no accelerator here")
        return
    if options.checkpoint is None:
        parser.error("expected a CHECKPOINT, the folder of a model that sees")
    if not options.no_transformers and options.compared_batch not in options.batch:
        parser.error(f"--batch has no {options.compared_batch}, the size that is compared")
    now = datetime.now(UTC)
    figures = {"when": now.isoformat(timespec="seconds"), "goals": GOALS, **measure(options)}
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        target = options.out / f"{now:%Y-%m-%d}-device-decode-{platform.node() or 'machine'}.json"
        target.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        print(target)


if __name__ == "__main__":
    main()
