"""The reader with real models for the form of answers, and with prepared ones for their content."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.reply import ToolCall
from qianyan.errors import ConfigError, InputError, MediaError, ReplyError
from qianyan.reading.html_page import Element
from qianyan.reading.moments import Moment
from qianyan.reading.places import FoundBox, FoundPoint
from qianyan.reading.reader import Reader
from qianyan.reading.screen import ScreenAction

PHOTO_WH = (640, 480)
QWEN2_5_VL = "Qwen2_5_VLForConditionalGeneration"
QWEN2_VL = "Qwen2VLForConditionalGeneration"
QWEN_VL = "QWenLMHeadModel"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The bundled judge: it knows nothing of these questions, but follows every grammar."""
    return Engine("bundled")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    image = Image.new("RGB", PHOTO_WH, "grey")
    image.paste((230, 40, 20), (100, 100, 300, 200))
    return image


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_a_model_without_any_wisdom_still_answers_in_form(
    engine: Engine, photo: Image.Image, lang: Any
) -> None:
    reader = Reader(engine, lang=lang, max_objects=2)
    labels = ["fire", "a ladder"]
    boxes = in_form(lambda: reader.find(photo, labels))
    assert len(boxes) <= 2
    for found in boxes:
        assert found.label in labels
        assert 0 <= found.box[0] < found.box[2] <= 640
        assert 0 <= found.box[1] < found.box[3] <= 480
    for spot in in_form(lambda: reader.point(photo, labels)):
        assert spot.label in labels
        assert (0 <= spot.x < 640, 0 <= spot.y < 480) == (True, True)
    counts = in_form(lambda: [reader.count(photo, labels)])
    assert all(count.number <= 2 and count.stated is not None for count in counts)
    fields = reader.extract(photo, ["日期", "total"])
    assert list(fields) == ["日期", "total"]
    assert all(value is None or isinstance(value, str) for value in fields.values())
    for device in ("computer", "phone"):
        for action in in_form(lambda device=device: [reader.act(photo, "go on", device=device)]):  # type: ignore[misc]
            assert action.device == device
            assert action.action


def in_form(ask: Any) -> Any:
    """Answers outside the picture are errors, everything else has its form."""
    error: ReplyError
    try:
        return ask()
    except ReplyError as caught:
        error = caught
    assert "outside the screen" in str(error) or "lies in the picture" in str(error)
    assert error.raw
    return ()


def test_an_answer_that_no_grammar_holds_is_read_or_refused_with_its_words(
    engine: Engine, photo: Image.Image
) -> None:
    with pytest.raises(ReplyError) as caught:
        Reader(engine, lang="en").to_html(photo)
    assert caught.value.raw


def test_a_cut_answer_is_an_error(engine: Engine, photo: Image.Image) -> None:
    with pytest.raises(ReplyError, match="cut after 5 tokens") as caught:
        Reader(engine, max_tokens=5).to_html(photo)
    assert caught.value.raw


def test_pictures_come_from_files_and_data_uris_the_right_way_up(
    engine: Engine, photo: Image.Image, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photo.save(tmp_path / "a.jpg", exif=exif)
    reader = Reader(engine)
    opened, view = reader._open(tmp_path / "a.jpg")
    assert opened.size == (480, 640)
    assert view.photo_wh == (480, 640)
    assert view.seen_wh == engine.processor.seen_wh((480, 640))
    with pytest.raises(MediaError):
        reader.find(tmp_path / "missing.jpg", "fire")


@dataclass
class Tokens:
    """Decodes prepared answers: the ids are their place in the text."""

    reply: str

    def decode(self, token_ids: list[int], *, skip_special: bool) -> str:
        assert not skip_special
        return self.reply


@dataclass
class ScriptProcessor:
    tokenizer: Tokens

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        return (320, 240)


@dataclass(frozen=True)
class SeenClip:
    duration_s: float = 60.0


@dataclass
class Done:
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] = ()
    finish_reason: str = "stop"
    videos: tuple[SeenClip, ...] = (SeenClip(),)


class Script:
    """An engine of any generation with a prepared answer, and what it was asked."""

    def __init__(self, architecture: str, reply: str, *calls: ToolCall) -> None:
        self.architecture = architecture
        self.done = Done(reply, tool_calls=calls)
        self.processor = ScriptProcessor(Tokens(reply))
        self.messages: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> Done:
        self.messages, self.options = messages, options
        return self.done

    @property
    def prompt(self) -> str:
        return str(self.messages[-1]["content"][-1]["text"])


def reader_of(script: Script, **settings: Any) -> Reader:
    return Reader(script, **{"lang": "en", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("architecture", "reply", "told"),
    [
        (QWEN2_5_VL, '[{"bbox_2d": [50, 50, 150, 100], "label": "kiln"}]', "320 pixels wide"),
        (QWEN2_VL, '[{"bbox_2d": [156, 208, 469, 417], "label": "kiln"}]', "0 to 999"),
        (
            QWEN2_VL,
            "<|object_ref_start|>kiln<|object_ref_end|><|box_start|>(156,208),(469,417)<|box_end|>",
            "0 to 999",
        ),
        (QWEN_VL, "<ref>kiln</ref><box>(156,208),(469,417)</box><|im_end|>", "answer only: none"),
    ],
)
def test_every_generation_is_asked_and_read_in_its_own_way(
    photo: Image.Image, architecture: str, reply: str, told: str
) -> None:
    script = Script(architecture, reply)
    (found,) = reader_of(script).find(photo, "kiln")
    assert found == FoundBox(label="kiln", box=(100, 100, 300, 200))
    assert "kiln" in script.prompt
    assert told in script.prompt
    assert ("response_format" in script.options) == (architecture != QWEN_VL)
    assert script.options["temperature"] == 0
    (spot,) = reader_of(script).point(photo, "kiln")
    assert spot == FoundPoint(label="kiln", x=200, y=150)
    count = reader_of(script).count(photo, "kiln")
    assert (count.number, count.agrees) == (1, True)


def test_the_first_generation_may_say_none_and_prose_is_an_error(photo: Image.Image) -> None:
    assert reader_of(Script(QWEN_VL, "none<|im_end|>")).find(photo, "kiln") == ()
    with pytest.raises(ReplyError) as caught:
        reader_of(Script(QWEN_VL, "A fine day.<|im_end|>")).find(photo, "kiln")
    assert caught.value.raw == "A fine day.<|im_end|>"


def test_names_hold_the_answer_to_themselves(photo: Image.Image) -> None:
    script = Script(QWEN2_5_VL, "[]")
    assert reader_of(script, max_objects=7).find(photo, ["kiln", "oven"]) == ()
    schema = script.options["response_format"]["json_schema"]["schema"]
    assert schema["maxItems"] == 7
    assert schema["items"]["properties"]["label"] == {"enum": ["kiln", "oven"]}
    assert "kiln, oven" in script.prompt


def test_words_and_pages_and_fields_are_read(photo: Image.Image) -> None:
    words = Script(QWEN2_5_VL, '[{"bbox_2d": [50, 50, 150, 100], "text_content": "出口 EXIT"}]')
    (word,) = reader_of(words, lang="zh").read_words(photo)
    assert (word.text, word.box) == ("出口 EXIT", (100, 100, 300, 200))
    page = reader_of(Script(QWEN2_5_VL, '<p data-bbox="50 50 150 100">Hi</p>')).to_html(photo)
    assert page.elements == (Element(tag="p", kind="", text="Hi", box=(100, 100, 300, 200)),)
    fields = Script(QWEN2_5_VL, '{"no": "7", "date": null}')
    assert reader_of(fields).extract(photo, ["no", "date"]) == {"no": "7", "date": None}
    with pytest.raises(ReplyError, match="'tax'") as caught:
        reader_of(Script(QWEN2_5_VL, '{"tax": "7"}')).extract(photo, ["no"])
    assert caught.value.raw == '{"tax": "7"}'


def test_moments_end_with_the_video() -> None:
    script = Script(QWEN2_5_VL, '[{"start": "00:50.0", "end": "01:30", "description": "smoke"}]')
    assert reader_of(script).find_moments("clip.mp4", "smoke") == (
        Moment(start_s=50.0, end_s=60.0, description="smoke"),
    )
    assert script.messages[0]["content"][0] == {"type": "video", "video": "clip.mp4"}


def test_a_step_on_a_screen_comes_in_real_pixels(photo: Image.Image) -> None:
    call = ToolCall(
        name="computer_use", arguments='{"action": "left_click", "coordinate": [160, 120]}'
    )
    script = Script(QWEN2_5_VL, "", call)
    action = reader_of(script).act(photo, "open the menu", history=["looked"])
    assert action == ScreenAction(device="computer", action="left_click", at=(320, 240))
    assert [message["role"] for message in script.messages] == ["user"]
    (tool,) = script.options["tools"]
    assert tool["function"]["name"] == "computer_use"
    assert "320 wide and 240 high" in tool["function"]["description"]
    assert "1. looked" in script.prompt


@pytest.mark.parametrize("what", ["", "  ", "x" * 501, ["a", ""], []])
def test_nothing_to_look_for_is_refused(photo: Image.Image, what: Any) -> None:
    with pytest.raises(InputError, match="What to look for"):
        reader_of(Script(QWEN2_5_VL, "[]")).find(photo, what)


def test_settings_that_make_no_sense_are_refused(photo: Image.Image) -> None:
    with pytest.raises(ConfigError, match="lang is 'fr'"):
        reader_of(Script(QWEN2_5_VL, ""), lang="fr")
    with pytest.raises(ConfigError, match="max_objects is 0"):
        reader_of(Script(QWEN2_5_VL, ""), max_objects=0)
    with pytest.raises(ConfigError, match="How 'LlavaForCausalLM' counts"):
        reader_of(Script("LlavaForCausalLM", ""))
    with pytest.raises(InputError, match="device is 'tablet'"):
        reader_of(Script(QWEN2_5_VL, "")).act(photo, "go", device="tablet")  # type: ignore[arg-type]
