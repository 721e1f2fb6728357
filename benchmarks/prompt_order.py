"""What stays known from one picture to the next, and what is it worth, in either prompt order?

    python benchmarks/prompt_order.py CHECKPOINT [--pictures 3] [--lang zh]

Asks the listing question about pictures of noise, each another one, and prints for each order the
prompt's tokens, those known from the picture before, and the median seconds to the first token from
the second picture on. The first picture pays for everything and is left out. Orders take turns.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.inspection.prompts import ListingForm, PromptOrder, listing_parts
from qianyan.inspection.vision import Ask, LocalVision

PICTURE_WH = (1008, 756)


def question(vision: LocalVision, lang: Any, order: PromptOrder, seed: int) -> Ask:
    """Ask about a picture that nobody has seen before."""
    width, height = PICTURE_WH
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    prompt = listing_parts(
        lang=lang,
        notation=vision.notation,
        seen_wh=vision.seen_wh(PICTURE_WH),
        form=ListingForm(order=order),
    )
    return Ask(image=Image.fromarray(pixels), text=prompt.after, before=prompt.before)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--lang", choices=("zh", "en"), default="zh")
    options = parser.parse_args()
    engine = Engine(options.checkpoint)
    vision = LocalVision(engine)
    seconds: dict[str, list[float]] = {}
    facts: dict[str, str] = {}
    for number in range(1 + options.pictures):
        for place, order in enumerate(get_args(PromptOrder)):
            ask = question(vision, options.lang, order, 2 * number + place)
            started = time.perf_counter()
            usage = engine.chat(vision.messages(ask), max_tokens=1).usage
            if number:
                seconds.setdefault(order, []).append(time.perf_counter() - started)
            facts[order] = f"{usage.prompt_tokens:>8}{usage.cached_tokens:>8}"
    print(f"{'order':16}{'prompt':>8}{'known':>8}{'seconds':>9}")
    for order, times in seconds.items():
        print(f"{order:16}{facts[order]}{statistics.median(times):>9.2f}")


if __name__ == "__main__":
    main()
