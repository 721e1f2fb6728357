"""Vision behind an endpoint, over real sockets: what is sent, understood, and what goes wrong."""

import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qianyan.errors import ConfigError, EndpointError, ReplyError
from qianyan.inputs.grounding import Markup, Notation
from qianyan.inputs.images import Photo
from qianyan.inputs.parts import PictureConfig
from qianyan.inputs.patches import PatchConfig
from qianyan.inputs.squares import SquareConfig
from qianyan.inspection.detect import detect
from qianyan.inspection.records import Box, Hazard, SubLabel
from qianyan.inspection.remote.chat_endpoint import Patience
from qianyan.inspection.remote.profile import (
    EndpointProfile,
    find_profile,
    guess_profile,
    load_profiles,
    save_profile,
)
from qianyan.inspection.remote.vision import RemoteVision
from qianyan.inspection.vision import Ask, LocalVision

Start = Callable[..., "SimulatedEndpoint"]  # noqa: F821  (conftest.py)
HASTY = Patience(timeout_s=5.0, attempts=4, first_wait_s=0.01, longest_wait_s=0.05)
KEY = "sk-very-secret-key-123"


@pytest.fixture(autouse=True)
def no_saved_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the user's own saved profiles out of the tests."""
    monkeypatch.setattr(
        "qianyan.inspection.remote.profile.profiles_path", lambda: tmp_path / "endpoints.json"
    )


def draw(width: int, height: int) -> Photo:
    """Draw a red, a green and a blue rectangle on grey."""
    image = Image.new("RGB", (width, height), (128, 128, 128))
    pen = ImageDraw.Draw(image)
    for colour, box in true_boxes(width, height).items():
        pen.rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), fill=colour)
    return Photo(image)


def true_boxes(width: int, height: int) -> dict[tuple[int, int, int], Box]:
    def box(*parts: float) -> Box:
        x1, y1, x2, y2 = parts
        return Box(round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height))

    return {
        (230, 30, 30): box(0.1, 0.2, 0.3, 0.5),
        (20, 160, 60): box(0.5, 0.1, 0.6, 0.9),
        (40, 80, 230): box(0.7, 0.6, 0.95, 0.8),
    }


def ask(text: str = "What?", **settings: object) -> Ask:
    return Ask(image=Image.new("RGB", (640, 480), "grey"), text=text, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "notation", "factor"),
    [
        ((640, 480), Notation.RESIZED_PIXELS, 28),
        ((1920, 1080), Notation.RESIZED_PIXELS, 28),
        ((97, 311), Notation.RESIZED_PIXELS, 28),
        ((2500, 140), Notation.RESIZED_PIXELS, 28),
        ((1500, 2000), Notation.RELATIVE_1000, 32),
        ((97, 311), Notation.RELATIVE_1000, 32),
        ((640, 480), Notation.RELATIVE_1, 28),
        ((1080, 1920), Notation.RELATIVE_1000_YX, 28),
    ],
    ids=str,
)
def test_boxes_come_back_in_photo_pixels_whatever_the_endpoint_speaks(
    start_endpoint: Start, size: tuple[int, int], notation: Notation, factor: int
) -> None:
    endpoint = start_endpoint(notation=notation, factor=factor)
    profile = EndpointProfile(
        base_url=endpoint.base_url, model="squares-vl", notation=notation, factor=factor
    )
    vision = RemoteVision(endpoint.base_url, profile=profile, patience=HASTY)
    look = detect(draw(*size), vision, lang="zh")
    sent_wh = endpoint.pictures[0].size
    assert all(side % factor == 0 for side in sent_wh)
    assert 0.9 * profile.min_pixels <= sent_wh[0] * sent_wh[1] <= profile.max_pixels
    assert vision.seen_wh(size) == sent_wh
    found = {(one.label, one.sub_label): one for one in look.detections}
    expected = zip(
        [
            (Hazard.FIRE, SubLabel.SEVERE),
            (Hazard.PERSON, SubLabel.NO_HELMET),
            (Hazard.SMOKE, SubLabel.MINOR),
        ],
        true_boxes(*size).values(),
        strict=True,
    )
    for name, box in expected:
        assert found[name].box.iou(box) > 0.85
        assert found[name].score == pytest.approx(0.7788, abs=1e-3)
        assert found[name].score_kind == "logprob"
    assert look.usage.prompt_tokens == 1234
    assert look.usage.forwarded_tokens is None
    assert look.notes == ()


@pytest.mark.parametrize(
    "form",
    [
        "```json\n{}\n```",
        "Of course! Here is what I see:\n\n{}\n\nStay safe.",
        "<think>Hm.</think>{}",
    ],
)
def test_fences_and_prose_around_the_answer_do_no_harm(start_endpoint: Start, form: str) -> None:
    endpoint = start_endpoint(form=form, schema="refused", logprobs="ignored")
    look = detect(draw(640, 480), RemoteVision(endpoint.base_url, patience=HASTY), lang="en")
    assert {one.label for one in look.detections} == set(Hazard)
    assert all(one.score is None and one.score_kind is None for one in look.detections)


def test_a_request_holds_the_picture_before_the_text_and_only_common_fields(
    start_endpoint: Start,
) -> None:
    endpoint = start_endpoint()
    vision = RemoteVision(endpoint.base_url, "squares-vl", patience=HASTY)
    vision.ask(ask("One letter.", max_tokens=1))
    (body,) = endpoint.requests
    assert set(body) == {"model", "messages", "max_tokens", "temperature"}
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert message["content"][1]["text"] == "One letter."


def test_fields_of_the_profile_are_sent_along(start_endpoint: Start) -> None:
    endpoint = start_endpoint()
    profile = EndpointProfile(
        base_url=endpoint.base_url, model="squares-vl", extra={"enable_thinking": False}
    )
    RemoteVision(endpoint.base_url, profile=profile, patience=HASTY).ask(ask())
    assert endpoint.requests[0]["enable_thinking"] is False


def test_what_an_endpoint_refuses_is_left_out_from_then_on(start_endpoint: Start) -> None:
    endpoint = start_endpoint(schema="refused", logprobs="refused")
    vision = RemoteVision(endpoint.base_url, patience=HASTY)
    asks = [ask(schema={"type": "array"}, logprobs=5) for _ in range(2)]
    for one in asks:
        assert vision.ask(one).tokens is None
    sent = [("response_format" in body, "logprobs" in body) for body in endpoint.requests]
    assert sent[0] == (True, True)
    assert sent[-2:] == [(False, False), (False, False)]
    assert len(sent) == 4
    assert (vision.profile.has_schema, vision.profile.has_logprobs) == (False, False)


def test_only_the_refused_field_is_left_out(start_endpoint: Start) -> None:
    endpoint = start_endpoint(logprobs="refused")
    vision = RemoteVision(endpoint.base_url, patience=HASTY)
    vision.ask(ask(schema={"type": "array"}, logprobs=5))
    assert "response_format" in endpoint.requests[-1]
    assert vision.profile.has_logprobs is False
    assert vision.profile.has_schema is None


def test_a_second_try_does_without_a_penalty_that_is_refused(start_endpoint: Start) -> None:
    loop = '[{"bbox_2d": [1' + "9" * 500
    endpoint = start_endpoint(reply=loop, finish_reason="length", penalty="refused")
    with pytest.raises(ReplyError):
        detect(draw(640, 480), RemoteVision(endpoint.base_url, patience=HASTY), lang="en")
    first, refused, second = endpoint.requests
    assert "presence_penalty" not in first
    assert refused["presence_penalty"] == 1.5
    assert "presence_penalty" not in second
    assert second["temperature"] == 0.5
    assert "response_format" in second


def test_a_refusal_for_another_reason_takes_nothing_away(start_endpoint: Start) -> None:
    endpoint = start_endpoint(most_accepted_pixels=300_000)
    vision = RemoteVision(endpoint.base_url, patience=HASTY)
    with pytest.raises(EndpointError, match="too many tokens"):
        vision.ask(Ask(image=draw(1920, 1080).rgb, text="?", schema={"type": "array"}, logprobs=5))
    assert (vision.profile.has_schema, vision.profile.has_logprobs) == (None, None)
    answer = vision.ask(
        Ask(image=draw(560, 500).rgb, text="?", schema={"type": "array"}, logprobs=5)
    )
    assert answer.tokens is not None
    assert "response_format" in endpoint.requests[-1]


def test_a_refusal_for_another_reason_is_said_once(start_endpoint: Start) -> None:
    endpoint = start_endpoint(most_accepted_pixels=1000)
    vision = RemoteVision(endpoint.base_url, patience=HASTY)
    with pytest.raises(EndpointError, match=r"refuses the request \(status 400\).*too many tokens"):
        vision.ask(ask())
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("failures", [[429], [500, 503], [502, 429, 504]], ids=str)
def test_passing_trouble_is_waited_out(start_endpoint: Start, failures: list[int]) -> None:
    endpoint = start_endpoint(failures=list(failures))
    look = detect(draw(640, 480), RemoteVision(endpoint.base_url, patience=HASTY), lang="en")
    assert len(look.detections) == 3
    assert len(endpoint.requests) == len(failures) + 1


def test_the_wait_is_as_long_as_the_endpoint_asks_for(start_endpoint: Start) -> None:
    endpoint = start_endpoint(failures=[429], retry_after="0.6")
    RemoteVision(endpoint.base_url, patience=HASTY).ask(ask())
    first, second = endpoint.arrived_s
    assert second - first >= 0.6


def test_lasting_trouble_ends_in_one_sentence(start_endpoint: Start) -> None:
    endpoint = start_endpoint(failures=[500] * 10)
    with pytest.raises(EndpointError, match=r"still fails after 4 attempts \(status 500\)"):
        RemoteVision(endpoint.base_url, patience=HASTY).ask(ask())
    assert len(endpoint.requests) == 4


def test_a_slow_endpoint_is_given_up_in_time(start_endpoint: Start) -> None:
    endpoint = start_endpoint(delay_s=1.0)
    hurry = Patience(timeout_s=0.1, attempts=2, first_wait_s=0.01)
    with pytest.raises(EndpointError, match=r"did not answer within 0\.1 s"):
        RemoteVision(endpoint.base_url, "squares-vl", patience=hurry).ask(ask())


def test_a_broken_connection_is_tried_again_and_then_said(start_endpoint: Start) -> None:
    endpoint = start_endpoint(drops_connection=True)
    with pytest.raises(EndpointError, match="broke off the connection"):
        RemoteVision(endpoint.base_url, "squares-vl", patience=HASTY).ask(ask())
    assert len(endpoint.requests) == 4


def test_nobody_listening_is_said_with_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(EndpointError, match=rf"Nothing answers at http://127\.0\.0\.1:{port}/v1"):
        RemoteVision(f"http://127.0.0.1:{port}/v1", "m", patience=HASTY).ask(ask())


@pytest.mark.parametrize("given", [None, "sk-wrong-key"])
def test_a_refused_key_is_said_and_never_shown(
    start_endpoint: Start, given: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = start_endpoint(api_key=KEY)
    with caplog.at_level(logging.DEBUG), pytest.raises(EndpointError) as caught:
        RemoteVision(endpoint.base_url, "squares-vl", given, patience=HASTY).ask(ask())
    assert ("wants an API key" if given is None else "refuses the API key") in str(caught.value)
    assert "--api-key" in str(caught.value)
    assert endpoint.requests == []
    if given:
        assert given not in str(caught.value) + caplog.text


def test_the_key_appears_in_no_message_and_no_log(
    start_endpoint: Start, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = start_endpoint(api_key=KEY, failures=[500, 429] * 5)
    vision = RemoteVision(endpoint.base_url, "squares-vl", KEY, patience=HASTY)
    with caplog.at_level(logging.DEBUG), pytest.raises(EndpointError) as caught:
        vision.ask(ask())
    said = str(caught.value) + repr(caught.value.__cause__) + caplog.text + repr(vision.__dict__)
    assert "trouble" in str(caught.value)
    assert KEY not in said


def test_a_wrong_model_name_is_answered_with_those_on_offer(start_endpoint: Start) -> None:
    endpoint = start_endpoint(models=("qwen2.5-vl-7b", "qwen3-vl-8b"))
    with pytest.raises(EndpointError) as caught:
        RemoteVision(endpoint.base_url, "qwen2.5-vl", patience=HASTY).ask(ask())
    assert "no model 'qwen2.5-vl'" in str(caught.value)
    assert "'qwen2.5-vl-7b', 'qwen3-vl-8b'" in str(caught.value)


def test_a_wrong_path_is_told_from_a_wrong_model(start_endpoint: Start) -> None:
    endpoint = start_endpoint()
    with pytest.raises(EndpointError, match="usually ends in /v1"):
        RemoteVision(endpoint.base_url.removesuffix("/v1"), "m", patience=HASTY).ask(ask())


def test_the_first_model_is_taken_when_none_is_named(start_endpoint: Start) -> None:
    endpoint = start_endpoint(models=("qwen3-vl-8b", "other"))
    vision = RemoteVision(endpoint.base_url + "/", patience=HASTY)
    assert vision.name == "qwen3-vl-8b"
    assert vision.notation is Notation.RELATIVE_1000
    assert vision.profile.factor == 32
    with pytest.raises(EndpointError, match="offers no model"):
        RemoteVision(start_endpoint(models=()).base_url, patience=HASTY)


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ({"body": b"<html>Welcome</html>"}, "'text/html' where JSON was expected"),
        ({"failures": [302]}, "redirects to 'http://elsewhere.example/v1'"),
        ({"failures": [418]}, r"refuses the request \(status 418\)"),
    ],
)
def test_what_is_no_chat_api_is_said_so(
    start_endpoint: Start, behaviour: dict[str, object], sentence: str
) -> None:
    endpoint = start_endpoint(**behaviour)
    with pytest.raises(EndpointError, match=sentence):
        RemoteVision(endpoint.base_url, "squares-vl", patience=HASTY).ask(ask())


@pytest.mark.parametrize(
    "data",
    [{}, {"choices": []}, {"choices": [{"text": "old"}]}, {"error": {"message": "no"}}, [1], "x"],
    ids=str,
)
def test_answers_of_another_form_are_errors(start_endpoint: Start, data: object) -> None:
    endpoint = start_endpoint(body=json.dumps(data).encode())
    with pytest.raises(EndpointError):
        RemoteVision(endpoint.base_url, "squares-vl", patience=HASTY).ask(ask())


@pytest.mark.parametrize(
    "address",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http://key@host/v1", "http://[::"],
)
def test_an_address_that_is_none_is_refused_before_anything_is_sent(address: str) -> None:
    with pytest.raises(EndpointError, match="base URL"):
        RemoteVision(address, "m")


def test_an_empty_answer_is_unreadable_not_empty(start_endpoint: Start) -> None:
    for reply in ("", "I see no hazards.", "{}"):
        endpoint = start_endpoint(reply=reply)
        with pytest.raises(ReplyError) as caught:
            detect(draw(640, 480), RemoteVision(endpoint.base_url, patience=HASTY))
        assert caught.value.raw == reply


def test_several_questions_are_asked_at_once_but_not_all(start_endpoint: Start) -> None:
    endpoint = start_endpoint(delay_s=0.15, reply="A")
    vision = RemoteVision(endpoint.base_url, "squares-vl", patience=HASTY, concurrency=3)
    started = time.monotonic()
    answers = vision.ask_many([ask(str(number)) for number in range(9)])
    assert [answer.text for answer in answers] == ["A"] * 9
    assert endpoint.most_at_once == 3
    assert time.monotonic() - started < 9 * 0.15


def test_answers_come_in_the_order_of_the_questions(start_endpoint: Start) -> None:
    endpoint = start_endpoint()
    vision = RemoteVision(endpoint.base_url, patience=HASTY)
    photos = [draw(28 * (20 + number), 560).rgb for number in range(4)]
    answers = vision.ask_many([Ask(image=photo, text="Squares?") for photo in photos])
    widths = [answer.seen_wh[0] for answer in answers]
    assert widths == [photo.width for photo in photos]


@pytest.mark.parametrize(
    ("model", "notation", "factor"),
    [
        ("Qwen2.5-VL-7B-Instruct", Notation.RESIZED_PIXELS, 28),
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", Notation.RESIZED_PIXELS, 28),
        ("qwen2.5vl:7b", Notation.RESIZED_PIXELS, 28),
        ("Qwen2_5-Omni-7B", Notation.RESIZED_PIXELS, 28),
        ("qwen2-vl-7b-instruct", Notation.RELATIVE_BELOW_1000, 28),
        ("Qwen3-VL-8B-Instruct", Notation.RELATIVE_1000, 32),
        ("qwen3.5-plus", Notation.RELATIVE_1000, 32),
        ("a-model-nobody-knows", Notation.RESIZED_PIXELS, 28),
    ],
)
def test_an_unmeasured_model_is_judged_by_its_name(
    model: str, notation: Notation, factor: int
) -> None:
    profile = guess_profile("http://host/v1", model)
    assert (profile.notation, profile.factor, profile.source) == (notation, factor, "guessed")
    assert profile.max_pixels == 1280 * factor**2


def test_profiles_are_saved_and_found_by_address_and_model(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "endpoints.json"
    first = EndpointProfile(
        base_url="http://host/v1",
        model="a",
        notation=Notation.RELATIVE_1,
        extra={"top_k": 1},
        source="probed",
        iou=0.9,
    )
    assert load_profiles(path) == []
    save_profile(first, path=path)
    save_profile(EndpointProfile(base_url="http://host/v1", model="b"), path=path)
    save_profile(EndpointProfile(base_url="http://host/v1", model="b", factor=32), path=path)
    assert find_profile("http://host/v1/", "a", path=path) == first
    assert find_profile("http://host/v1", "b", path=path).factor == 32  # type: ignore[union-attr]
    assert find_profile("http://other/v1", "a", path=path) is None
    assert len(load_profiles(path)) == 2
    assert [one.name for one in path.parent.iterdir()] == ["endpoints.json"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": "qianyan.endpoints/1", "endpoints": [{"model": "a"}]}']
)
def test_a_damaged_profile_file_is_an_error_with_the_way_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="qianyan doctor"):
        load_profiles(path)


def test_a_saved_profile_is_used_without_being_asked_for(start_endpoint: Start) -> None:
    endpoint = start_endpoint(notation=Notation.RELATIVE_1)
    save_profile(
        EndpointProfile(
            base_url=endpoint.base_url, model="squares-vl", notation=Notation.RELATIVE_1
        )
    )
    vision = RemoteVision(endpoint.base_url, patience=HASTY)
    assert vision.notation is Notation.RELATIVE_1
    assert len(detect(draw(640, 480), vision).detections) == 3


def test_boxes_that_the_probe_could_not_place_are_not_drawn(start_endpoint: Start) -> None:
    endpoint = start_endpoint()
    save_profile(
        EndpointProfile(base_url=endpoint.base_url, model="squares-vl", source="probed", iou=0.31)
    )
    with pytest.raises(EndpointError, match=r"cannot be placed.*0\.31"):
        RemoteVision(endpoint.base_url, patience=HASTY)


@pytest.mark.parametrize(
    ("model", "markup"),
    [
        ("Qwen/Qwen-VL-Chat", Markup.REF),
        ("qwen-vl-chat-v1", Markup.REF),
        ("qwen-vl-v1", Markup.REF),
        ("Qwen-VL", Markup.REF),
        ("qwen-vl-max", Markup.JSON),
        ("qwen-vl-plus-latest", Markup.JSON),
        ("Qwen/Qwen2-VL-7B-Instruct", Markup.JSON),
        ("qwen2.5-vl-7b", Markup.JSON),
    ],
)
def test_a_first_generation_model_is_known_by_its_name(
    start_endpoint: Start, model: str, markup: Markup
) -> None:
    vision = RemoteVision(start_endpoint(models=(model,)).base_url, patience=HASTY)
    assert vision.markup is markup


@dataclass(frozen=True)
class StandIn:
    """A checkpoint of another generation: its name, its class, and the size it sees."""

    architecture: str
    processor: "StandInProcessor"
    name: str = "stand-in"
    chat_many: None = None  # never asked


@dataclass(frozen=True)
class StandInProcessor:
    pictures: PictureConfig | None


SQUARES = SquareConfig(image_size=448, patch_size=14)
PATCHES = PatchConfig(min_pixels=56 * 56, max_pixels=1280 * 28 * 28)


@pytest.mark.parametrize(
    ("architecture", "pictures", "notation", "markup"),
    [
        ("QWenLMHeadModel", SQUARES, Notation.RELATIVE_1000, Markup.REF),
        (
            "Qwen2VLForConditionalGeneration",
            PATCHES,
            Notation.RELATIVE_BELOW_1000,
            Markup.OBJECT_REF,
        ),
        ("Qwen2_5_VLForConditionalGeneration", PATCHES, Notation.RESIZED_PIXELS, Markup.JSON),
    ],
)
def test_a_local_checkpoint_is_asked_in_the_notation_of_its_architecture(
    architecture: str, pictures: PictureConfig, notation: Notation, markup: Markup
) -> None:
    vision = LocalVision(StandIn(architecture, StandInProcessor(pictures)))  # type: ignore[arg-type]
    assert (vision.notation, vision.markup) == (notation, markup)
    assert vision.seen_wh((1000, 500)) == ((448, 448) if pictures is SQUARES else (1008, 504))
    assert vision.name == "stand-in"


def test_a_checkpoint_that_cannot_look_is_refused_at_once() -> None:
    text_only = StandIn("Qwen2ForCausalLM", StandInProcessor(None))
    with pytest.raises(ConfigError, match="stand-in reads text only"):
        LocalVision(text_only)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="How 'LlavaForCausalLM' counts"):
        LocalVision(StandIn("LlavaForCausalLM", StandInProcessor(PATCHES)))  # type: ignore[arg-type]


@given(
    width=st.integers(60, 5000), ratio=st.floats(0.05, 20), tokens=st.sampled_from([64, 256, 1024])
)
def test_a_picture_is_shown_within_its_budget_of_visual_tokens_and_nearly_fills_it(
    width: int, ratio: float, tokens: int
) -> None:
    photo_wh = (width, max(round(width / ratio), 30))
    stand_in = StandIn("Qwen2_5_VLForConditionalGeneration", StandInProcessor(PATCHES))
    local = LocalVision(stand_in)  # type: ignore[arg-type]
    profile = EndpointProfile(base_url="http://h/v1", model="m", factor=32)
    remote = RemoteVision("http://127.0.0.1:9/v1", "m", profile=profile)
    for vision, factor in ((local, 28), (remote, 32)):
        seen_wh = vision.seen_wh(photo_wh, tokens)
        whole_wh = vision.seen_wh(photo_wh)
        assert seen_wh[0] % factor == seen_wh[1] % factor == 0
        count = vision.count_tokens(seen_wh)
        assert count == seen_wh[0] * seen_wh[1] // factor**2
        assert count <= tokens
        assert count >= min(vision.count_tokens(whole_wh), tokens) / 4


def test_a_model_that_sees_squares_of_one_size_takes_no_budget() -> None:
    vision = LocalVision(StandIn("QWenLMHeadModel", StandInProcessor(SQUARES)))  # type: ignore[arg-type]
    assert vision.seen_wh((2000, 100), 64) == (448, 448)
    assert vision.count_tokens((448, 448)) == 256


def test_what_was_shown_is_counted_in_visual_tokens(start_endpoint: Start) -> None:
    endpoint = start_endpoint()
    vision = RemoteVision(endpoint.base_url, patience=HASTY)
    answer = vision.ask(ask(visual_tokens=100))
    assert endpoint.pictures[0].size == answer.seen_wh == (308, 224)
    assert answer.usage.visual_tokens == 11 * 8


def test_words_before_the_picture_are_sent_before_it(start_endpoint: Start) -> None:
    endpoint = start_endpoint()
    RemoteVision(endpoint.base_url, patience=HASTY).ask(ask("then?", before="First."))
    content = endpoint.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text"]
    assert (content[0]["text"], content[2]["text"]) == ("First.", "then?")
