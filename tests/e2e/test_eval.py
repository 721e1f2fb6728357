"""The bundled models on the drawn example pictures, scored against what was painted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from qianyan.inspection.results import read_run
from qianyan.train.bundled.scene_store import scene_boxes
from qianyan.train.bundled.scenes import EXAMPLES, draw_scene

WIDTH, HEIGHT = 960, 720
NAMES = ("fire", "smoke", "person", "helmet", "head")


def write_labels(folder: Path) -> None:
    """Draw the examples in folder/images, and what was painted as folder/labels.json."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index, recipe in enumerate(EXAMPLES):
        scene = draw_scene(
            recipe.seed, width=WIDTH, height=HEIGHT, kind=recipe.kind, place=recipe.place
        )
        Image.fromarray(scene.rgb).save(folder / "images" / f"{recipe.name}.png")
        images.append(
            {"id": index, "file_name": f"{recipe.name}.png", "width": WIDTH, "height": HEIGHT}
        )
        for box in scene_boxes(scene):
            x1, y1, x2, y2 = (float(one) for one in np.asarray(box.box))
            annotations.append(
                {"image_id": index, "category_id": NAMES.index(box.kind),
                 "bbox": [x1, y1, x2 - x1, y2 - y1]}
            )  # fmt: skip
    categories = [{"id": index, "name": name} for index, name in enumerate(NAMES)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(whole))


def test_the_bundled_models_are_scored_on_the_example_pictures(tmp_path: Path) -> None:
    write_labels(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "qianyan", "eval", "--gt", "labels.json", "--lang", "en"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "By picture" in done.stdout
    out = tmp_path / "qianyan-eval"
    whole = json.loads((out / "eval.json").read_text("utf-8"))
    figures = whole["figures"]
    assert figures["looked_at"] == len(EXAMPLES)
    fire = figures["images"]["fire"]["recall"]
    assert fire["total"] > 0
    assert fire["hits"] == fire["total"], "an example exists to be found"
    assert figures["boxes"]["fire"]["f1"]["value"] > 0.5
    assert 0 < figures["boxes"]["fire"]["ap_50"]["value"] <= 1
    assert figures["heads"]["right"]["total"] > 0
    facts, inspections = read_run(out / "results.json")
    assert (facts.model, len(inspections)) == ("bundled", len(EXAMPLES))
    page = (out / "eval.html").read_text("utf-8")
    assert page.count("<svg") >= 3
    names = [f"{recipe.name}.png" for recipe in EXAMPLES]
    assert [picture["file"] for picture in whole["pictures"]] == names
