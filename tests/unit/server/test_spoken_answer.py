"""Spoken answers over HTTP in both dialects: at once, streamed, as tasks and in batches."""

import base64
import json
import re
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from qianyan.engine.engine import Engine
from qianyan.engine.speech import Speaking, Speech
from qianyan.models.omni.speech_decoder import SpeechDecoder
from qianyan.server.line import Line

CHAT = "/v1/chat/completions"
SERVICES = "/api/v1/services/aigc"
PARTS = f"{SERVICES}/multimodal-generation/generation"
TEXT = f"{SERVICES}/text-generation/generation"
SSE = {"x-dashscope-sse": "enable"}
ASKED: dict[str, Any] = {
    "modalities": ["text", "audio"],
    "max_tokens": 12,
    "temperature": 0,
    "seed": 3,
}
CODE_BYTES = 2 * 480
VOICES = "Input should be 'Chelsie' or 'Ethan': parameters.audio.voice"
Serve = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture(scope="module")
def speaking(omni_checkpoint: Path) -> Engine:
    return Engine(omni_checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def speaker(
    serve: Serve, speaking: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A client of a server whose model speaks."""
    with serve(model=speaking, state_folder=tmp_path_factory.mktemp("state")) as one:
        yield one


def chat_body(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Who is there?"}]
    return {"model": "qwen-plus", "messages": messages, **ASKED, **changes}


def native_body(path: str = PARTS, **changes: Any) -> dict[str, Any]:
    content = [{"text": "Who is there?"}] if path == PARTS else "Who is there?"
    return {
        "model": "qwen-plus",
        "input": {"messages": [{"role": "user", "content": content}]},
        "parameters": {**ASKED, **changes},
    }


def say(speaker: httpx2.Client, path: str, body: dict[str, Any], **how: Any) -> dict[str, Any]:
    answer = speaker.post(path, json=body, **how)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def frames(data: str) -> bytes:
    """The samples of a WAV file in base64, of the rate and the form they are to have."""
    with wave.open(BytesIO(base64.b64decode(data))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        return file.readframes(file.getnframes())


def packets_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line[5:]) for line in answer.text.splitlines() if line[:5] == "data:"]


@pytest.fixture(scope="module")
def spoken(speaker: httpx2.Client) -> tuple[str, bytes]:
    """What the question is answered with in OpenAI's form: text and samples."""
    message = say(speaker, CHAT, chat_body())["choices"][0]["message"]
    return message["content"], frames(message["audio"]["data"])


@pytest.mark.parametrize("path", [PARTS, TEXT])
def test_dashscopes_whole_answer_is_that_of_openais_form(
    speaker: httpx2.Client, spoken: tuple[str, bytes], path: str
) -> None:
    said = say(speaker, path, native_body(path, result_format="message"))
    content = said["output"]["choices"][0]["message"]["content"]
    assert content == ([{"text": spoken[0]}] if path == PARTS else spoken[0])
    audio = said["output"]["audio"]
    assert frames(audio["data"]) == spoken[1]
    assert set(audio) == {"data", "id", "expires_at"}
    num_codes = len(spoken[1]) // CODE_BYTES
    assert num_codes > 12
    usage = said["usage"]
    assert usage["output_tokens_details"] == {"text_tokens": 12, "audio_tokens": num_codes}
    assert usage["output_tokens"] == 12 + num_codes
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_text_format_has_the_sound_beside_its_text(
    speaker: httpx2.Client, spoken: tuple[str, bytes]
) -> None:
    output = say(speaker, TEXT, native_body(TEXT))["output"]
    assert output["text"] == spoken[0]
    assert frames(output["audio"]["data"]) == spoken[1]


@pytest.mark.parametrize("is_incremental", [True, False])
@pytest.mark.parametrize("path", [PARTS, TEXT])
def test_dashscopes_packets_bring_the_sound_piece_by_piece(
    speaker: httpx2.Client, spoken: tuple[str, bytes], path: str, is_incremental: bool
) -> None:
    body = native_body(path, incremental_output=is_incremental, result_format="message")
    packets = packets_of(speaker.post(path, json=body, headers=SSE))
    outputs = [one["output"] for one in packets]
    sounds = [base64.b64decode(one["audio"]["data"]) for one in outputs]
    assert b"".join(sounds) == spoken[1]
    assert len({(one["audio"]["id"], one["audio"]["expires_at"]) for one in outputs}) == 1
    contents = [one["choices"][0]["message"]["content"] for one in outputs]
    texts = ["".join(p["text"] for p in one) if path == PARTS else one for one in contents]
    assert ("".join(texts) if is_incremental else texts[-1]) == spoken[0]
    reasons = [one["choices"][0]["finish_reason"] for one in outputs]
    assert reasons == ["null"] * (len(reasons) - 1) + ["length"]
    counted = [one["usage"]["output_tokens"] for one in packets]
    assert counted == sorted(counted)
    assert counted[-1] == 12 + len(spoken[1]) // CODE_BYTES
    first_sound = next(at for at, sound in enumerate(sounds) if sound)
    assert first_sound < len(sounds) - 2, "more than one piece of sound"


def test_a_task_speaks(speaker: httpx2.Client, spoken: tuple[str, bytes]) -> None:
    headers = {"x-dashscope-async": "enable"}
    task_id = say(speaker, PARTS, native_body(), headers=headers)["output"]["task_id"]
    end = time.monotonic() + 60
    while (task := speaker.get(f"/api/v1/tasks/{task_id}").json())["output"]["task_status"] in (
        "PENDING",
        "RUNNING",
    ):
        assert time.monotonic() < end, task
        time.sleep(0.05)
    assert frames(task["output"]["audio"]["data"]) == spoken[1]
    assert task["usage"]["output_tokens_details"]["audio_tokens"] == len(spoken[1]) // CODE_BYTES


def test_lines_of_a_batch_speak_or_are_told_why_not(
    speaker: httpx2.Client, spoken: tuple[str, bytes]
) -> None:
    bodies = [chat_body(), chat_body(audio={"voice": "Cherry"})]
    lines = [
        json.dumps({"custom_id": str(at), "method": "POST", "url": CHAT, "body": body})
        for at, body in enumerate(bodies)
    ]
    file = {"file": ("in.jsonl", "\n".join(lines).encode())}
    sent = speaker.post("/v1/files", data={"purpose": "batch"}, files=file).json()
    asked = {"input_file_id": sent["id"], "endpoint": CHAT}
    batch = speaker.post("/v1/batches", json=asked).json()
    end = time.monotonic() + 60
    while batch["status"] != "completed":
        assert time.monotonic() < end, batch
        time.sleep(0.05)
        batch = speaker.get(f"/v1/batches/{batch['id']}").json()
    (line,) = speaker.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    message = json.loads(line)["response"]["body"]["choices"][0]["message"]
    assert frames(message["audio"]["data"]) == spoken[1]
    (line,) = speaker.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
    assert json.loads(line)["error"]["message"] == VOICES


def test_responses_which_have_no_sound_refuse_it(speaker: httpx2.Client) -> None:
    asked = {"model": "qwen-plus", "input": "Hello?", "max_output_tokens": 4}
    refused = speaker.post("/v1/responses", json=asked | {"modalities": ["text", "audio"]})
    assert refused.status_code == 400, refused.text
    assert "chat/completions" in refused.json()["error"]["message"]
    assert speaker.post("/v1/responses", json=asked).status_code == 200


@pytest.mark.parametrize("headers", [{}, SSE])
def test_a_voice_that_is_not_there_is_refused_in_both_forms(
    speaker: httpx2.Client, headers: dict[str, str]
) -> None:
    voice = {"audio": {"voice": "Cherry", "format": "wav"}}
    theirs = speaker.post(PARTS, json=native_body(**voice), headers=headers)
    assert theirs.status_code == 400
    assert theirs.json()["code"] == "InvalidParameter"
    assert theirs.json()["message"] == VOICES
    ours = speaker.post(CHAT, json=chat_body(**voice, stream=bool(headers)))
    assert ours.status_code == 400
    assert ours.json()["error"]["message"] == VOICES


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"audio": {"format": "mp3"}}, "audio.format is 'mp3'; expected wav or pcm16."),
        ({"audio": {"voice": 7}}, "audio.voice is no text; expected the name of a voice."),
        (
            {"modalities": ["text"], "audio": {}},
            "modalities is neither ['text'] without audio nor",
        ),
        ({"modalities": ["audio"]}, "modalities is neither ['text'] without audio nor"),
        ({"n": 2}, "n is given for an answer that is spoken; leave it out."),
        ({"logprobs": True}, "logprobs is given for an answer that is spoken; leave it out."),
    ],
)
def test_what_cannot_be_spoken_is_refused_in_both_forms(
    speaker: httpx2.Client, change: dict[str, Any], sentence: str
) -> None:
    ours = speaker.post(CHAT, json=chat_body(**change))
    theirs = speaker.post(PARTS, json=native_body(**change))
    assert (ours.status_code, theirs.status_code) == (400, 400)
    assert sentence in ours.json()["error"]["message"]
    assert theirs.json()["code"] == "InvalidParameter"
    assert sentence in theirs.json()["message"]


@pytest.mark.parametrize("headers", [{}, SSE])
def test_a_model_that_does_not_speak_says_so_in_both_forms(
    client: httpx2.Client, headers: dict[str, str]
) -> None:
    theirs = client.post(PARTS, json=native_body(), headers=headers)
    assert theirs.status_code == 400
    assert theirs.json()["code"] == "InvalidParameter"
    assert "does not speak" in theirs.json()["message"]
    ours = client.post(CHAT, json=chat_body(stream=bool(headers)))
    assert ours.status_code == 400
    error = ours.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_value", "modalities")
    assert "does not speak" in error["message"]


def test_fields_without_meaning_are_named_beside_a_spoken_answer(speaker: httpx2.Client) -> None:
    for path, body in ((CHAT, chat_body(mood="glad")), (PARTS, native_body(mood="glad"))):
        answer = speaker.post(path, json=body)
        assert answer.status_code == 200
        assert answer.headers["x-ignored-fields"] == "mood"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model that would speak for 82 seconds."""
    from tests.omni_checkpoint import write_omni_checkpoint

    folder = write_omni_checkpoint(tmp_path_factory.mktemp("endless"), talker_positions=8192)
    return Engine(folder, dtype="float32")


def test_speech_whose_time_is_over_ends_with_what_was_said(serve: Serve, endless: Engine) -> None:
    asked = chat_body(max_tokens=4)
    with serve(model=endless, max_speech_s=1.0) as one:
        began = time.monotonic()
        choice = say(one, CHAT, asked)["choices"][0]
        took_s = time.monotonic() - began
        with one.stream("POST", CHAT, json=asked | {"stream": True}) as stream:
            lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
        packets = packets_of(one.post(PARTS, json=native_body(max_tokens=4), headers=SSE))
    assert took_s < 30
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "time_limit")
    num_samples = len(frames(choice["message"]["audio"]["data"])) // 2
    assert 480 <= num_samples < 480 * 4096
    assert num_samples % 480 == 0
    assert lines.pop() == "[DONE]"
    last = json.loads(lines[-1])["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("length", "time_limit")
    assert packets[-1]["output"]["choices"][0]["finish_reason"] == "length"
    sounds = [base64.b64decode(packet["output"]["audio"]["data"]) for packet in packets]
    num_codes = packets[-1]["usage"]["output_tokens_details"]["audio_tokens"]
    assert len(b"".join(sounds)) == num_codes * CODE_BYTES


def test_a_text_whose_time_is_over_is_spoken_as_far_as_it_goes(
    serve: Serve, speaking: Engine
) -> None:
    with serve(model=speaking, max_answer_s=0.5) as one:
        choice = say(one, CHAT, chat_body(max_tokens=7000))["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "time_limit")
    assert len(choice["message"]["content"]) > 0
    assert len(frames(choice["message"]["audio"]["data"])) > 4 * CODE_BYTES


def test_nothing_is_said_to_who_has_gone(
    serve: Serve, endless: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes are counted where they are made, while a listener leaves a stream and a whole reply."""
    begun: list[Speaking] = []
    begin = Speech.begin

    def begin_and_keep(*args: Any, **how: Any) -> Speaking:
        begun.append(begin(*args, **how))
        return begun[-1]

    monkeypatch.setattr(Speech, "begin", begin_and_keep)
    with serve(model=endless) as one:
        voices = one.app.state.serving.worker.voices  # type: ignore[attr-defined]
        with one.stream("POST", CHAT, json=chat_body(stream=True)) as stream:
            next(line for line in stream.iter_lines() if '"data":"' in line)
        is_left(voices, begun[0])
        with pytest.raises(httpx2.ReadTimeout):
            one.post(PARTS, json=native_body(), timeout=1)
        is_left(voices, begun[1])


def is_left(voices: Line, speaking: Speaking) -> None:
    """Its seat is free soon, and from then on there are no more codes."""
    end = time.monotonic() + 20
    while voices.num_seated:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.2)  # the code that was being made
    num_codes = len(speaking.codes)
    time.sleep(0.6)
    assert 0 < len(speaking.codes) == num_codes < 4096


def test_tokens_of_speech_are_counted_and_paid_for(serve: Serve, speaking: Engine) -> None:
    with serve(model=speaking, tokens_per_minute=100) as one:
        said = say(one, CHAT, chat_body())
        usage = said["usage"]
        counts = re.search(r'tokens_total.*kind="completion".* (\d+)', one.get("/metrics").text)
        assert counts is not None
        assert int(counts[1]) == usage["completion_tokens"] > 24
        refused = one.post(CHAT, json=chat_body())
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "limit_tokens"


def test_speech_that_fails_says_so_and_the_next_answer_is_spoken(
    speaker: httpx2.Client, spoken: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    push = SpeechDecoder.push
    failing: list[BaseException] = []

    def push_or_fail(self: SpeechDecoder, codes: list[int]) -> Any:
        if failing:
            raise failing[0]
        return push(self, codes)

    monkeypatch.setattr(SpeechDecoder, "push", push_or_fail)
    for error, status, code in (
        (RuntimeError("a matrix is not invertible"), 500, "failed"),
        (torch.OutOfMemoryError("out of memory"), 503, "no_memory"),
    ):
        failing[:] = [error]
        refused = speaker.post(CHAT, json=chat_body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
        assert "matrix" not in refused.text
        stream = speaker.post(CHAT, json=chat_body(stream=True)).text.split("\n\n")
        assert json.loads(stream[-2].removeprefix("data: "))["error"]["code"] == code
        packets = speaker.post(PARTS, json=native_body(), headers=SSE).text
        assert packets.split("\n\n")[-2].count("event:error") == 1
    failing.clear()
    message = say(speaker, CHAT, chat_body())["choices"][0]["message"]
    assert frames(message["audio"]["data"]) == spoken[1]


def test_thinking_of_a_model_that_does_not_think_is_refused(speaker: httpx2.Client) -> None:
    refused = speaker.post(CHAT, json=chat_body(reasoning_effort="high"))
    assert refused.status_code == 400
    assert "does not think" in refused.json()["error"]["message"]
