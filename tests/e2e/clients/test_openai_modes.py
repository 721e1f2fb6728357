"""The modes that the notes name beside text and pictures, with openai-python as it comes.

Web search needs a provider: `tests/e2e/test_web_search.py`. Tools and calls in flight are in
`test_openai_python.py`, text extraction by a model that reads in `test_text_extraction.py`.
"""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image, ImageDraw

KEY = "sk-e2e-0123456789"


@pytest.fixture(scope="module")
def client(house: Any) -> Any:
    with OpenAI(base_url=house.base_url, api_key=KEY, max_retries=0) as one:
        yield one


def uri(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def ask(client: OpenAI, *messages: Any, **more: Any) -> Any:
    how: dict[str, Any] = {"max_tokens": 16, "temperature": 0, **more}
    return client.chat.completions.create(model="qwen-plus", messages=list(messages), **how)


def test_the_frames_of_a_video_are_seen_in_their_order(client: OpenAI) -> None:
    def watch(*colours: tuple[int, int, int]) -> Any:
        frames = [uri(Image.new("RGB", (120, 90), colour)) for colour in colours]
        parts = [
            {"type": "video", "video": frames, "fps": 2},
            {"type": "text", "text": "What happens?"},
        ]
        asked = {"role": "user", "content": parts}
        return ask(client, asked, max_tokens=1, logprobs=True, top_logprobs=5)

    red, blue = (220, 30, 20), (20, 40, 220)
    one, other = watch(red, red, blue, blue), watch(blue, blue, red, red)
    assert one.usage.prompt_tokens == other.usage.prompt_tokens
    assert one.usage.prompt_tokens_details.video_tokens > 0
    assert one.choices[0].logprobs != other.choices[0].logprobs, "it looks at the order"


def test_a_document_is_sent_up_and_asked_about_by_its_id(client: OpenAI, tmp_path: Path) -> None:
    rules = tmp_path / "rules.md"
    rules.write_text("# Rules\n\nHard hats are worn in zone 7.\n" * 3)
    file = client.files.create(file=rules, purpose="file-extract")  # type: ignore[arg-type]
    assert file.status == "processed"
    question = {"role": "user", "content": "Where are hats worn?"}
    without = ask(client, question)
    role = {"role": "system", "content": "You are a helpful assistant."}
    named = {"role": "system", "content": f"fileid://{file.id}"}
    part = {"role": "user", "content": [
        {"type": "file", "file": {"file_id": file.id}},
        {"type": "text", "text": "Where are hats worn?"},
    ]}  # fmt: skip
    for messages in ([role, named, question], [part]):
        answer = ask(client, *messages)
        assert answer.choices[0].message.content
        assert answer.usage.prompt_tokens > without.usage.prompt_tokens + 20
    assert client.files.delete(file.id).deleted


def test_the_text_of_a_sign_is_read_with_its_places(client: OpenAI) -> None:
    pytest.importorskip("rapidocr", reason="the offline reader is not installed")
    sign = Image.new("RGB", (420, 160), (255, 255, 255))
    ImageDraw.Draw(sign).text((40, 40), "EXIT 7", fill=(0, 0, 0), font_size=70)
    parts = [{"type": "image_url", "image_url": {"url": uri(sign)}}]
    answer = ask(
        client,
        {"role": "user", "content": parts},
        extra_body={"ocr_options": {"task": "advanced_recognition"}},
    )
    (word,) = answer.choices[0].message.model_extra["ocr_result"]["words_info"]
    assert word["text"].replace(" ", "") == "EXIT7"
    across, down = word["location"][::2], word["location"][1::2]
    assert 0 < min(across) < 80 < 200 < max(across) < 420
    assert 0 < min(down) < 80 < max(down) < 160


def test_a_batch_of_lines_comes_back_as_lines(client: OpenAI, hello: str) -> None:
    body = {
        "model": "qwen-plus",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 16,
    }
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n in range(3)
    ]
    lines[2]["body"] = {**body, "temperature": 9}
    sent = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", sent), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    until = time.monotonic() + 60
    while batch.status not in ("completed", "failed"):
        assert time.monotonic() < until, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id
    assert batch.error_file_id
    done = [json.loads(one) for one in client.files.content(batch.output_file_id).text.splitlines()]
    said = {
        one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"]
        for one in done
    }
    assert said == {"0": hello, "1": hello}
    (failed,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(failed)["custom_id"] == "2"
