"""What does HTTP cost beside the engine, and what do 64 readers at once and 2,000 pictures do?

    python benchmarks/online.py [overhead|crowd|pictures] [--requests 2000] [--out FOLDER]

The server is `qianyan serve` as it is, but where a pass of the model is to cost nothing: there a
stand-in for the model waits as long as it is told and gives a next token that depends on the
prompt alone. `overhead` times the same answers from the same stand-in once in this process and once
over HTTP; the difference is the front end, the client's own parsing included. `crowd` asks 64
questions at once and leaves a fifth of them midway, with the stand-in and with the bundled judge;
the others' texts are compared with those that each question gets alone. `pictures` sends pictures
that were never seen before, one by one, to the bundled judge, and watches the server's memory.
Prints, and writes as JSON, medians and ratios.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx2
import numpy as np
import torch
from PIL import Image

from qianyan.cli import answering, main
from qianyan.engine import runner
from qianyan.engine.engine import Engine
from qianyan.engine.plan import Plan
from qianyan.engine.request import Request, Sampled
from qianyan.engine.scheduler import EngineConfig
from qianyan.inputs.prepared import PreparedPictures

KEY = "sk-bench-0123456789"
PASS_MS = 5.0
"""How long a pass of the stand-in takes: a small model on an accelerator."""
NUM_STREAMS = 64
LEFT = range(0, NUM_STREAMS, 5)
"""A fifth of the questions, whose readers leave midway."""


LEAST_CACHE_TOKENS = 4096
"""A cache that is full after a hundred requests, so that what grows later is no cache."""


class StandIn(Engine):
    """An engine whose passes cost time alone; everything around them is the engine's own."""

    def __init__(self, pass_ms: float) -> None:
        super().__init__("bundled", dtype="float32")
        self._pass_s = pass_ms / 1000
        tokenizer = self.processor.tokenizer
        self._words = [
            token_id
            for token_id in range(len(tokenizer.special_ids), 512)
            if tokenizer.token_text(token_id).strip()
        ]

    def _run(self, plan: Plan) -> Plan:
        time.sleep(self._pass_s)
        draws = plan.draws
        while draws:
            drawn = [Sampled(token_id=self._next(draw.chunk.request)) for draw in draws]
            draws = self._scheduler.take(draws, drawn)
        return plan

    def _next(self, request: Request) -> int:
        """Choose a word by the prompt and the answer's length, and by nothing else."""
        seed = crc32(repr(request.prompt_token_ids).encode(), len(request.output_token_ids))
        return self._words[seed % len(self._words)]


@dataclass(frozen=True)
class Server:
    """A running server."""

    address: str
    pid: int

    def client(self) -> httpx2.AsyncClient:
        """Make a client that may ask as often at once as it likes."""
        return httpx2.AsyncClient(
            base_url=self.address,
            headers={"authorization": f"Bearer {KEY}"},
            timeout=120,
            limits=httpx2.Limits(max_connections=None),
        )

    def wait_until_idle(self) -> None:
        """Wait until no request is being prepared or answered, as long as that takes."""
        while self._num_running():
            time.sleep(0.01)

    def _num_running(self) -> int:
        headers = {"authorization": f"Bearer {KEY}"}
        text = httpx2.get(f"{self.address}/metrics", headers=headers).text
        return int(float(re.findall(r"(?m)^qianyan_requests_running (\S+)$", text)[0]))

    def memory_mib(self) -> float:
        """Give the memory that the process holds."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


@contextmanager
def serving(*, pass_ms: float | None = None, has_small_caches: bool = False) -> Iterator[Server]:
    """Run `qianyan serve` on the bundled judge, or with a stand-in for it."""
    state = tempfile.TemporaryDirectory()
    pace = [] if pass_ms is None else ["--pass-ms", str(pass_ms)]
    pace += ["--small-caches"] if has_small_caches else []
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, __file__, "serve", *pace, "--state-dir", state.name],
        env={**os.environ, "QIANYAN_API_KEYS": KEY, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.stdout.readline() + process.stdout.readline() if process.stdout else ""
        found = re.search(r"at (http://\S+)/v1", said)
        if found is None:
            raise SystemExit(f"the server did not start: {said}")
        yield Server(found[1], process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=60)
        state.cleanup()


def serve(pass_ms: float | None, state_dir: str, *, has_small_caches: bool) -> None:
    """Be that server; its command is the program's own."""
    engine: Engine | None = None if pass_ms is None else StandIn(pass_ms)
    if has_small_caches:
        runner.MAX_FEATURE_BYTES = 1 << 20
        config = EngineConfig(max_cache_tokens=LEAST_CACHE_TOKENS)
        engine = Engine("bundled", dtype="float32", config=config)
        engine.processor._prepared = PreparedPictures(1 << 20)  # noqa: SLF001
    if engine is not None:
        answering.load_engine = lambda _, **__: (engine, "bundled")
    sys.argv = ["qianyan", "serve", "--port", "0", "--state-dir", state_dir]
    sys.argv += ["--log-level", "warning"]
    main()


def body(question: str, num_tokens: int, **more: Any) -> dict[str, Any]:
    """Ask for a stream."""
    return {
        "model": "bundled",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": num_tokens,
        "temperature": 0,
        "stream": True,
        **more,
    }


@dataclass
class Stream:
    """What was read of an answer, and when: the times of its first and last words."""

    text: str = ""
    began: float = 0.0
    ended: float = 0.0
    num_pieces: int = 0


async def read(
    client: httpx2.AsyncClient, asked: dict[str, Any], *, most: int | None = None
) -> Stream:
    """Follow an answer to its end, or leave after `most` pieces of text."""
    read = Stream()
    async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                if piece := choice["delta"]["content"]:
                    read.text += piece
                    read.ended = time.perf_counter()
                    read.began = read.began or read.ended
                    read.num_pieces += 1
            if read.num_pieces == most:
                break
    return read


def bare_times(engine: StandIn, *, rounds: int, num_tokens: int) -> tuple[float, float]:
    """Give the median milliseconds to the first token and from one to the next, without HTTP."""
    firsts, gaps = [], []
    for number in range(rounds):
        begin = time.perf_counter()
        asked = body(f"Question {number}.", num_tokens)
        moments = [
            time.perf_counter()
            for event in engine.stream(asked["messages"], max_tokens=num_tokens, temperature=0)
            if getattr(event, "text", "")
        ]
        firsts.append(moments[0] - begin)
        gaps.append((moments[-1] - moments[0]) / (len(moments) - 1))
    return 1000 * statistics.median(firsts), 1000 * statistics.median(gaps)


async def served_times(server: Server, *, rounds: int, num_tokens: int) -> tuple[float, float]:
    """Give the same, over HTTP."""
    firsts, gaps = [], []
    async with server.client() as client:
        for number in range(-2, rounds):
            begin = time.perf_counter()
            answer = await read(client, body(f"Question {number}.", num_tokens))
            if number >= 0:  # the first ones open the connection
                firsts.append(answer.began - begin)
                gaps.append((answer.ended - answer.began) / (answer.num_pieces - 1))
    return 1000 * statistics.median(firsts), 1000 * statistics.median(gaps)


def measure_overhead(*, rounds: int = 40, num_tokens: int = 64) -> dict[str, Any]:
    """Time one answer after the other, bare and served, in turns."""
    engine = StandIn(PASS_MS)
    engine.chat(body("Warm.", 4)["messages"], max_tokens=4)
    with serving(pass_ms=PASS_MS) as server:
        size = {"rounds": rounds // 2, "num_tokens": num_tokens}
        turns = [
            (bare_times(engine, **size), asyncio.run(served_times(server, **size)))
            for _ in range(2)
        ]
    bare_first, bare_gap, first, gap = (
        statistics.mean(turn[side][which] for turn in turns) for side in (0, 1) for which in (0, 1)
    )
    return {
        "pass_ms": PASS_MS,
        "bare_first_token_ms": bare_first,
        "served_first_token_ms": first,
        "overhead_request_ms": first - bare_first,
        "bare_token_ms": bare_gap,
        "served_token_ms": gap,
        "overhead_token_ms": gap - bare_gap,
    }


async def ask_crowd(server: Server, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask alone, then all at once with a fifth leaving; compare and time."""
    async with server.client() as client:
        alone = [(await read(client, asked)).text for asked in questions]
        begin = time.perf_counter()
        together = await asyncio.gather(
            *(
                read(client, asked, most=4 if number in LEFT else None)
                for number, asked in enumerate(questions)
            )
        )
        ended = time.perf_counter()
        await asyncio.to_thread(server.wait_until_idle)
        idle = time.perf_counter()
    stayed = [number for number in range(len(questions)) if number not in LEFT]
    last_left = max(together[number].ended for number in LEFT)
    return {
        "streams": len(questions),
        "left_midway": len(LEFT),
        "same_as_alone": sum(together[number].text == alone[number] for number in stayed),
        "stayed": len(stayed),
        "idle_after_end_s": max(0.0, idle - ended),
        "tokens_per_s": sum(asked["max_tokens"] for asked in questions) / (ended - begin),
        "first_token_p50_ms": 1000
        * statistics.median(together[number].began - begin for number in stayed),
        "left_before_end_s": ended - last_left,
    }


async def leave_all(server: Server) -> float:
    """Let everybody leave midway; give the seconds until nothing runs."""
    async with server.client() as client:
        asked = [body(f"A story about {number}.", 1000) for number in range(NUM_STREAMS)]
        for one in asked:  # an answer that does not end by itself
            one["response_format"] = LONG
        await asyncio.gather(*(read(client, one, most=2) for one in asked))
    begin = time.perf_counter()
    await asyncio.to_thread(server.wait_until_idle)
    return time.perf_counter() - begin


LONG = {
    "type": "json_schema",
    "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 5000}},
}


def measure_crowd(*, pass_ms: float | None, num_tokens: int = 24) -> dict[str, Any]:
    """Ask 64 questions at once; the fifth that leaves asks for answers that would go on."""
    questions = []
    for number in range(NUM_STREAMS):
        asked = body(f"Question {number} about smoke and number {number * 7}.", num_tokens)
        if number in LEFT:
            asked |= {"max_tokens": 200, "response_format": LONG} if pass_ms is None else {}
        questions.append(asked)
    with serving(pass_ms=pass_ms) as server:
        figures = asyncio.run(ask_crowd(server, questions))
        if pass_ms is None:
            figures["idle_after_all_left_s"] = asyncio.run(leave_all(server))
    return figures


def fresh_picture(number: int) -> str:
    """Draw a picture that no other one equals; give it as a data: URI."""
    blocks = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(blocks).resize((336, 252)).save(held, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


async def send_pictures(server: Server, num_requests: int) -> list[float]:
    """Ask about pictures, four at a time; give the memory after each tenth of them."""
    numbers = iter(range(num_requests))
    memory: list[float] = []

    async def ask(client: httpx2.AsyncClient) -> None:
        for number in numbers:
            parts = [
                {"type": "image_url", "image_url": {"url": fresh_picture(number)}},
                {"type": "text", "text": "What is it?"},
            ]
            asked = body("", 2, messages=[{"role": "user", "content": parts}])
            await read(client, asked)
            if (number + 1) % max(1, num_requests // 10) == 0:
                memory.append(server.memory_mib())

    async with server.client() as client:
        await asyncio.gather(*(ask(client) for _ in range(4)))
    return memory


def measure_pictures(*, num_requests: int = 2000) -> dict[str, Any]:
    """Watch the server's memory, which may grow only while its caches fill, made small here."""
    with serving(has_small_caches=True) as server:
        begin = time.perf_counter()
        memory = asyncio.run(send_pictures(server, num_requests))
        seconds = time.perf_counter() - begin
    return {
        "requests": num_requests,
        "memory_mib": [round(one, 1) for one in memory],
        "growth_of_second_half_mib": round(memory[-1] - memory[len(memory) // 2 - 1], 1),
        "requests_per_s": num_requests / seconds,
    }


def measure(parts: list[str], num_requests: int) -> dict[str, Any]:
    """Take the figures of the parts that were asked for."""
    figures: dict[str, Any] = {}
    if "overhead" in parts:
        figures["overhead"] = measure_overhead()
    if "crowd" in parts:
        figures["crowd_stand_in"] = measure_crowd(pass_ms=PASS_MS)
        figures["crowd_judge"] = measure_crowd(pass_ms=None)
    if "pictures" in parts:
        figures["pictures"] = measure_pictures(num_requests=num_requests)
    return figures


def run() -> None:
    """Measure, or be the server that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", default=["overhead", "crowd", "pictures"])
    parser.add_argument("--requests", type=int, default=2000, help="pictures to send")
    parser.add_argument("--out", type=Path, help="folder of the JSON; none is written without")
    parser.add_argument("--pass-ms", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--small-caches", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--state-dir", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == ["serve"]:
        serve(options.pass_ms, options.state_dir, has_small_caches=options.small_caches)
        return
    now = datetime.now(UTC)
    figures = {
        "when": now.isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        **measure(options.part, options.requests),
    }
    print(json.dumps(figures, indent=2))
    if options.out is not None:
        name = f"{now:%Y-%m-%d}-online-{platform.node()}.json"
        (options.out / name).write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    run()
