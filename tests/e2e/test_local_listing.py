"""The listing look with a checkpoint in this process: schema, scores, several questions at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import qianyan
from qianyan.engine.blocks import BLOCK_SIZE
from qianyan.engine.engine import Engine
from qianyan.errors import ReplyError
from qianyan.inputs.images import Photo
from qianyan.inspection.detect import Lister, detect
from qianyan.inspection.prompts import (
    ListingForm,
    PromptOrder,
    listing_parts,
    listing_prompt,
    listing_schema,
)
from qianyan.inspection.records import Box, Hazard, SubLabel
from qianyan.inspection.two_steps import TwoSteps
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


def test_an_answer_ends_behind_the_last_object_allowed_without_a_pass(
    taught: LocalVision, fire_photo: Image.Image
) -> None:
    notation = taught.notation
    prompt = listing_prompt(lang="zh", notation=notation, seen_wh=taught.seen_wh(fire_photo.size))
    one, ten = taught.ask_many(
        [
            Ask(
                image=fire_photo,
                text=prompt,
                schema=listing_schema(lang="zh", notation=notation, max_objects=most),
                logprobs=1,
            )
            for most in (1, 10)
        ]
    )
    assert one.text == ten.text
    assert one.finish_reason == ten.finish_reason == "stop"
    assert one.tokens is not None
    assert ten.tokens is not None
    assert one.tokens[-1].data.endswith(b"]")
    assert (one.tokens[-1].logprob, len(one.tokens[-1].top)) == (0.0, 1), "it was forced"
    assert ten.tokens[-1].logprob < 0, "it was a choice"
    assert one.usage.forwarded_tokens is not None
    assert ten.usage.forwarded_tokens is not None
    assert one.usage.forwarded_tokens < ten.usage.forwarded_tokens


def test_a_budget_of_visual_tokens_is_kept_and_counted(
    untaught: LocalVision, fire_photo: Image.Image
) -> None:
    usual = untaught.ask(Ask(image=fire_photo, text="?", max_tokens=1))
    small = untaught.ask(Ask(image=fire_photo, text="?", max_tokens=1, visual_tokens=20))
    assert (usual.seen_wh, usual.usage.visual_tokens) == ((224, 168), 48)
    assert small.seen_wh == untaught.seen_wh(fire_photo.size, 20)
    assert small.usage.visual_tokens == untaught.count_tokens(small.seen_wh) <= 20
    assert small.usage.prompt_tokens == usual.usage.prompt_tokens - (
        usual.usage.visual_tokens - small.usage.visual_tokens
    )


@pytest.mark.parametrize("order", ["picture-first", "rules-first"])
def test_what_comes_before_the_picture_is_computed_once_a_run(
    random_checkpoint: Path, fire_photo: Image.Image, clean_photo: Image.Image, order: PromptOrder
) -> None:
    engine = Engine(random_checkpoint, max_pixels=SEEN_PIXELS)
    vision = LocalVision(engine)
    known = []
    for photo, width in ((fire_photo, 448), (clean_photo, 392)):
        prompt = listing_parts(
            lang="zh",
            notation=vision.notation,
            seen_wh=vision.seen_wh((width, 336)),
            form=ListingForm(order=order),
        )
        ask = Ask(image=photo.resize((width, 336)), text=prompt.after, before=prompt.before)
        done = engine.chat(vision.messages(ask), max_tokens=1)
        known.append(done.usage.cached_tokens)
    template = engine.processor(vision.messages(replace(ask, before="", text="")))
    constant = len(engine.processor.tokenizer.encode(prompt.before))
    start = template.prompt_token_ids.index(engine.processor.tokenizer.token_id("<|vision_start|>"))
    whole_blocks = (start + constant) // BLOCK_SIZE * BLOCK_SIZE
    assert known[0] == 0
    assert known[1] >= whole_blocks
    assert (constant > 3 * BLOCK_SIZE) is (order == "rules-first")


def test_two_looks_with_a_checkpoint_here_give_boxes_inside_or_an_error(
    untaught: LocalVision, fire_photo: Image.Image
) -> None:
    lister = Lister(vision=untaught, lang="zh", max_objects=2)
    two = TwoSteps(seer=lister, lang="zh", max_objects=2, visual_tokens=20)
    try:
        look = two.look(Photo(fire_photo))
    except ReplyError:
        return
    assert all(one.box.x2 <= 448 and one.box.y2 <= 336 for one in look.detections)
    assert look.usage.visual_tokens <= 48


@pytest.mark.parametrize(
    "settings",
    [
        {"look": "two-step", "visual_tokens": 64},
        {"visual_tokens": 64, "prompt_order": "rules-first", "answer_form": "rows"},
    ],
    ids=str,
)
def test_inspect_takes_budget_order_and_form(
    random_checkpoint: Path, fire_photo: Image.Image, tmp_path: Path, settings: dict[str, Any]
) -> None:
    photo = tmp_path / "site.png"
    fire_photo.resize((896, 672)).save(photo)
    verdict = qianyan.inspect(photo, model=random_checkpoint, max_objects=2, **settings)
    if verdict.error is not None:  # a model that has learnt nothing may box nothing usable
        assert verdict.error.code == ReplyError.code
        assert verdict.detections is None
        return
    assert all(one.box.x2 <= 896 and one.box.y2 <= 672 for one in verdict.detections or ())
    assert 0 < verdict.usage.visual_tokens <= 32 * 24
