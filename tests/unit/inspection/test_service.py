"""One picture's story: a verdict or a sentence, never an exception."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import qianyan
from qianyan.errors import ConfigError, EndpointError, InputError, ReplyError
from qianyan.inputs.fetch import FetchLimits
from qianyan.inputs.images import Photo
from qianyan.inspection.records import Box, Detection, Hazard, Look, SubLabel, Usage
from qianyan.inspection.service import inspect_photo, inspect_source

FIRE = Detection(Hazard.FIRE, SubLabel.MINOR, Box(1, 1, 9, 9), 0.5, "detector")


def encoded(width: int = 64, height: int = 48, kind: str = "JPEG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (30, 60, 90)).save(buffer, kind)
    return buffer.getvalue()


def found(photo: Photo) -> Look:
    return Look((FIRE,), usage=Usage(5, 1, 3), raw="[…]", notes=("looked twice",))


def test_a_verdict_says_what_was_found_and_what_it_cost() -> None:
    seen = inspect_photo("a.jpg", encoded(), found)
    verdict = seen.inspection
    assert verdict.detections == (FIRE,)
    assert verdict.error is None
    assert (verdict.width, verdict.height) == (64, 48)
    assert verdict.usage == Usage(5, 1, 3)
    assert (verdict.raw, verdict.notes) == ("[…]", ("looked twice",))
    assert verdict.sha256 is not None
    assert len(verdict.sha256) == 64
    assert verdict.total_s > 0
    assert verdict.checked == tuple(Hazard)
    assert seen.photo is not None


def test_notes_on_the_picture_come_before_notes_on_the_look() -> None:
    buffer = BytesIO()
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    verdict = inspect_photo("a.gif", buffer.getvalue(), found).inspection
    assert verdict.notes == ("animated: first frame only", "looked twice")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"hello", "not_a_picture"),
        (encoded()[:-200], "truncated"),
        (encoded(1, 1, "PNG"), "too_small"),
        (encoded(1000, 20), "too_narrow"),
        (encoded(20, 1000), "too_narrow"),
    ],
)
def test_a_bad_picture_is_a_sentence_and_never_an_empty_list(data: bytes, code: str) -> None:
    verdict = inspect_photo("a.jpg", data, found).inspection
    assert verdict.detections is None
    assert verdict.error is not None
    assert verdict.error.code == code
    assert verdict.error.message.endswith(".")


def test_a_strip_of_twenty_to_one_is_still_inspected() -> None:
    assert inspect_photo("a.png", encoded(1000, 50), found).inspection.error is None


@pytest.mark.parametrize(
    "error", [EndpointError("It is away."), ReplyError("It talks."), InputError("It is odd.")]
)
def test_a_model_that_fails_is_a_sentence(error: qianyan.QianyanError) -> None:
    def look(photo: Photo) -> Look:
        raise error

    seen = inspect_photo("a.jpg", encoded(), look)
    assert seen.inspection.detections is None
    assert seen.inspection.error is not None
    assert (seen.inspection.error.code, seen.inspection.error.message) == (error.code, str(error))
    assert seen.inspection.width == 64, "the picture itself could be read"


def test_an_unreadable_reply_is_kept_word_by_word() -> None:
    def look(photo: Photo) -> Look:
        error = ReplyError("The answer is no list.")
        error.raw = "I see a lovely day"
        raise error

    assert inspect_photo("a.jpg", encoded(), look).inspection.raw == "I see a lovely day"


def test_a_mistake_in_our_own_code_is_not_hidden() -> None:
    def look(photo: Photo) -> Look:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inspect_photo("a.jpg", encoded(), look)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    verdict = inspect_source(str(tmp_path / "no.jpg"), found, FetchLimits())
    assert verdict.error is not None
    assert verdict.error.code == "not_found"


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="no setting 'modle'; expected model, base_url"):
        qianyan.inspect("a.jpg", modle="bundled")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("lang", "fr", "expected zh or en"),
        ("look", "twice", "expected auto or list"),
        ("max_objects", 0, "expected 1 to 100"),
        ("workers", 1000, "expected 1 to 64"),
        ("max_pixels", 5, "expected 784"),
    ],
)
def test_an_impossible_setting_is_refused(setting: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        qianyan.inspect("a.jpg", **{setting: value})
