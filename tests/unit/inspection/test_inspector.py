"""Which model looks, and how: settings become a way to look, or a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.errors import CheckpointError, ConfigError, EndpointError
from qianyan.inputs.images import Photo
from qianyan.inspection.inspector import AUTO, LookSettings, find_detector, find_pair, open_look
from qianyan.inspection.records import Box, Hazard
from qianyan.train.bundled.scenes import UNSEEN_FROM, draw_scene


def test_a_pair_is_a_folder_with_a_detector(tiny_pair: Path, tmp_path: Path) -> None:
    assert find_pair(str(tiny_pair)) == tiny_pair
    assert find_pair(str(tmp_path)) is None
    assert find_pair("owner/name") is None


def test_a_detector_alone_looks_without_a_judge(tiny_pair: Path) -> None:
    opened = open_look(LookSettings(model=str(tiny_pair), look="detector", max_objects=3))
    found = opened.look(Photo(Image.new("RGB", (80, 60), (200, 90, 0))))
    assert [one.label for one in found.detections] == [Hazard.FIRE] * 3
    assert found.notes


def test_a_pair_without_a_judge_is_named_as_incomplete(tiny_pair: Path) -> None:
    with pytest.raises(CheckpointError, match="judge"):
        open_look(LookSettings(model=str(tiny_pair)))


def test_the_pair_cannot_list(tiny_pair: Path) -> None:
    with pytest.raises(ConfigError, match="cannot list boxes; use --look cascade"):
        open_look(LookSettings(model=str(tiny_pair), look="list"))


def test_an_address_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(EndpointError, match="nonsense"):
        open_look(LookSettings(base_url="nonsense"))


def test_the_key_is_neither_shown_nor_kept_with_the_run() -> None:
    settings = LookSettings(base_url="http://h/v1", api_key="sk-secret")
    assert "sk-secret" not in repr(settings)
    assert "sk-secret" not in str(settings.for_resume())


def test_a_run_is_resumed_on_another_device_but_not_with_another_model() -> None:
    here = LookSettings().for_resume()
    assert LookSettings(device="cuda", workers=9, api_key="k").for_resume() == here
    assert LookSettings(model="other").for_resume() != here
    assert LookSettings(look="detector").for_resume() != here


def test_options_become_settings_and_what_fetching_may_do() -> None:
    settings = LookSettings.from_options(
        {"model": Path("a") / "b", "allow_hosts": ["cam1.lan"], "fetch_timeout_s": 3.0}
    )
    assert settings.model == "a/b"
    assert settings.fetch_limits.allow_private == {"cam1.lan"}
    assert settings.fetch_limits.timeout_s == 3.0


@pytest.mark.parametrize(("given", "batch"), [("auto", AUTO), ("3", 3), (7, 7)])
def test_a_batch_is_a_number_or_left_to_memory_and_cores(given: object, batch: int) -> None:
    assert LookSettings.from_options({"batch": given}).batch == batch


@pytest.mark.parametrize("given", [0, "0", "-1", "many", 1000, True, 1.5])
def test_a_batch_that_is_no_number_of_pictures_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="batch is"):
        LookSettings.from_options({"batch": given})


def test_a_local_look_says_how_many_pictures_are_answered_together(tiny_pair: Path) -> None:
    look = {"model": str(tiny_pair), "look": "detector"}
    assert open_look(LookSettings.from_options(look)).batch.limit == "cores"
    given = open_look(LookSettings.from_options({**look, "batch": 5})).batch
    assert (given.size, given.limit) == (5, "given")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("look", "three-step", "expected auto or list or two-step"),
        ("visual_tokens", 63, "expected 64 to 16384"),
        ("visual_tokens", 16_385, "expected 64 to 16384"),
        ("prompt_order", "question-first", "expected picture-first or rules-first"),
        ("answer_form", "prose", "expected objects or rows"),
    ],
)
def test_a_budget_or_form_that_there_is_not_is_refused(
    name: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LookSettings.from_options({name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"look": "two-step"}, "cannot list boxes"),
        ({"look": "detector", "visual_tokens": 100}, "no visual tokens; leave it out"),
        ({"look": "detector", "prompt_order": "rules-first"}, "only lists are asked for"),
        ({"look": "cascade", "answer_form": "rows"}, "with --look cascade"),
    ],
    ids=str,
)
def test_what_a_pair_cannot_do_is_said(
    tiny_pair: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_look(LookSettings(model=str(tiny_pair), **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"look": "two-step"},
        {"visual_tokens": 256},
        {"prompt_order": "rules-first"},
        {"answer_form": "rows"},
    ],
    ids=str,
)
def test_the_first_generation_is_asked_in_its_own_way_only(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="sees every picture in one size"):
        open_look(LookSettings(base_url="http://h/v1", model="qwen-vl-chat", **settings))


def test_budget_and_forms_belong_to_a_run_that_is_resumed() -> None:
    here = LookSettings().for_resume()
    for changed in (
        LookSettings(visual_tokens=256),
        LookSettings(prompt_order="rules-first"),
        LookSettings(answer_form="rows"),
    ):
        assert changed.for_resume() != here


def test_settings_reach_an_endpoint(start_endpoint: Callable[..., Any]) -> None:
    endpoint = start_endpoint()
    opened = open_look(
        LookSettings(
            base_url=endpoint.base_url,
            model="squares-vl",
            look="two-step",
            visual_tokens=432,
            prompt_order="rules-first",
        )
    )
    picture = Image.new("RGB", (1600, 1200), (128, 128, 128))
    picture.paste((230, 30, 30), (901, 603, 951, 652))
    found = opened.look(Photo(picture))
    assert [one.box.iou(Box(901, 603, 951, 652)) > 0.95 for one in found.detections] == [True]
    assert "looked twice: 1 parts at full size" in found.notes
    whole, part = endpoint.pictures
    assert whole.width * whole.height <= 432 * 784
    assert part.width < whole.width
    contents = [one["messages"][0]["content"] for one in endpoint.requests]
    assert [part["type"] for part in contents[0]] == ["text", "image_url", "text"]
    assert contents[0][0] == contents[1][0], "the same words come before every picture"


def test_the_bundled_detector_alone_has_a_name_of_its_own() -> None:
    photo = Photo(Image.fromarray(draw_scene(UNSEEN_FROM + 5, width=640, height=480).rgb))
    fast = open_look(LookSettings(model="bundled-fast"))
    found = fast.look(photo)
    assert found == open_look(LookSettings(model="bundled", look="detector")).look(photo)
    assert {one.score_kind for one in found.detections} == {"detector"}
    assert fast.model == "bundled-fast"


def test_a_detectors_own_folder_is_a_model(tiny_pair: Path) -> None:
    assert find_detector(str(tiny_pair / "detector")) == tiny_pair / "detector"
    assert find_detector(str(tiny_pair)) is None
    opened = open_look(LookSettings(model=str(tiny_pair / "detector"), max_objects=3))
    assert opened.look(Photo(Image.new("RGB", (80, 60), (200, 90, 0)))).detections


@pytest.mark.parametrize("look", ["list", "two-step", "cascade"])
def test_a_detector_alone_neither_lists_nor_judges(look: Any) -> None:
    with pytest.raises(ConfigError, match="is a detector alone; expected detector"):
        open_look(LookSettings(model="bundled-fast", look=look))
