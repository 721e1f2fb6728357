"""Text extraction by a model that reads, through `qianyan serve` and both dialects' own clients."""

import base64
import io
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image, ImageDraw
from tests.served import serving

from qianyan.server.extraction import read_ocr_options, to_question

dashscope = pytest.importorskip("dashscope", reason="Bailian's SDK is not installed")
from dashscope.api_entities.http_request import close_shared_sync_session  # noqa: E402

TEACHING = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
KEY = "sk-e2e-0123456789"
PHOTO_WH, SEEN_PIXELS = TEACHING["PHOTO_WH"], TEACHING["SEEN_PIXELS"]
ORIENTATION, TURNED = 0x0112, 6
FORM = {"number": "", "date": ""}
VALUES = {"number": "A 7", "date": None}
LINES = '[{"bbox_2d": [56, 42, 112, 84], "text_content": "EXIT 7"}]'
TABLE = "```html\n<table><tr><td>7</td></tr></table>\n```"
ANSWERS: dict[str, str] = {
    "advanced_recognition": LINES,
    "key_information_extraction": json.dumps(VALUES),
    "table_parsing": TABLE,
}

pytestmark = pytest.mark.filterwarnings("default")  # the SDK's own are not ours to end tests with


def options_of(task: str) -> dict[str, Any]:
    if task == "key_information_extraction":
        return {"task": task, "task_config": {"result_schema": FORM}}
    return {"task": task}


def draw() -> Image.Image:
    """Draw a sign where LINES says it is, in half of these pixels."""
    photo = Image.new("RGB", PHOTO_WH, (230, 230, 230))
    drawing = ImageDraw.Draw(photo)
    drawing.rectangle((112, 84, 224, 168), fill=(20, 120, 60))
    drawing.text((130, 110), "EXIT 7", fill="white", font_size=24)
    return photo


def turned_uri() -> str:
    """The photo as a camera stores it that was held upright, without loss."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    held = io.BytesIO()
    draw().transpose(Image.Transpose.ROTATE_90).save(held, "PNG", exif=exif)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server around a model that knows its three answers by heart."""
    lessons = [
        TEACHING["Lesson"](draw(), answer, to_question(read_ocr_options(options_of(task))))
        for task, answer in ANSWERS.items()
    ]
    folder = TEACHING["write_checkpoint"](tmp_path_factory.mktemp("reads"), lessons=lessons)
    options = ["--model", str(folder), "--served-name", "qwen-vl-ocr", "--dtype", "float32"]
    with serving(tmp_path_factory.mktemp("state"), *options, QIANYAN_API_KEYS=KEY) as (_, address):
        yield address
        close_shared_sync_session()


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/compatible-mode/v1", api_key=KEY) as one:
        yield one


def ask(client: openai.OpenAI, task: str, **options: Any) -> Any:
    part = {
        "type": "image_url",
        "image_url": {"url": turned_uri()},
        "min_pixels": 3136,
        "max_pixels": SEEN_PIXELS,
        "enable_rotate": False,
    }
    content: Any = [part, {"type": "text", "text": "read it"}]
    return client.chat.completions.create(
        model="qwen-vl-ocr",
        messages=[{"role": "user", "content": content}],
        extra_body={"ocr_options": options_of(task), "vl_enable_image_hw_output": True},
        **options,
    )


def check_words(result: dict[str, Any]) -> None:
    """The model's numbers count half the photo's pixels, which lies on its side in the file."""
    assert result == {
        "words_info": [
            {
                "text": "EXIT 7",
                "location": [112, 84, 224, 84, 224, 168, 112, 168],
                "rotate_rect": [168, 126, 112, 84, 0],
            }
        ]
    }


def test_lines_are_told_in_the_photos_own_pixels(client: openai.OpenAI) -> None:
    answer = ask(client, "advanced_recognition")
    message = answer.choices[0].message
    assert message.content == LINES
    check_words(message.ocr_result)
    assert answer.images == [{"image_hw": [168, 224], "original_hw": [336, 448]}]
    assert answer.usage.completion_tokens > 0
    assert not hasattr(answer, "notes")


def test_values_come_as_an_object(client: openai.OpenAI) -> None:
    message = ask(client, "key_information_extraction").choices[0].message
    assert json.loads(message.content) == VALUES
    assert message.ocr_result == {"kv_result": VALUES}


def test_a_table_comes_as_text(client: openai.OpenAI) -> None:
    message = ask(client, "table_parsing").choices[0].message
    assert message.content == TABLE
    assert not hasattr(message, "ocr_result")


def test_a_stream_ends_with_the_result(client: openai.OpenAI) -> None:
    *chunks, last = ask(client, "advanced_recognition", stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == LINES
    check_words(last.choices[0].delta.ocr_result)
    assert last.images == [{"image_hw": [168, 224], "original_hw": [336, 448]}]


@pytest.mark.parametrize("task", ANSWERS)
def test_what_the_length_cuts_is_never_passed_off_as_whole(
    client: openai.OpenAI, task: str
) -> None:
    answer = ask(client, task, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    (note,) = answer.notes
    assert note.startswith("text extraction: the answer was cut at its length")
    message = answer.choices[0].message
    if task == "table_parsing":
        assert not hasattr(message, "ocr_result")
    else:
        assert message.ocr_result is None


@pytest.mark.parametrize(
    ("space", "box"),
    [
        ("original_pixels", [112, 84, 224, 168]),
        ("normalized_1000", [250, 250, 500, 500]),
        ("model_pixels", [56, 42, 112, 84]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_places_of_any_answer_are_told_in_the_space_that_was_asked_for(
    client: openai.OpenAI, space: str, box: list[int], stream: bool
) -> None:
    question = to_question(read_ocr_options(options_of("advanced_recognition")))
    part = {"type": "image_url", "image_url": {"url": turned_uri()}, "max_pixels": SEEN_PIXELS}
    content: Any = [part, {"type": "text", "text": question}]
    answer: Any = client.chat.completions.create(
        model="qwen-vl-ocr",
        messages=[{"role": "user", "content": content}],
        temperature=0,
        stream=stream,
        extra_body={"coordinate_space": space},
    )
    last = list(answer)[-1].choices[0].delta if stream else answer.choices[0].message
    assert last.places == [{"label": "EXIT 7", "bbox_2d": box}]
    if not stream:
        assert last.content == LINES


def test_places_of_a_cut_answer_may_be_more(client: openai.OpenAI) -> None:
    question = to_question(read_ocr_options(options_of("advanced_recognition")))
    part = {"type": "image_url", "image_url": {"url": turned_uri()}, "max_pixels": SEEN_PIXELS}
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": question}]}]
    for max_tokens, note in ((1, "places: the answer "), (9, "places: the answer ends inside")):
        answer: Any = client.chat.completions.create(
            model="qwen-vl-ocr",
            messages=messages,
            temperature=0,
            max_tokens=max_tokens,
            extra_body={"coordinate_space": "original_pixels"},
        )
        assert answer.choices[0].message.places == []
        assert answer.notes[-1].startswith(note)


def test_a_photo_that_lies_is_turned_for_the_model_and_its_places_back(
    client: openai.OpenAI,
) -> None:
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    held = io.BytesIO()
    draw().transpose(Image.Transpose.ROTATE_90).save(held, "PNG")  # by 90 against the clock
    uri = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
    part = {
        "type": "image_url",
        "image_url": {"url": uri},
        "max_pixels": SEEN_PIXELS,
        "enable_rotate": True,
    }
    messages: Any = [{"role": "user", "content": [part]}]
    answer: Any = client.chat.completions.create(
        model="qwen-vl-ocr",
        messages=messages,
        extra_body={"ocr_options": options_of("advanced_recognition")},
    )
    assert answer.choices[0].message.content == LINES
    (word,) = answer.choices[0].message.ocr_result["words_info"]
    # Corners from the text's own upper left one on; x lies along the photo's height, upwards.
    assert word["location"] == [84, 336, 84, 224, 168, 224, 168, 336]
    assert word["rotate_rect"] == [126, 280, 112, 84, -90]
    assert answer.notes == ["the picture was turned clockwise by 90 degrees to be read"]


def test_places_are_told_in_dashscope_s_words_as_well(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{address}/api/v1")
    question = to_question(read_ocr_options(options_of("advanced_recognition")))
    content = [{"image": turned_uri(), "max_pixels": SEEN_PIXELS}, {"text": question}]
    answer = dashscope.MultiModalConversation.call(
        "qwen-vl-ocr",
        api_key=KEY,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        coordinate_space="original_pixels",
        vl_enable_image_hw_output=True,
    )
    assert answer.status_code == 200, answer
    text, size = answer.output.choices[0].message.content
    assert text == {
        "text": LINES,
        "places": [{"label": "EXIT 7", "bbox_2d": [112, 84, 224, 168]}],
    }
    assert size == {"image_hw": [168, 224], "original_hw": [336, 448]}


@pytest.mark.parametrize("task", ANSWERS)
@pytest.mark.parametrize("stream", [False, True])
def test_bailians_sdk_gets_text_and_result_in_one_part(
    address: str, monkeypatch: pytest.MonkeyPatch, task: str, stream: bool
) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{address}/api/v1")
    part = {"image": turned_uri(), "max_pixels": SEEN_PIXELS, "enable_rotate": False}
    answer = dashscope.MultiModalConversation.call(
        "qwen-vl-ocr",
        api_key=KEY,
        messages=[{"role": "user", "content": [part]}],
        ocr_options=options_of(task),
        stream=stream,
    )
    whole = list(answer)[-1] if stream else answer
    assert whole.status_code == 200, whole
    (content,) = whole.output.choices[0].message.content
    assert content["text"] == ANSWERS[task]
    if task == "advanced_recognition":
        check_words(content["ocr_result"])
    elif task == "key_information_extraction":
        assert content["ocr_result"] == {"kv_result": VALUES}
    else:
        assert set(content) == {"text"}
