"""One run of OpenVINO GenAI; see ../peers.py. Reads a task as JSON from its argument.

Runs in an environment of its own, where nothing of qianyan is installed. The model is an export of
the same checkpoint (optimum-cli export openvino --task image-text-to-text --weight-format int8).
Computing formats are its own choice and are told in the figures. Several questions go through its
continuous batching pipeline in one call, with known beginnings kept: on the 2B and two cores eight
took 30.6 s a picture, one after another through VLMPipeline 36.4 s (the second of a process), so
the batch is its best mode.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from PIL import Image

PICTURE_TAG = "<ov_genai_image_0>"


def peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def formats(task: dict[str, Any]) -> dict[str, Any]:
    """Say what it computes in: its smallest part compiled with the same settings."""
    part = Path(task["openvino_model"]) / "openvino_vision_embeddings_model.xml"
    settings = {"INFERENCE_NUM_THREADS": task["threads"]}
    compiled = openvino.Core().compile_model(str(part), "CPU", settings)
    return {
        "openvino_genai": openvino_genai.__version__,
        "devices": compiled.get_property("EXECUTION_DEVICES"),
        "precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        "cache_precision": compiled.get_property("KV_CACHE_PRECISION").get_type_name(),
        "activations_int8_group": compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE"),
    }


def read_picture(path: str) -> openvino.Tensor:
    return openvino.Tensor(np.asarray(Image.open(path).convert("RGB"))[None])


def ask_one(pipe: Any, prompt: str, path: str, config: Any) -> dict[str, Any]:
    started = time.perf_counter()
    pictures = [read_picture(path)]
    read_s = time.perf_counter() - started
    done = pipe.generate(prompt, images=pictures, generation_config=config)
    end_to_end_s = time.perf_counter() - started
    metrics = done.perf_metrics
    first_token_s = read_s + metrics.get_ttft().mean / 1000
    vision_s = metrics.get_prepare_embeddings_duration().mean / 1000
    return {
        "preparation_s": read_s,
        "vision_s": vision_s,  # its resizing included
        "prefill_s": first_token_s - read_s - vision_s,
        "first_token_s": first_token_s,
        "decode_tokens_per_s": 1000 / metrics.get_tpot().mean,
        "prompt_tokens": metrics.get_num_input_tokens(),
        "new_tokens": metrics.get_num_generated_tokens(),
        "end_to_end_s": end_to_end_s,
    }


def ask_together(pipe: Any, prompt: str, paths: list[str], config: Any) -> dict[str, Any]:
    """Ask about several pictures in one call, which its scheduler batches."""
    started = time.perf_counter()
    images = [[read_picture(path)] for path in paths]
    done = pipe.generate([prompt] * len(paths), images, [config] * len(paths))
    figures = {"end_to_end_s": time.perf_counter() - started}
    metrics = [one.perf_metrics for one in done]
    figures |= {
        "vision_s": sum(one.get_prepare_embeddings_duration().mean for one in metrics) / 1000,
        "prompt_tokens": metrics[0].get_num_input_tokens(),
        "new_tokens": metrics[0].get_num_generated_tokens() / len(paths),  # told of all together
    }
    return figures


def open_pipeline(task: dict[str, Any]) -> Any:
    settings = {"INFERENCE_NUM_THREADS": task["threads"]}
    if len(task["pictures"]) == 1:
        return openvino_genai.VLMPipeline(task["openvino_model"], "CPU", **settings)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = 4096
    return openvino_genai.ContinuousBatchingPipeline(
        task["openvino_model"], scheduler, "CPU", settings, {}, settings
    )


def main() -> None:
    task = json.loads(sys.argv[1])
    new_tokens = task["new_tokens"]
    started = time.perf_counter()
    pipe = open_pipeline(task)
    load_s = time.perf_counter() - started
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new_tokens
    config.ignore_eos, config.do_sample = True, False
    prompt, paths = PICTURE_TAG.join(task["question"]), task["pictures"]
    if len(paths) == 1:
        figures = ask_one(pipe, prompt, paths[0], config)
    else:
        figures = ask_together(pipe, prompt, paths, config)
    figures |= {"load_s": load_s, "peak_rss_bytes": peak_rss_bytes()}
    print(json.dumps(figures | formats(task)))


if __name__ == "__main__":
    main()
