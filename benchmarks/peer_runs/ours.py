"""One run of qianyan; see ../peers.py. Reads a task as JSON from its argument, prints figures."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qianyan.cli.bench import answer_schema
from qianyan.engine.benchmark import Bench, peak_rss_bytes
from qianyan.engine.options import ChatOptions


def questions(task: dict[str, Any]) -> list[list[dict[str, Any]]]:
    made = []
    for path in task["pictures"]:
        with Image.open(path) as picture:
            image = {"type": "image", "image": picture.convert("RGB")}
        before, after = ({"type": "text", "text": text} for text in task["question"])
        parts = [before, image, after]
        made.append([{"role": "user", "content": parts}])
    return made


def alone(opened: Bench, task: dict[str, Any], options: ChatOptions) -> dict[str, Any]:
    timing = opened.time_one(questions(task)[0], options)
    return {
        "preparation_s": timing.parts["preparation"],
        "vision_s": timing.parts["vision"],
        "prefill_s": timing.parts["prefill"],
        "first_token_s": timing.first_token_s,
        "decode_tokens_per_s": timing.decode_tokens_per_s,
        "pass_s": timing.pass_s,
        "engine_s": timing.parts["engine"],
        "end_to_end_s": timing.total_s,
        "prompt_tokens": timing.prompt_tokens,
        "new_tokens": timing.completion_tokens,
        "decode_passes": timing.decode_passes,
    }


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    opened = Bench.open(
        Path(task["checkpoint"]),
        dtype="bfloat16",
        device="cpu",
        quantize=task["weights"],
        max_pixels=None,
    )
    schema = {"name": "detections", "schema": answer_schema()}
    options = ChatOptions(
        temperature=0,
        max_tokens=1024,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    if len(task["pictures"]) == 1:
        figures = alone(opened, task, options)
    else:
        started = time.perf_counter()
        done = opened.engine.chat_many(questions(task), **options)
        figures = {
            "end_to_end_s": time.perf_counter() - started,
            "new_tokens": sum(one.usage.completion_tokens for one in done) / len(done),
        }
    figures |= {"load_s": opened.load_s, "peak_rss_bytes": peak_rss_bytes()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
