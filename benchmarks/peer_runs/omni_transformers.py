"""One spoken answer of transformers; see ../speech.py. Reads a task as JSON, prints figures.

Its own model and generate as released: it drops the mask of a prompt without padding, and with it
the Talker's positions, which costs no time. Lengths are forced on it, and the steps of its DiT.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen2_5OmniForConditionalGeneration

from qianyan.engine.benchmark import peak_rss_bytes


class Watch:
    """Seconds of each part."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.times = clock, dict[str, float]()

    def put_on(self, owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        def call(*values: Any, **named: Any) -> Any:
            begin = self.clock()
            try:
                return function(*values, **named)
            finally:
                self.times[part] = self.clock() - begin

        setattr(owner, name, call)


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    begin = time.perf_counter()
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(
        task["checkpoint"], dtype=torch.bfloat16
    ).eval()
    model.token2wav.float()  # generate would do it in its own time
    load_s = time.perf_counter() - begin
    tokenizer = Tokenizer.from_file(str(Path(task["checkpoint"]) / "tokenizer.json"))
    clock = getattr(time, task["clock"])
    watch = Watch(clock)
    watch.put_on(model.thinker, "generate", "thinker_s")
    watch.put_on(model.talker, "generate", "talker_s")
    watch.put_on(model.token2wav.code2wav_dit_model, "sample", "dit_s")
    watch.put_on(model.token2wav.code2wav_bigvgan_model, "forward", "bigvgan_s")
    begin = clock()
    ids = torch.tensor([tokenizer.encode(task["prompt"]).ids])
    with torch.inference_mode():
        sequences, samples = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            thinker_max_new_tokens=task["new_tokens"],
            thinker_min_new_tokens=task["new_tokens"],
            thinker_do_sample=False,
            thinker_eos_token_id=151645,
            talker_max_new_tokens=task["codes"],
            talker_min_new_tokens=task["codes"],
            token2wav_num_steps=task["steps"] + 1,
        )
    total_s = clock() - begin
    figures = {
        "total_s": total_s,
        "first_packet_s": total_s,
        "first_dit_s": watch.times["dit_s"],
        "samples": len(samples),
        "prompt_tokens": ids.shape[1],
        "new_tokens": sequences.shape[1] - ids.shape[1],
        "load_s": load_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "parts": watch.times,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
