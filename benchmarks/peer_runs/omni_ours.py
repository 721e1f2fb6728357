"""One spoken answer of qianyan; see ../speech.py. Reads a task as JSON, prints figures."""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from qianyan.engine.benchmark import peak_rss_bytes
from qianyan.engine.codes import CodeStream
from qianyan.engine.engine import Engine
from qianyan.engine.options import ChatOptions
from qianyan.engine.speaking import Sound, stream_speech
from qianyan.engine.states import ThinkerStates
from qianyan.models.omni import speech_decoder
from qianyan.models.omni.bigvgan import BigVGAN
from qianyan.models.omni.flow import sway_times
from qianyan.models.omni.speech_decoder import Flow


class Watch:
    """Seconds of each part, and of each of its calls with what it worked on."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.calls: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def put_on(self, owner: Any, name: str, part: str, size: Callable[..., int]) -> None:
        function = getattr(owner, name)

        def call(itself: Any, *values: Any) -> Any:
            begin = self.clock()
            try:
                return function(itself, *values)
            finally:
                self.calls[part].append((size(*values), self.clock() - begin))

        setattr(owner, name, call)

    @property
    def seconds(self) -> dict[str, float]:
        return {part: sum(taken for _, taken in calls) for part, calls in self.calls.items()}


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    clock = getattr(time, task["clock"])
    times = sway_times(task["steps"] + 1)
    speech_decoder.sway_times = lambda: times  # type: ignore[assignment]
    watch = Watch(clock)
    watch.put_on(ThinkerStates, "_pass", "following_s", len)
    watch.put_on(CodeStream, "_pass", "talker_s", len)
    watch.put_on(Flow, "__call__", "dit_s", lambda *values: len(values[1]))
    watch.put_on(BigVGAN, "forward", "bigvgan_s", len)
    begin = time.perf_counter()
    engine = Engine(task["checkpoint"], dtype="bfloat16", device="cpu")
    engine.speech.load()
    load_s = time.perf_counter() - begin
    messages = [{"role": "user", "content": task["question"]}]
    options = ChatOptions(temperature=0, max_tokens=task["new_tokens"], seed=1)
    begin = clock()
    sounds: list[tuple[float, int]] = []
    for event in stream_speech(engine, messages, **options):
        if isinstance(event, Sound):
            sounds.append((clock() - begin, len(event.samples)))
    total_s = clock() - begin
    usage = event.completion.usage
    figures = {
        "total_s": total_s,
        "first_packet_s": sounds[0][0],
        "first_dit_s": watch.calls["dit_s"][0][1],
        "samples": sum(count for _, count in sounds),
        "prompt_tokens": usage.prompt_tokens,
        "new_tokens": usage.completion_tokens,
        "load_s": load_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "parts": watch.seconds | {"thinker_s": total_s - sum(watch.seconds.values())},
        "packets": sounds,
        "stretches": watch.calls["dit_s"],
        "vocoded": watch.calls["bigvgan_s"],
        "talker_steps_s": [taken for _, taken in watch.calls["talker_s"]],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
