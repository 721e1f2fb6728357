"""How long does a picture take from its file to patches, beside transformers' own processor?

    python benchmarks/picture_preparation.py [PHOTO.jpg ...]

A drawn scene is saved as JPEG at 4000 x 3000 and 1008 x 756 pixels; further photos can be named.
Both sides decode the same bytes and make the rows a Qwen2-VL tower reads, at the released limits
of size; transformers does so with its Pillow-backed processor. They take turns, and medians are
taken. Prints, and writes as JSON with --out, milliseconds by part and the ratio. Without
transformers only our own parts are measured.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from qianyan.inputs.images import read_image
from qianyan.inputs.patches import PatchConfig, make_patches, resize
from qianyan.train.bundled.scenes import draw_scene

SIZES = ((4000, 3000), (1008, 756))
MIN_PIXELS, MAX_PIXELS = 3136, 12_845_056
QUALITY = 90


def drawn_jpeg(size: tuple[int, int]) -> bytes:
    """Save one drawn scene as JPEG of a size."""
    out = BytesIO()
    scene = draw_scene(7, width=size[0], height=size[1])
    Image.fromarray(scene.rgb).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def prepare(data: bytes, config: PatchConfig) -> dict[str, float]:
    """Prepare a picture, giving the seconds of each part."""
    marks = [time.perf_counter()]
    photo = read_image(data)
    marks.append(time.perf_counter())
    seen = resize(photo.rgb, config)
    marks.append(time.perf_counter())
    make_patches([seen], config)
    marks.append(time.perf_counter())
    names = ("decode", "resize", "patches")
    return {name: marks[i + 1] - marks[i] for i, name in enumerate(names)}


def transformers_preparer() -> Callable[[bytes], dict[str, float]] | None:
    """Make the same of transformers' processor; None where it is not installed."""
    if find_spec("transformers") is None:
        return None
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (  # noqa: PLC0415
        Qwen2VLImageProcessorPil,
    )

    process = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)

    def prepare_there(data: bytes) -> dict[str, float]:
        begin = time.perf_counter()
        image = Image.open(BytesIO(data)).convert("RGB")
        decoded = time.perf_counter()
        process(images=[image], return_tensors="np")
        return {"decode": decoded - begin, "the rest": time.perf_counter() - decoded}

    return prepare_there


def medians_ms(runs: list[dict[str, float]]) -> dict[str, float]:
    """Give each part's median and that of their sum, in milliseconds."""
    parts = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    whole = statistics.median(sum(run.values()) for run in runs)
    return {part: round(1000 * seconds, 2) for part, seconds in (parts | {"whole": whole}).items()}


def measure(data: bytes, there: Callable[..., Any] | None, rounds: int) -> dict[str, Any]:
    """Let both sides prepare one picture in turns; the first round is not counted."""
    config = PatchConfig(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    ours, theirs = [], []
    for _ in range(rounds + 1):
        ours.append(prepare(data, config))
        if there is not None:
            theirs.append(there(data))
    figures: dict[str, Any] = {"ours_ms": medians_ms(ours[1:])}
    if theirs:
        figures["transformers_ms"] = medians_ms(theirs[1:])
        ratio = figures["ours_ms"]["whole"] / figures["transformers_ms"]["whole"]
        figures["ratio"] = round(ratio, 3)
    return figures


def main() -> None:
    """Measure drawn pictures and named photos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder of the JSON; none is written without")
    options = parser.parse_args()
    pictures = {f"drawn, {w}x{h}": drawn_jpeg((w, h)) for w, h in SIZES}
    pictures |= {path.name: path.read_bytes() for path in options.photos}
    there = transformers_preparer()
    now = datetime.now(UTC)
    figures = {
        "when": now.isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "pillow": Image.__version__,
        "pictures": {name: measure(data, there, options.rounds) for name, data in pictures.items()},
    }
    print(json.dumps(figures, indent=2))
    if options.out is not None:
        name = f"{now:%Y-%m-%d}-picture-preparation-{platform.node()}.json"
        (options.out / name).write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
