"""The verb that measures: this machine, a model on the inspection work, and what limits it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import count
from json import dumps
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qianyan import __version__
from qianyan.cli.options import (
    Config,
    Debug,
    Device,
    DtypeOption,
    Lang,
    MaxPixels,
    Model,
    QuantizeOption,
    WordsOption,
    look_settings,
    option,
)
from qianyan.errors import ConfigError, quote

if TYPE_CHECKING:
    from qianyan.cli.bench_words import Measured
    from qianyan.engine.benchmark import Bench, Timing
    from qianyan.engine.engine import Messages
    from qianyan.engine.options import ChatOptions
    from qianyan.inspection.inspector import LookSettings

SCHEMA = "qianyan.bench/1"
PICTURE_WH = (1008, 756)
NUM_OBJECTS = 4
MAX_TOKENS = 640
MOST_PICTURES = 256
COORDINATE = {"type": "integer", "minimum": 100, "maximum": 999}
"""Three digits each: every answer has the same length, whatever a model thinks it sees."""

Pictures = Annotated[
    int,
    option("--pictures", "most questions asked together to see what a batch gains; 1: no batch"),
]
BenchOut = Annotated[
    Path | None, option("--out", "folder for bench.json and bench.png, a chart of the time by part")
]
AsJson = Annotated[bool, option("--json", "print all figures as JSON on standard output")]


def bench(
    context: typer.Context,
    model: Model = "bundled",
    pictures: Pictures = 8,
    device: Device = "cpu",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    max_pixels: MaxPixels = None,
    lang: WordsOption = "zh",
    json: AsJson = False,
    out: BenchOut = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Measure how fast a model works here, how near to the machine's limits, and what would help.

    Example: qianyan bench --model path/to/Qwen2.5-VL-3B-Instruct --out bench
    """
    from qianyan.cli.bench_words import WORDS, table, verdict

    if not 1 <= pictures <= MOST_PICTURES:
        raise ConfigError(f"pictures is {pictures}; expected 1 to {MOST_PICTURES}.")
    if out is not None:
        _make_folder(out)  # before minutes of measuring
    with _progress(lang) as say:
        measured = _measure(look_settings(context), pictures, say)
    text = dumps(to_record(measured), ensure_ascii=False, indent=1)
    if json:
        print(text)
    else:
        print("\n".join([*table(measured, lang), "", verdict(measured, lang)]))
    if out is not None:
        _write(out, text, measured, lang)
        print(WORDS[lang]["written"].format(path=out), file=sys.stderr)


@contextmanager
def _progress(lang: Lang) -> Iterator[Callable[[str], None]]:
    """Say on standard error what is being done: a line that changes, or lines in a log."""
    from rich.console import Console

    from qianyan.cli.bench_words import WORDS

    console = Console(stderr=True, highlight=False)
    with console.status("") as status:

        def say(step: str) -> None:
            words = WORDS[lang][f"{step}_step"]
            if console.is_terminal:
                status.update(words)
            else:
                console.print(words, markup=False, soft_wrap=True)

        yield say


def _measure(settings: "LookSettings", pictures: int, say: Callable[[str], None]) -> "Measured":
    """Measure the machine, the model and, for a pair, detector and judge together."""
    from qianyan.cli.bench_words import Measured
    from qianyan.engine.benchmark import Bench, measure
    from qianyan.engine.checkpoint import BUNDLED
    from qianyan.engine.engine import check_device
    from qianyan.inspection.inspector import find_pair

    check_device(settings.device)
    pair = find_pair(settings.model)
    say("load")
    folder = settings.model if pair is None or settings.model == BUNDLED else pair / "judge"
    is_auto = pair is not None and settings.dtype == "auto"
    opened = Bench.open(
        folder,
        dtype="float32" if is_auto else settings.dtype,  # as `inspect` runs the small judge
        device=settings.device,
        quantize=settings.quantize,
        max_pixels=settings.max_pixels,
    )
    questions, options = _questions(opened)
    figures = measure(opened, questions, options, num_together=pictures, say=say)
    if pair is None:
        return Measured(figures=figures)
    say("pair")
    return Measured(
        figures=replace(figures, name=Path(settings.model).name),
        pair_per_minute=_pair_per_minute(settings),
    )


def _questions(opened: "Bench") -> tuple[Iterator["Messages"], "ChatOptions"]:
    """Ask the inspection's question about drawn scenes, one after another without end.

    Models that read text only get the question alone.
    """
    from qianyan.engine.options import ChatOptions
    from qianyan.inputs.grounding import Notation, find_notation
    from qianyan.inspection.prompts import listing_prompt
    from qianyan.train.bundled.scenes import draw_scene

    engine = opened.engine
    sees = engine.processor.pictures is not None
    notation = find_notation(engine.architecture) or Notation.RESIZED_PIXELS
    seen_wh = engine.processor.seen_wh(PICTURE_WH) if sees else PICTURE_WH
    text = listing_prompt(lang="zh", notation=notation, seen_wh=seen_wh)

    def ask() -> Iterator["Messages"]:
        for seed in count():
            parts: list[dict[str, Any]] = [{"type": "text", "text": f"{text}\n{seed}"}]
            if sees:
                width, height = PICTURE_WH
                scene = draw_scene(seed, width=width, height=height)
                parts = [{"type": "image", "image": _to_image(scene.rgb)}, *parts]
            yield [{"role": "user", "content": parts}]

    schema = {"name": "detections", "schema": answer_schema()}
    form = {"type": "json_schema", "json_schema": schema}
    options = ChatOptions(temperature=0, max_tokens=MAX_TOKENS, response_format=form)
    return ask(), options


def _to_image(rgb: Any) -> Any:
    from PIL import Image

    return Image.fromarray(rgb)


def answer_schema() -> dict[str, Any]:
    """Bound an answer as the inspection does, to exactly `NUM_OBJECTS` objects of three digits."""
    from qianyan.inputs.grounding import Notation
    from qianyan.inspection.prompts import listing_schema

    schema = listing_schema(lang="zh", notation=Notation.RESIZED_PIXELS, max_objects=NUM_OBJECTS)
    schema["minItems"] = NUM_OBJECTS
    for kind in schema["items"]["anyOf"]:
        kind["properties"]["bbox_2d"]["items"] = COORDINATE
    return schema


def _pair_per_minute(settings: "LookSettings") -> float:
    """Time detector and judge on drawn scenes, as `inspect` runs them."""
    from qianyan.engine.benchmark import REPEATS
    from qianyan.inputs.images import Photo
    from qianyan.inspection.inspector import open_look
    from qianyan.train.bundled.scenes import draw_scene

    look = open_look(settings).look
    width, height = PICTURE_WH
    times = []
    for seed in range(1 + REPEATS):
        photo = Photo(_to_image(draw_scene(seed, width=width, height=height).rgb))
        started = perf_counter()
        look(photo)
        times.append(perf_counter() - started)
    return 60 / median(times[1:])


def to_record(measured: "Measured") -> dict[str, Any]:
    """Write everything measured as one JSON object; docs/performance.md says what is what."""
    from qianyan.cli.bench_words import alone_per_minute, batch_gain, slowest_part, verdict

    figures = asdict(measured.figures)
    machine = figures.pop("limits")
    for name in ("first", "steady"):
        figures[name] = _with_rates(getattr(measured.figures, name))
    figures["growth"] = [
        asdict(one) | {"pictures_per_minute": one.pictures_per_minute}
        for one in measured.figures.growth
    ]
    batch = measured.figures.batch
    if batch is not None:
        figures["batch"] |= {
            "pictures_per_minute": batch.pictures_per_minute,
            "gain": batch_gain(measured.figures),
        }
    return {
        "schema": SCHEMA,
        "version": __version__,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "model": figures,
        "pictures_per_minute": alone_per_minute(measured.figures.steady),
        "pair_pictures_per_minute": measured.pair_per_minute,
        "slowest_part": slowest_part(measured.figures.steady),
        "verdict": {"zh": verdict(measured, "zh"), "en": verdict(measured, "en")},
    }


def _with_rates(timing: "Timing") -> dict[str, Any]:
    return asdict(timing) | {
        "prefill_tokens_per_s": timing.prefill_tokens_per_s,
        "decode_tokens_per_s": timing.decode_tokens_per_s,
    }


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{quote(out)} is a file; expected a folder for the figures.") from error


def _write(out: Path, text: str, measured: "Measured", lang: Lang) -> None:
    from qianyan.cli.bench_chart import draw_chart

    (out / "bench.json").write_text(text + "\n", "utf-8")
    draw_chart(measured.figures, lang).save(out / "bench.png")
