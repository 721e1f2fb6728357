"""Text extraction through a real server whose model does not read, with OpenAI's own client."""

import base64
import io
import json
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

SAMPLES = runpy.run_path(str(Path(__file__).with_name("document_samples.py")))
KEY = "sk-test-0123456789"
WORDS: str = SAMPLES["WORDS"]
ORIENTATION, TURNED = 0x0112, 6  # a camera held upright: to be turned by 90 degrees
Serve = Callable[..., AbstractContextManager[httpx2.Client]]
SERVICE = "/api/v1/services/aigc/multimodal-generation/generation"

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module", autouse=True)
def _reader() -> None:
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")


@pytest.fixture
def asked(client: httpx2.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=KEY, max_retries=0) as one:
        yield one


def to_uri(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(held.getvalue()).decode()


def turned_uri() -> str:
    """The sign as a camera stores it that was held upright: lying, with a mark to turn it."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    lying = SAMPLES["sign"]().transpose(Image.Transpose.ROTATE_90)
    return to_uri(lying, "JPEG", exif=exif, quality=95)


def ask(client: openai.OpenAI, task: str, *, uri: str | None = None, **options: Any) -> Any:
    content: Any = [
        {"type": "image_url", "image_url": {"url": uri or to_uri(SAMPLES["sign"]())}},
        {"type": "text", "text": "this is ignored"},
    ]
    return client.chat.completions.create(
        model="judge",
        messages=[{"role": "user", "content": content}],
        extra_body={"ocr_options": {"task": task}},
        **options,
    )


def check_place(result: dict[str, Any]) -> None:
    """The line stands where it was drawn, in the picture's own pixels."""
    (line,) = result["words_info"]
    assert line["text"].replace(" ", "") == WORDS.replace(" ", "")
    x1, y1, x2, y2, x3, y3, x4, y4 = line["location"]
    assert x1 == pytest.approx(40, abs=12)
    assert x2 == pytest.approx(x3, abs=8)
    assert 60 < y1 < y4 < 170
    assert x4 < x2 < 640
    assert y2 < y3
    cx, cy, width, height, angle = line["rotate_rect"]
    assert (cx, cy) == pytest.approx(((x1 + x2) / 2, (y1 + y3) / 2), abs=4)
    assert width > height
    assert abs(angle) <= 2


@pytest.mark.parametrize("task", ["text_recognition", "multi_lan"])
def test_a_task_of_text_answers_with_the_text(asked: openai.OpenAI, task: str) -> None:
    answer = ask(asked, task)
    message = answer.choices[0].message
    assert message.content.replace(" ", "") == WORDS.replace(" ", "")
    assert not hasattr(message, "ocr_result")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.notes == ["read by the offline reader (rapidocr), not by the model"]
    assert answer.usage.total_tokens == 0


def test_lines_have_their_places(asked: openai.OpenAI) -> None:
    check_place(ask(asked, "advanced_recognition").choices[0].message.ocr_result)


def test_places_are_those_of_the_picture_the_right_way_up(asked: openai.OpenAI) -> None:
    answer = ask(asked, "advanced_recognition", uri=turned_uri())
    check_place(answer.choices[0].message.ocr_result)


def test_a_stream_has_the_text_and_in_its_last_chunk_the_result(asked: openai.OpenAI) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(asked, "advanced_recognition", **options))
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text.replace(" ", "") == WORDS.replace(" ", "")
    *before, last = (one for one in chunks if one.choices)
    assert last.choices[0].finish_reason == "stop"
    check_place(last.choices[0].delta.ocr_result)
    assert not any(hasattr(one.choices[0].delta, "ocr_result") for one in before)
    assert chunks[-1].usage.total_tokens == 0


def test_a_picture_without_text_has_an_empty_list(asked: openai.OpenAI) -> None:
    empty = to_uri(Image.new("RGB", (200, 120), "grey"))
    message = ask(asked, "advanced_recognition", uri=empty).choices[0].message
    assert (message.content, message.ocr_result) == ("", {"words_info": []})


@pytest.mark.parametrize(
    "task",
    ["key_information_extraction", "table_parsing", "document_parsing", "formula_recognition"],
)
def test_a_task_that_needs_a_model_that_reads_is_refused(asked: openai.OpenAI, task: str) -> None:
    with pytest.raises(openai.BadRequestError, match="needs a model that reads pictures"):
        ask(asked, task)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra_body": {"ocr_options": {"task": "x"}}}, "ocr_options.task is 'x'"),
        ({"extra_body": {"ocr_options": {}}}, "ocr_options.task is 'None'"),
        ({"n": 2}, "n is given with ocr_options"),
        (
            {"extra_body": {"ocr_options": {"task": "multi_lan"}, "enable_search": True}},
            "enable_search is given with ocr_options",
        ),
        ({"response_format": {"type": "json_object"}}, "response_format is given with ocr_options"),
    ],
)
def test_what_does_not_go_together_is_refused(
    asked: openai.OpenAI, options: dict[str, Any], words: str
) -> None:
    content: Any = [{"type": "image_url", "image_url": {"url": to_uri(SAMPLES["sign"]())}}]
    body = {"extra_body": {"ocr_options": {"task": "multi_lan"}}, **options}
    with pytest.raises(openai.BadRequestError, match=words):
        asked.chat.completions.create(
            model="judge", messages=[{"role": "user", "content": content}], **body
        )


@pytest.mark.parametrize("count", [0, 2])
def test_there_is_exactly_one_picture(asked: openai.OpenAI, count: int) -> None:
    part = {"type": "image_url", "image_url": {"url": to_uri(SAMPLES["sign"]())}}
    content: Any = [*[part] * count, {"type": "text", "text": "read"}]
    with pytest.raises(openai.BadRequestError, match=f"{count} pictures"):
        asked.chat.completions.create(
            model="judge",
            messages=[{"role": "user", "content": content}],
            extra_body={"ocr_options": {"task": "text_recognition"}},
        )


def test_without_the_extra_it_says_what_to_install(
    asked: openai.OpenAI, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = client.app.state.serving.worker.ocr  # type: ignore[attr-defined]
    monkeypatch.setattr(desk, "reader", type(desk.reader)())
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(openai.BadRequestError, match=r"pip install 'qianyan\[ocr\]'") as refused:
        ask(asked, "text_recognition")
    assert refused.value.code == "missing_extra"


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_page_that_lies_is_turned_where_that_is_asked_for(
    asked: openai.OpenAI, degrees: int
) -> None:
    """Its places are those of the picture as it lies."""
    back = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180,
            270: Image.Transpose.ROTATE_270}  # fmt: skip
    part = {
        "type": "image_url",
        "image_url": {"url": to_uri(SAMPLES["sign"]().transpose(back[degrees]))},
        "enable_rotate": True,
    }
    messages: Any = [{"role": "user", "content": [part]}]
    answer: Any = asked.chat.completions.create(
        model="judge",
        messages=messages,
        extra_body={"ocr_options": {"task": "advanced_recognition"}},
    )
    assert f"turned clockwise by {degrees} degrees" in answer.notes[1]
    (line,) = answer.choices[0].message.ocr_result["words_info"]
    assert line["text"].replace(" ", "") == WORDS.replace(" ", "")
    x, y = line["location"][:2]  # the upper left corner of the text, wherever that lies
    upright = {90: (640 - y, x), 180: (640 - x, 560 - y), 270: (y, 560 - x)}
    assert upright[degrees] == pytest.approx((40, 90), abs=22)


def native(
    client: httpx2.Client, *, headers: dict[str, str] | None = None, **parameters: Any
) -> httpx2.Response:
    content = [{"image": turned_uri(), "min_pixels": 3072, "max_pixels": 8388608,
                "enable_rotate": False}]  # fmt: skip
    body = {
        "model": "judge",
        "input": {"messages": [{"role": "user", "content": content}]},
        "parameters": {"ocr_options": {"task": "advanced_recognition"}, **parameters},
    }
    return client.post(SERVICE, json=body, headers=headers or {})


def test_dashscope_s_answer_has_text_and_result_in_one_part(client: httpx2.Client) -> None:
    output = native(client).json()["output"]
    (part,) = output["choices"][0]["message"]["content"]
    assert set(part) == {"text", "ocr_result"}
    check_place(part["ocr_result"])
    assert output["notes"]


@pytest.mark.parametrize("incremental", [True, False])
def test_dashscope_s_stream_ends_with_the_result(client: httpx2.Client, incremental: bool) -> None:
    answer = native(client, headers={"x-dashscope-sse": "enable"}, incremental_output=incremental)
    lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
    packets = [json.loads(line.removeprefix("data:")) for line in lines]
    contents = [one["output"]["choices"][0]["message"]["content"] for one in packets]
    assert [list(part) for content in contents[:-1] for part in content] == [["text"]]
    (last,) = contents[-1]
    check_place(last["ocr_result"])
    assert bool(last["text"]) is not incremental


def test_a_task_has_the_result_as_well(serve: Serve, tmp_path: Path) -> None:
    with serve(state_folder=tmp_path) as client:
        headers = {"x-dashscope-async": "enable"}
        task_id = native(client, headers=headers).json()["output"]["task_id"]
        end = time.monotonic() + 60
        while True:
            output = client.get(f"/api/v1/tasks/{task_id}").json()["output"]
            if output["task_status"] not in ("PENDING", "RUNNING"):
                break
            assert time.monotonic() < end
            time.sleep(0.2)
    assert output["task_status"] == "SUCCEEDED", output
    (part,) = output["choices"][0]["message"]["content"]
    check_place(part["ocr_result"])


def respond(client: httpx2.Client, uri: str, **fields: Any) -> httpx2.Response:
    content = [{"type": "input_image", "image_url": uri}, {"type": "input_text", "text": "?"}]
    given = [{"role": "user", "content": content}]
    body = {"model": "judge", "input": given, "store": False, "max_output_tokens": 20, **fields}
    return client.post("/v1/responses", json=body)


def test_responses_tell_what_was_read(client: httpx2.Client) -> None:
    task = {"task": "advanced_recognition"}
    done = respond(client, to_uri(SAMPLES["sign"]()), ocr_options=task).json()
    assert done["status"] == "completed"
    check_place(done["ocr_result"])
    assert any("offline reader" in note for note in done["notes"])
    streamed = respond(client, to_uri(SAMPLES["sign"]()), ocr_options=task, stream=True).text
    (last,) = [
        json.loads(line.removeprefix("data: "))["response"]
        for line in streamed.splitlines()
        if line.startswith('data: {"type":"response.completed"')
    ]
    assert last["ocr_result"] == done["ocr_result"]
    wrong = respond(client, to_uri(SAMPLES["sign"]()), ocr_options={"task": "read"}).json()
    assert wrong["error"]["param"] == "ocr_options.task"


def test_responses_tell_places_and_sizes(client: httpx2.Client) -> None:
    uri = to_uri(SAMPLES["sign"]())
    asked = {"coordinate_space": "original_pixels", "vl_enable_image_hw_output": True}
    done = respond(client, uri, **asked).json()
    assert done["places"] == [] or "bbox_2d" in done["places"][0]
    (size,) = done["images"]
    assert size["original_hw"] == list(SAMPLES["sign"]().size[::-1])
    plain = respond(client, uri).json()
    assert not plain.keys() & {"places", "images", "ocr_result"}
    wrong = respond(client, uri, coordinate_space="inches").json()
    assert wrong["error"]["param"] == "coordinate_space"
    bare = {"model": "judge", "input": "hello", "coordinate_space": "original_pixels"}
    assert "exactly one" in client.post("/v1/responses", json=bare).json()["error"]["message"]
