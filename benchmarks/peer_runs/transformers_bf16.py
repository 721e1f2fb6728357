"""One run of transformers; see ../peers.py. Reads a task as JSON from its argument, prints figures.

Its own model, generate and picture preparation (the Pillow one, which needs no torchvision); the
prompt is written as the released chat template writes it. It knows no schema: the number of tokens
is forced, and what they are does not matter.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


class Stamps(LogitsProcessor):
    """Notes when the logits of each new token are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids
        self.times.append(time.perf_counter())
        return scores


def prepare(task: dict[str, Any], tokenizer: Any, process: Any) -> dict[str, torch.Tensor]:
    pictures = [Image.open(path).convert("RGB") for path in task["pictures"]]
    pixels = process(images=pictures, return_tensors="pt")
    counts = (pixels["image_grid_thw"].prod(dim=1) // 4).tolist()
    before, after = task["question"]
    texts = [
        f"{BEFORE}{before}<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>{after}{AFTER}"
        for count in counts
    ]
    ids = tokenizer(texts, return_tensors="pt")
    is_picture = ids["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {
        **ids,
        "pixel_values": pixels["pixel_values"].bfloat16(),
        "image_grid_thw": pixels["image_grid_thw"],
        "mm_token_type_ids": is_picture.int(),
    }


def peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(task["checkpoint"])
    process = Qwen2VLImageProcessorPil.from_pretrained(task["checkpoint"])
    model = AutoModelForImageTextToText.from_pretrained(
        task["checkpoint"], dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    load_s = time.perf_counter() - started
    looks: list[float] = []
    for register in (
        model.model.visual.register_forward_pre_hook,
        model.model.visual.register_forward_hook,
    ):
        register(lambda *_: looks.append(time.perf_counter()))
    stamps, new_tokens = Stamps(), task["new_tokens"]
    started = time.perf_counter()
    inputs = prepare(task, tokenizer, process)
    prepared = time.perf_counter()
    with torch.inference_mode():
        made = model.generate(
            **inputs,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([stamps]),
        )
    ended = time.perf_counter()
    first, last = stamps.times[0], stamps.times[-1]
    together = len(task["pictures"])
    num_prompt = inputs["input_ids"].shape[1]
    figures = {
        "preparation_s": prepared - started,
        "vision_s": looks[1] - looks[0],
        "prefill_s": first - looks[1],
        "first_token_s": first - started,
        "decode_tokens_per_s": together * (new_tokens - 1) / (last - first),
        "end_to_end_s": ended - started,
        "prompt_tokens": num_prompt,
        "new_tokens": made.shape[1] - num_prompt,
        "load_s": load_s,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
