"""How long does a model think before its first word, when it has listened meanwhile or has not?

    python benchmarks/listening.py --layers 6 --blocks 6
    python benchmarks/listening.py --layers 6 --blocks 6 --frames --seconds 10 20

Qwen2.5-Omni's Thinker in the released 3B shape with random weights, its decoder cut to --layers of
36 and both towers to --blocks of 32, bfloat16. Somebody speaks for --seconds (noise; with --frames
a picture of 640 x 360 a second beside it). The time from the end of the turn to the first token is
taken twice: of an engine that is given the whole turn then, and of one that was given each block of
two seconds when it was complete. Turns end where a block does, which leaves the most to do, as its
last window reaches 12.5 ms further. Nothing waits for the clock: speaking is as fast as the blocks
are computed, and the longest of them is told, which must be less than two seconds.

Medians of --rounds, the two taking turns; prints a table and writes
results/<date>-listening-<what>-<machine>.json.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_checkpoint import PREPROCESSOR, write_weights
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qianyan.engine.engine import Engine
from qianyan.engine.scheduler import EngineConfig
from qianyan.engine.sizes import build_without_weights
from qianyan.inputs.turn import Turn
from qianyan.models.registry import find_architecture

RATE_HZ = 16_000
PIECE_SAMPLES = 1_600
WORDS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>"),
    *("<|audio_eos|>", "<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>"),
)
IDS = {word: 256 + at for at, word in enumerate(WORDS)}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part.type == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = {"role": "system", "content": "You watch over a building site. Say what is unsafe."}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


def shape(layers: int, blocks: int) -> dict[str, Any]:
    """Give the config of the 3B Thinker, cut."""
    whole = [at for at in (7, 15, 23, 31) if at < blocks] or [blocks - 1]
    return {
        "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_thinker",
        "torch_dtype": "bfloat16",
        "audio_token_index": IDS["<|AUDIO|>"],
        "image_token_index": IDS["<|IMAGE|>"],
        "video_token_index": IDS["<|VIDEO|>"],
        "audio_start_token_id": IDS["<|audio_bos|>"],
        "audio_end_token_id": IDS["<|audio_eos|>"],
        "vision_start_token_id": IDS["<|vision_bos|>"],
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
        "text_config": {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32_768,
            "rope_parameters": ROPE,
        },
        "vision_config": {
            "depth": blocks,
            "fullatt_block_indexes": whole,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "window_size": 112,
        },
        "audio_config": {"encoder_layers": blocks, "output_dim": 2048},
    }


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """Write a folder with random weights and a vocabulary of bytes and the model's own words."""
    pieces = {piece: at for at, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in WORDS])
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": config,
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "chat_template": TEMPLATE},
        "preprocessor_config.json": PREPROCESSOR,
        "generation_config.json": {"eos_token_id": IDS["<|im_end|>"]},
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data))
    write_weights(build_without_weights(find_architecture(config).read(config)), folder)


def user(part: dict[str, Any] | None) -> dict[str, Any]:
    return {"role": "user", "content": [part]}


def speak(
    engine: Engine, samples: np.ndarray, *, frames: bool, listens: bool, seed: int
) -> dict[str, Any]:
    """Let somebody speak, and time the first token of the answer."""
    turn, known = Turn(engine.processor.sounds, engine.processor.videos), 0
    random, prefills = np.random.default_rng(seed), [0.0]
    for start in range(0, len(samples), PIECE_SAMPLES):
        if frames and start % RATE_HZ == 0:
            scene = random.integers(0, 255, (9, 16, 3), dtype=np.uint8)
            turn.add_frame(Image.fromarray(scene).resize((640, 360)))
        turn.add_sound(samples[start : start + PIECE_SAMPLES], RATE_HZ)
        if listens and turn.num_blocks > known:
            known, started = turn.num_blocks, time.perf_counter()
            engine.prefill([SYSTEM, user(turn.part_so_far())])
            prefills.append(time.perf_counter() - started)
    started = time.perf_counter()
    request, prompt = engine.prepare([SYSTEM, user(turn.finish())], {"max_tokens": 1})
    prepared_s = time.perf_counter() - started
    for _ in engine.follow(request, prompt):
        break
    return {
        "first_token_s": time.perf_counter() - started,
        "prepared_s": prepared_s,
        "prompt_tokens": len(request.prompt_token_ids),
        "cached_tokens": request.num_cached_tokens,
        "token": request.output_token_ids[0],
        "longest_block_s": max(prefills),
        "blocks_s": sum(prefills),
    }


def measure(engine: Engine, seconds: float, *, frames: bool, rounds: int) -> dict[str, Any]:
    """Take turns between the two; each round says something new."""
    runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for index in range(rounds):
        for listens in (False, True):
            seed = round(seconds) * 1000 + index * 2 + listens
            noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))
            samples = (0.05 * noise).astype(np.float32)
            runs[listens].append(speak(engine, samples, frames=frames, listens=listens, seed=seed))
    first = {
        name: statistics.median(run["first_token_s"] for run in runs[listens])
        for name, listens in (("at_once", False), ("listening", True))
    }
    last = runs[True][-1]
    return {
        "seconds": seconds,
        "prompt_tokens": last["prompt_tokens"],
        "known_tokens": last["cached_tokens"],
        "first_token_s": {name: round(value, 3) for name, value in first.items()},
        "ratio": round(first["listening"] / first["at_once"], 3),
        "prepared_s": round(statistics.median(run["prepared_s"] for run in runs[True]), 3),
        "longest_block_s": round(max(run["longest_block_s"] for run in runs[True]), 3),
        "all_blocks_s": round(statistics.median(run["blocks_s"] for run in runs[True]), 3),
        "runs": {
            name: [round(run["first_token_s"], 3) for run in runs[listens]]
            for name, listens in (("at_once", False), ("listening", True))
        },
    }


def write(figures: dict[str, Any], folder: Path) -> None:
    name = f"{datetime.now(UTC):%Y-%m-%d}-listening-{figures['what']}-{platform.node()}.json"
    (folder / name).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(f"\nwritten: {name}")


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    config = shape(options.layers, options.blocks)
    write_checkpoint(folder, config)
    engine = Engine(folder, config=EngineConfig(max_cache_tokens=32_768))
    speak(engine, np.ones(3 * RATE_HZ, np.float32), frames=options.frames, listens=True, seed=1)
    table = []
    print("seconds  tokens  known   at once  listening   ratio  longest block")
    for seconds in options.seconds:
        row = measure(engine, seconds, frames=options.frames, rounds=options.rounds)
        table.append(row)
        first = row["first_token_s"]
        print(
            f"{seconds:>7g}  {row['prompt_tokens']:>6}  {row['known_tokens']:>5}  "
            f"{first['at_once']:>7.2f} s  {first['listening']:>7.2f} s  {row['ratio']:>6.3f}  "
            f"{row['longest_block_s']:>11.2f} s",
            flush=True,
        )
    return {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "what": "frames" if options.frames else "sound",
        "model": f"Qwen2.5-Omni-3B Thinker, {options.layers} of 36 layers, "
        f"{options.blocks} of 32 blocks in each tower, bfloat16",
        "rounds": options.rounds,
        "turns": table,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="decoder layers, of 36")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of each tower, of 32")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 20, 60])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", action="store_true", help="show a picture a second as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write(run(Path(folder), options), options.out)


if __name__ == "__main__":
    main()
