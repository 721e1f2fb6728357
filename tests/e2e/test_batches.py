"""Folders with several pictures in the model at once: what is written is what one by one writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import qianyan
from qianyan.engine.runner import Runner
from qianyan.inputs.fetch import FetchLimits
from qianyan.inspection.folder import open_folder
from qianyan.inspection.inspector import LookSettings, open_look
from qianyan.inspection.line import PICTURES_AHEAD
from qianyan.inspection.run import Run
from qianyan.inspection.sources import list_sources
from qianyan.train.bundled.scenes import draw_scene

SAME_SCORE = 2e-4
"""Scores have four digits; packed with others, a sum may end in another last bit."""


def site(folder: Path, number: int) -> Path:
    """Draw scenes, and put a broken picture, a strip and a repeat among them."""
    folder.mkdir()
    for seed in range(number):
        scene = draw_scene(seed, width=320 + 40 * (seed % 3), height=240)
        Image.fromarray(scene.rgb).save(folder / f"s{seed:02}.png")
    (folder / "s01b.jpg").write_bytes(b"\xff\xd8\xff broken")
    Image.new("RGB", (1000, 10)).save(folder / "s03b.png")
    (folder / "s04b.png").write_bytes((folder / "s00.png").read_bytes())
    return folder


def lines(out: Path, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """Inspect a folder; give its lines in their order, without times, and scores apart."""
    chosen = LookSettings.from_options(settings)
    opened = open_look(chosen)
    assert opened.batch is not None
    written = open_folder(out, settings={}, lang="en")
    run = Run(
        list_sources([str(folder)]),
        opened.look,
        written,
        limits=FetchLimits(),
        workers=opened.batch.size + PICTURES_AHEAD,
        is_ordered=True,
    )
    assert sum(1 for _ in run.inspect()) == len(list(folder.iterdir())) - 1  # the repeat
    records = [json.loads(line) for line in written.lines_file.read_text("utf-8").splitlines()]
    for record in records:
        record.pop("timing")
        record["raw"] = None  # has the judge's shares in three digits
        record["scores"] = [one.pop("score") for one in record["detections"] or ()]
        record["scores"] += [one.pop("score") for one in record["vetoed"]]
    return records


@pytest.mark.parametrize("way", ["detector", "cascade"])
def test_the_bundled_models_find_the_same_in_a_batch(tmp_path: Path, way: str) -> None:
    folder = site(tmp_path / "site", 6)
    alone = lines(tmp_path / "alone", folder, look=way, batch=1)
    together = lines(tmp_path / "together", folder, look=way, batch=4)
    scores = [[record.pop("scores") for record in records] for records in (alone, together)]
    assert together == alone
    for one, other in zip(*scores, strict=True):
        assert one == pytest.approx(other, abs=SAME_SCORE)
    assert sum(record["error"] is not None for record in alone) == 2
    assert any(record["detections"] for record in alone)


def test_a_listing_model_answers_the_same_in_a_batch_and_runs_several_together(
    tmp_path: Path, taught_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    forward = Runner.forward

    def watched(runner: Runner, plan: Any) -> Any:
        most.append(len(plan.chunks))
        return forward(runner, plan)

    monkeypatch.setattr(Runner, "forward", watched)
    folder = site(tmp_path / "site", 5)
    settings = {"model": str(taught_checkpoint), "max_pixels": 224 * 168, "max_objects": 2}
    alone = lines(tmp_path / "alone", folder, **settings, batch=1)
    assert max(most) == 1
    together = lines(tmp_path / "together", folder, **settings, batch=4)
    assert 2 <= max(most) <= 4
    scores = [[record.pop("scores") for record in records] for records in (alone, together)]
    assert together == alone
    for one, other in zip(*scores, strict=True):
        assert one == pytest.approx(other, abs=SAME_SCORE)


def test_pictures_of_a_list_come_in_its_order_from_python(tmp_path: Path) -> None:
    folder = site(tmp_path / "site", 4)
    names = [folder / "s02.png", folder / "s01b.jpg", folder / "s00.png", folder / "s03.png"]
    found = qianyan.inspect(names, look="detector", batch="auto")
    assert [one.source for one in found] == [str(name) for name in names]
    assert [one.error is not None for one in found] == [False, True, False, False]


def test_a_taught_model_finds_its_fire_among_others_in_a_batch(
    tmp_path: Path, taught_checkpoint: Path, fire_photo: Image.Image, clean_photo: Image.Image
) -> None:
    for number in range(6):
        photo = fire_photo if number % 2 else clean_photo
        photo = photo.copy()
        photo.putpixel((0, 0), (number, 0, 0))  # or they would be repeats
        photo.save(tmp_path / f"p{number}.png")
    found = qianyan.inspect(
        sorted(tmp_path.glob("p*.png")), model=taught_checkpoint, max_pixels=224 * 168, batch=3
    )
    assert [len(one.detections or ()) for one in found] == [0, 1] * 3
