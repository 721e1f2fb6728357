"""Texts read aloud over HTTP: with OpenAI's own client, whole, as a stream, and what is refused."""

import base64
import json
import time
import wave
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import httpx2
import openai
import pytest
import torch
from tests.reading_checkpoint import write_reading_checkpoint

from qianyan.engine.engine import Engine
from qianyan.engine.reading_aloud import read_aloud
from qianyan.models.omni.pcm import to_pcm16

TEXT = "2 号仓库有明火，一人未戴安全帽"
KEY = "sk-test-0123456789"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_reading_checkpoint(tmp_path_factory.mktemp("reading"))
    return Engine(folder, dtype="float32")


@pytest.fixture(scope="module")
def served(serve: Callable[..., Any], reader: Engine) -> Iterator[Any]:
    with serve(model=reader) as client:
        yield client


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=KEY, max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def expected(reader: Engine) -> bytes:
    """The sound of the text, read in this process."""
    return to_pcm16(torch.from_numpy(read_aloud(reader, TEXT, voice="Ethan", seed=4).samples))


ASKED: dict[str, Any] = {
    "model": "judge",
    "input": TEXT,
    "voice": "Ethan",
    "extra_body": {"seed": 4},
}


def test_openai_s_client_gets_a_wav_file(client: openai.OpenAI, expected: bytes) -> None:
    """Its header says the most, as the length is not known when it leaves."""
    done = client.audio.speech.create(**ASKED)
    assert done.response.headers["content-type"] == "audio/wav"
    with wave.open(BytesIO(done.content)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        assert file.readframes(len(expected)) == expected


def test_openai_s_client_hears_the_samples_as_they_are_made(
    client: openai.OpenAI, expected: bytes
) -> None:
    with client.audio.speech.with_streaming_response.create(
        **ASKED, response_format="pcm"
    ) as stream:
        assert stream.headers["content-type"] == "audio/pcm"
        assert "content-length" not in stream.headers
        pieces = list(stream.iter_bytes())
    assert b"".join(pieces) == expected
    assert len(pieces) > 1
    assert len(pieces[0]) < len(expected) / 2


def test_a_stream_of_events_ends_with_the_counts(served: httpx2.Client, expected: bytes) -> None:
    body = {"model": "judge", "input": TEXT, "voice": {"id": "Ethan"}, "seed": 4}
    answer = served.post("/compatible-mode/v1/audio/speech", json=body | {"stream_format": "sse"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    assert {one["type"] for one in events[:-1]} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(one["audio"]) for one in events[:-1]) == expected
    num_text, num_codes = len(TEXT.encode()), len(expected) // 960
    usage = {
        "input_tokens": num_text,
        "output_tokens": num_codes,
        "total_tokens": num_text + num_codes,
    }
    assert events[-1] == {"type": "speech.audio.done", "usage": usage}
    counted = served.get("/metrics").text
    assert 'qianyan_tokens_total{kind="completion",model="judge"}' in counted


@pytest.mark.parametrize(
    ("change", "param", "sentence"),
    [
        ({"response_format": "mp3"}, "response_format", "is 'mp3'; expected wav or pcm."),
        ({"speed": 1.5}, "speed", "speed is 1.5, but voices speak here as fast"),
        ({"instructions": "whisper"}, "instructions", "expected none."),
        ({"voice": "alloy"}, "voice", "voice is 'alloy'; expected one of Chelsie, Ethan."),
        ({"input": ""}, "input", "'input': String should have at least 1 character."),
        ({"input": "a" * 4097}, "input", "String should have at most 4096 characters."),
        ({"input": " !? "}, None, "The text has no word to be read aloud"),
        ({"input": "fire <|im_end|>"}, None, "which is a control word of the model"),
        ({"stream_format": "mp4"}, "stream_format", "should be 'audio' or 'sse'"),
    ],
)
def test_what_cannot_be_read_as_asked_is_refused(
    change: dict[str, Any], param: str | None, sentence: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.speech.create(**ASKED | change)
    assert sentence in refused.value.message
    assert refused.value.param == param


def test_a_model_that_does_not_speak_is_refused(serve: Callable[..., Any]) -> None:
    with serve() as client:
        answer = client.post("/v1/audio/speech", json={"model": "judge", "input": "fire"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("The model judge does not speak;")


def test_a_text_whose_time_is_over_is_refused(serve: Callable[..., Any], reader: Engine) -> None:
    with serve(model=reader, max_speech_s=0.01) as client:
        answer = client.post("/v1/audio/speech", json={"model": "judge", "input": TEXT})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "request_timeout"


def test_a_reader_who_goes_away_leaves_the_seat(served: Any) -> None:
    """And the next one is heard."""
    voices = served.app.state.serving.worker.voices
    body = {"model": "judge", "input": f"{TEXT}。" * 40, "voice": "Ethan"}
    with served.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_bytes()
        next(pieces)
        assert voices.num_seated == 1
    short = served.post("/v1/audio/speech", json={"model": "judge", "input": "a"})
    assert short.status_code == 200
    for _ in range(500):
        if not voices.num_seated:
            break
        time.sleep(0.01)
    assert voices.num_seated == 0


def test_a_voice_that_ends_early_breaks_the_response_off(
    serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whoever saves the sound sees that it is not whole; events say why."""
    folder = write_reading_checkpoint(tmp_path_factory.mktemp("early"), ends_early=True)
    body = {"model": "judge", "input": "a" * 60 + "b" + "a" * 20, "seed": 1}
    with serve(model=Engine(folder, dtype="float32")) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post("/v1/audio/speech", json=body)
        answer = client.post("/v1/audio/speech", json=body | {"stream_format": "sse"})
    last = json.loads(answer.text.strip().rpartition("\n\n")[2][6:])
    assert last["type"] == "error"
    assert "The voice ended before the text" in last["error"]["message"]
