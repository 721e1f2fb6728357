"""One run of OpenVINO GenAI; see ../peers.py. Reads a task as JSON from its argument.

Runs in an environment of its own, where nothing of qianyan is installed. The model is an export of
the same checkpoint (optimum-cli export openvino --task image-text-to-text --weight-format int8).
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from PIL import Image


def peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    task = json.loads(sys.argv[1])
    new_tokens = task["new_tokens"]
    started = time.perf_counter()
    pipe = openvino_genai.VLMPipeline(
        task["openvino_model"], "CPU", INFERENCE_NUM_THREADS=task["threads"]
    )
    load_s = time.perf_counter() - started
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new_tokens
    config.ignore_eos, config.do_sample = True, False
    started = time.perf_counter()
    pictures = [
        openvino.Tensor(np.asarray(Image.open(path).convert("RGB"))[None])
        for path in task["pictures"]
    ]
    read_s = time.perf_counter() - started
    if len(pictures) == 1:
        done = pipe.generate(task["prompt"], images=pictures, generation_config=config)
    else:
        prompts, configs = [task["prompt"]] * len(pictures), [config] * len(pictures)
        images = [[picture] for picture in pictures]
        done = pipe.generate(prompts, images=images, generation_config=configs)[0]
    figures = {"end_to_end_s": time.perf_counter() - started}
    metrics = done.perf_metrics
    if len(pictures) == 1:
        first_token_s = read_s + metrics.get_ttft().mean / 1000
        vision_s = metrics.get_prepare_embeddings_duration().mean / 1000
        figures |= {
            "preparation_s": read_s,
            "vision_s": vision_s,  # its resizing included
            "prefill_s": first_token_s - read_s - vision_s,
            "first_token_s": first_token_s,
            "decode_tokens_per_s": 1000 / metrics.get_tpot().mean,
            "prompt_tokens": metrics.get_num_input_tokens(),
            "new_tokens": metrics.get_num_generated_tokens(),
        }
    figures |= {"load_s": load_s, "peak_rss_bytes": peak_rss_bytes()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
