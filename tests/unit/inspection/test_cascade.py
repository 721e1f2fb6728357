"""The detector proposes, the judge decides, vetoes are kept."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qianyan.errors import EndpointError, ReplyError
from qianyan.inputs.grounding import Notation
from qianyan.inputs.images import Photo
from qianyan.inspection.cascade import Cascade, most_urgent, severity, whole_pixels
from qianyan.inspection.prompts import load_questions
from qianyan.inspection.records import Box, Detection, Hazard, Look, SubLabel, Usage
from qianyan.inspection.vision import Answer, Ask, TokenScore
from qianyan.models.detector import Kind, Proposal

WIDTH, HEIGHT = 400, 300
Shares = dict[str, float]


class FakeVision:
    """A judge that answers by rule and remembers what it was asked."""

    name = "fake"
    notation = Notation.RESIZED_PIXELS

    def __init__(self, rule: Callable[[Ask], Shares | str]) -> None:
        self.rule = rule
        self.asked: list[Ask] = []

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        return photo_wh

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        return seen_wh[0] * seen_wh[1] // 784

    def ask(self, ask: Ask) -> Answer:
        self.asked.append(ask)
        given = self.rule(ask)
        usage = Usage(prompt_tokens=10, completion_tokens=1, forwarded_tokens=10)
        if isinstance(given, str):
            return Answer(text=given, seen_wh=ask.image.size, usage=usage)
        logs = {letter: math.log(p) for letter, p in given.items() if p > 0}
        best = max(logs, key=lambda letter: logs[letter])
        score = TokenScore(text=best, logprob=logs[best], top=logs)
        return Answer(text=best, seen_wh=ask.image.size, tokens=(score,), usage=usage)

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        return [self.ask(ask) for ask in asks]


def photo() -> Photo:
    return Photo(Image.new("RGB", (WIDTH, HEIGHT), (90, 100, 110)))


def look(
    proposals: Sequence[Proposal],
    rule: Callable[[Ask], Shares | str] | None,
    *,
    max_objects: int = 10,
) -> Look:
    def propose(rgb: NDArray[np.uint8]) -> Sequence[Proposal]:
        assert rgb.shape == (HEIGHT, WIDTH, 3)
        return proposals

    judge = FakeVision(rule) if rule is not None else None
    return Cascade(propose=propose, judge=judge, lang="en", max_objects=max_objects).look(photo())


def flame(side: float = 60, *, kind: Kind = "fire", score: float = 0.6) -> Proposal:
    return Proposal(kind, (100, 100, 100 + side, 100 + side), score)


def test_a_confirmed_flame_has_the_judges_probability_as_score() -> None:
    found = look([flame()], lambda _: {"A": 0.6, "C": 0.3, "D": 0.1})
    (fire,) = found.detections
    assert (fire.label, fire.sub_label) == (Hazard.FIRE, SubLabel.MODERATE)
    assert fire.score == pytest.approx(0.9)
    assert fire.score_kind == "logprob"
    assert found.usage == Usage(prompt_tokens=10, completion_tokens=1, forwarded_tokens=10)


def test_a_look_alike_is_vetoed_and_kept_with_the_reason() -> None:
    found = look([flame(score=0.35)], lambda _: {"D": 0.97, "A": 0.03})
    assert found.detections == ()
    (veto,) = found.vetoed
    assert "lamp" in veto.reason
    assert "97%" in veto.reason
    assert veto.detection.score == pytest.approx(0.35)
    assert veto.detection.score_kind == "detector"


def test_a_judge_that_cannot_tell_makes_the_severity_uncertain() -> None:
    (fire,) = look([flame()], lambda _: {"E": 0.8, "A": 0.2}).detections
    assert fire.sub_label is SubLabel.UNCERTAIN
    assert fire.score_kind == "detector"


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (34, SubLabel.MINOR),  # 0.96 % of 400x300
        (35, SubLabel.MODERATE),  # 1.02 %
        (109, SubLabel.MODERATE),  # 9.9 %
        (110, SubLabel.SEVERE),  # 10.1 %
    ],
)
def test_severity_is_the_share_of_the_picture(side: int, expected: SubLabel) -> None:
    assert severity((0, 0, side, side), (WIDTH, HEIGHT)) is expected


def worker(*, head: Kind | None = "helmet", score: float = 0.7) -> list[Proposal]:
    proposals = [Proposal("person", (100, 50, 160, 250), 0.8)]
    if head:
        proposals.append(Proposal(head, (118, 48, 144, 74), score))
    return proposals


def test_the_judge_sees_the_head_with_some_surroundings() -> None:
    judge = FakeVision(lambda _: {"A": 0.95, "B": 0.05})
    cascade = Cascade(propose=lambda _: worker(), judge=judge, lang="zh")
    (person,) = cascade.look(photo()).detections
    (ask,) = judge.asked
    assert ask.text == load_questions()["head"].text("zh")
    assert ask.image.size == (42, 42)  # 1.6 x 26
    assert (ask.max_tokens, ask.logprobs is not None) == (1, True)
    assert person.box == Box(100, 50, 160, 250)
    assert person.sub_label is SubLabel.HELMET
    assert person.score == pytest.approx(0.95)


def test_crops_for_general_models_are_enlarged() -> None:
    judge = FakeVision(lambda _: {"A": 1.0})
    Cascade(propose=lambda _: worker(), judge=judge, lang="en", crop_side=448).look(photo())
    assert judge.asked[0].image.size == (448, 448)


def test_a_person_without_a_head_is_judged_by_the_upper_body() -> None:
    judge = FakeVision(lambda _: {"C": 0.9, "A": 0.1})
    cascade = Cascade(propose=lambda _: worker(head=None), judge=judge, lang="en")
    (person,) = cascade.look(photo()).detections
    assert person.sub_label is SubLabel.UNCERTAIN
    assert judge.asked[0].image.width == 96  # 1.6 x the body's width


def test_what_is_not_a_person_is_vetoed() -> None:
    doubtful = [Proposal("person", (100, 50, 160, 250), 0.55)]
    found = look(doubtful, lambda _: {"D": 0.9, "A": 0.1})
    assert found.detections == ()
    assert "not a person" in found.vetoed[0].reason


def two_minded() -> list[Proposal]:
    """A worker on whose head the detector leans to a hard hat, two to one."""
    return [*worker(head="helmet", score=0.6), *worker(head="head", score=0.3)[1:]]


def test_judge_and_detector_that_contradict_make_a_head_uncertain() -> None:
    found = look(two_minded(), lambda _: {"B": 0.85, "A": 0.15})
    (person,) = found.detections
    assert person.sub_label is SubLabel.UNCERTAIN
    assert (person.score, person.score_kind) == (0.8, "detector")


def test_a_sure_judge_overrules_the_detector() -> None:
    (person,) = look(two_minded(), lambda _: {"B": 0.95, "A": 0.05}).detections
    assert person.sub_label is SubLabel.NO_HELMET
    assert (person.score, person.score_kind) == (0.95, "logprob")


def test_a_doubtful_judge_leaves_it_to_the_detector() -> None:
    (person,) = look(two_minded(), lambda _: {"B": 0.6, "A": 0.4}).detections
    assert person.sub_label is SubLabel.HELMET
    assert person.score_kind == "detector"


@pytest.mark.parametrize(("score", "is_vetoed"), [(0.3, True), (0.4, True), (0.5, False)])
def test_the_surer_the_detector_the_surer_the_judge_has_to_be(
    score: float, is_vetoed: bool
) -> None:
    found = look([flame(score=score)], lambda _: {"D": 0.9, "A": 0.1})
    assert bool(found.vetoed) is is_vetoed
    assert bool(found.detections) is not is_vetoed


def test_a_model_that_sees_far_better_needs_no_such_certainty() -> None:
    judge = FakeVision(lambda _: {"D": 0.9, "A": 0.1})
    cascade = Cascade(
        propose=lambda _: [flame(score=0.5)], judge=judge, lang="en", detector_weight=0.25
    )
    assert cascade.look(photo()).vetoed


def test_without_a_judge_the_detector_is_taken_at_its_word() -> None:
    found = look([*worker(head="head"), flame()], None)
    assert [(one.label, one.sub_label) for one in found.detections] == [
        (Hazard.FIRE, SubLabel.MODERATE),
        (Hazard.PERSON, SubLabel.NO_HELMET),
    ]
    assert {one.score_kind for one in found.detections} == {"detector"}


@pytest.mark.parametrize(
    ("proposals", "kind", "score"),
    [
        ([flame()], "fire", 0.6),
        (worker(), "person", 0.8),
        ([Proposal("head", (100, 50, 130, 90), 0.7)], "head", 0.7),
    ],
    ids=("fire", "body", "head alone"),
)
def test_the_detectors_scores_are_given_as_shares_of_what_was_proposed(
    proposals: list[Proposal], kind: str, score: float
) -> None:
    asked: list[tuple[str, float]] = []

    def probability(kind: str, score: float) -> float:
        asked.append((kind, score))
        return 0.123

    for rule in (None, lambda _: {"D": 1.0}):
        asked.clear()
        judge = FakeVision(rule) if rule is not None else None
        cascade = Cascade(
            propose=lambda _: proposals, judge=judge, lang="en", probability=probability
        )
        found = cascade.look(photo())
        (one,) = (*found.detections, *(veto.detection for veto in found.vetoed))
        assert (one.score, one.score_kind) == (0.123, "detector")
        assert asked == [(kind, score)]


def test_a_judges_own_probability_is_not_touched() -> None:
    judge = FakeVision(lambda _: {"A": 0.9, "D": 0.1})
    cascade = Cascade(
        propose=lambda _: [flame()], judge=judge, lang="en", probability=lambda *_: 0.123
    )
    (fire,) = cascade.look(photo()).detections
    assert (fire.score, fire.score_kind) == (pytest.approx(0.9), "logprob")


def test_a_judge_without_probabilities_leaves_the_detectors_score() -> None:
    (fire,) = look([flame()], lambda _: "A").detections
    assert (fire.score, fire.score_kind) == (0.6, "detector")
    assert fire.sub_label is SubLabel.MODERATE


def test_one_unreadable_answer_is_uncertain_and_noted() -> None:
    def rule(ask: Ask) -> Shares | str:
        return "I think" if ask.text == load_questions()["head"].text("en") else {"A": 1.0}

    found = look([flame(), *worker()], rule)
    assert [one.sub_label for one in found.detections] == [SubLabel.MODERATE, SubLabel.UNCERTAIN]
    assert found.notes == ("the second look gave no readable answer for 1 of them",)


def test_a_judge_that_never_answers_with_a_letter_is_an_error() -> None:
    with pytest.raises(ReplyError, match="letters A, B, C, D, E"):
        look([flame()], lambda _: "Certainly! Here")


def test_a_judge_that_fails_is_not_taken_for_a_verdict() -> None:
    def rule(_: Ask) -> Shares:
        raise EndpointError("The endpoint is away.")

    with pytest.raises(EndpointError):
        look([flame()], rule)


def crowded() -> list[Proposal]:
    """Four flames and four workers, each less likely than the one before."""
    flames = [
        Proposal("fire", (20.0 + 90 * n, 180.0, 60.0 + 90 * n, 220.0), 0.5 - 0.1 * n)
        for n in range(4)
    ]
    workers = [
        Proposal("person", (20.0 + 90 * n, 20.0, 60.0 + 90 * n, 150.0), 0.9 - 0.1 * n)
        for n in range(4)
    ]
    return [*flames, *workers]


def test_crops_share_the_visual_tokens_and_become_smaller_before_they_become_fewer() -> None:
    for tokens, sides, number in ((None, {448}, 8), (4096, {448}, 8), (1000, {313}, 8)):
        judge = FakeVision(lambda _: {"A": 1.0})
        cascade = Cascade(
            propose=lambda _: crowded(),
            judge=judge,
            lang="en",
            crop_side=448,
            visual_tokens=tokens,
        )
        cascade.look(photo())
        assert {ask.image.width for ask in judge.asked} == sides
        assert len(judge.asked) == number


def test_beyond_the_visual_tokens_only_what_the_detector_is_sure_of_stays() -> None:
    judge = FakeVision(lambda _: {"A": 1.0})
    cascade = Cascade(
        propose=lambda _: crowded(),
        judge=judge,
        lang="en",
        crop_side=448,
        visual_tokens=4 * 64,
        alone={"fire": 0.25, "person": 0.65},
    )
    found = cascade.look(photo())
    fire, head = (load_questions()[name].text("en") for name in ("hazard", "head"))
    assert [ask.text for ask in judge.asked] == [fire, head, fire, head]
    assert {ask.image.size for ask in judge.asked} == {(224, 224)}
    kinds = [(one.label, one.score_kind) for one in found.detections]
    assert kinds.count((Hazard.FIRE, "logprob")) == 2
    assert kinds.count((Hazard.FIRE, "detector")) == 1, "0.3 stays, 0.2 goes"
    assert kinds.count((Hazard.PERSON, "detector")) == 1, "0.7 stays, 0.6 goes"
    assert found.notes == ("4 proposals not judged: the visual tokens were spent",)


def test_a_judge_that_may_see_nothing_is_not_asked() -> None:
    judge = FakeVision(lambda _: {"D": 1.0})
    cascade = Cascade(propose=lambda _: [flame(score=0.6)], judge=judge, lang="en", visual_tokens=1)
    (fire,) = cascade.look(photo()).detections
    assert fire.score_kind == "detector"
    assert judge.asked == []


def test_nothing_proposed_is_nothing_found_and_costs_nothing() -> None:
    found = look([], lambda _: {"A": 1.0})
    assert found.detections == ()
    assert found.usage == Usage(forwarded_tokens=0)


def test_a_crowd_never_hides_a_fire() -> None:
    crowd = [
        Detection(Hazard.PERSON, SubLabel.NO_HELMET, Box(i, 0, i + 5, 9), 0.99, "logprob")
        for i in range(20)
    ]
    fire = Detection(Hazard.FIRE, SubLabel.MINOR, Box(0, 0, 3, 3), 0.31, "logprob")
    kept, notes = most_urgent([*crowd, fire], 10)
    assert kept[0] is fire
    assert len(kept) == 10
    assert notes == ("11 more found: only 10 are kept",)


def test_boxes_that_overlap_are_one_flame_the_likeliest_of_them() -> None:
    near = [Proposal("fire", (x, 100, x + 60, 160), 0.5 + x / 1000) for x in (100, 120, 125)]
    far = Proposal("fire", (250, 100, 310, 160), 0.4)
    found = look([*near, far], lambda _: {"A": 1.0})
    assert sorted(one.box.x1 for one in found.detections) == [125, 250]


def test_more_proposals_than_can_be_reported_are_not_all_judged() -> None:
    judge = FakeVision(lambda _: {"A": 1.0})
    many = [Proposal("fire", (i, i, i + 2, i + 2), 0.5) for i in range(0, 270, 3)]
    cascade = Cascade(propose=lambda _: many, judge=judge, lang="en", max_objects=3)
    assert len(cascade.look(photo()).detections) == 3
    assert len(judge.asked) == 6


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((10.2, 9.7, 20.1, 30.0), Box(10, 9, 21, 30)),
        ((-5.0, -1.0, 500.0, 400.0), Box(0, 0, WIDTH, HEIGHT)),
        ((399.9, 299.9, 400.0, 300.0), Box(399, 299, 400, 300)),
        ((400.0, 300.0, 400.0, 300.0), Box(399, 299, 400, 300)),
    ],
)
def test_boxes_end_as_whole_pixels_inside_the_photo(
    corners: tuple[float, float, float, float], expected: Box
) -> None:
    assert whole_pixels(corners, (WIDTH, HEIGHT)) == expected
