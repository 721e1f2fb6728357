"""The listing look with a checkpoint in this process: schema, scores, several questions at once."""

from pathlib import Path

import pytest
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.errors import ReplyError
from qianyan.inputs.images import Photo
from qianyan.inspection.detect import detect
from qianyan.inspection.records import Box, Hazard, SubLabel
from qianyan.inspection.vision import Ask, LocalVision

SEEN_PIXELS = 224 * 168


@pytest.fixture(scope="module")
def taught(taught_checkpoint: Path) -> LocalVision:
    return LocalVision(Engine(taught_checkpoint, max_pixels=SEEN_PIXELS))


@pytest.fixture(scope="module")
def untaught(random_checkpoint: Path) -> LocalVision:
    return LocalVision(Engine(random_checkpoint, max_pixels=SEEN_PIXELS))


def test_a_model_that_knows_the_photos_is_read_with_its_scores(
    taught: LocalVision, fire_photo: Image.Image, clean_photo: Image.Image
) -> None:
    look = detect(Photo(fire_photo), taught, lang="zh")
    (found,) = look.detections
    assert (found.label, found.sub_label) == (Hazard.FIRE, SubLabel.SEVERE)
    assert found.box == Box(112, 84, 224, 168)
    assert found.score_kind == "logprob"
    assert found.score is not None
    assert 0.9 < found.score <= 1
    assert look.usage.forwarded_tokens is not None
    assert look.usage.forwarded_tokens < look.usage.completion_tokens  # the schema forced the rest
    clean = detect(Photo(clean_photo), taught, lang="zh")
    assert clean.detections == ()
    assert clean.raw == "[]"


def test_a_random_model_held_to_the_schema_gives_boxes_inside_or_an_error(
    untaught: LocalVision, fire_photo: Image.Image
) -> None:
    for max_objects in (1, 2, 3):
        try:
            look = detect(Photo(fire_photo), untaught, lang="zh", max_objects=max_objects)
        except ReplyError:
            continue
        assert len(look.detections) <= max_objects
        assert all(one.box.x2 <= 448 and one.box.y2 <= 336 for one in look.detections)
        assert look.detections or look.raw == "[]"


def test_several_questions_of_different_kinds_are_answered_in_order(
    taught: LocalVision, fire_photo: Image.Image, clean_photo: Image.Image
) -> None:
    asks = [
        Ask(image=fire_photo, text="?", max_tokens=1, logprobs=3),
        Ask(image=clean_photo, text="?", max_tokens=4),
        Ask(image=clean_photo.resize((112, 112)), text="?", max_tokens=1, logprobs=3),
    ]
    together = taught.ask_many(asks)
    assert [answer.text for answer in together] == [taught.ask(one).text for one in asks]
    assert [answer.seen_wh for answer in together] == [(224, 168), (224, 168), (112, 112)]
    first, second, third = together
    assert first.tokens is not None
    assert third.tokens is not None
    assert second.tokens is None
    assert len(first.tokens) == 1
    assert len(first.tokens[0].top) >= 3
    assert first.tokens[0].logprob == max(first.tokens[0].top.values())
    assert first.finish_reason == "length"
    assert taught.ask_many([]) == []
