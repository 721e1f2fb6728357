"""A voice behind an endpoint: what it is sent, what it says, and when that is not believed."""

import json
import struct
import threading
import wave
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import pairwise
from typing import Any

import pytest

from qianyan.errors import EndpointError, ReplyError
from qianyan.inspection.remote.chat_endpoint import Patience
from qianyan.inspection.remote.voice import RemoteVoice, plain_words
from qianyan.models.omni.pcm import to_wav

SENTENCE = "3 号塔吊下一人未戴安全帽"
PCM = bytes(range(250)) * 40
QUICK = Patience(timeout_s=10, attempts=2, first_wait_s=0.01, longest_wait_s=0.02)
Answer = tuple[int, str, bytes]
Behave = Callable[[str, dict[str, Any]], Answer]


class Endpoint:
    """A server whose answers a test gives; it keeps what it was sent."""

    def __init__(self, behave: Behave) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.sent.append((self.path, body))
                endpoint.keys.append(self.headers["authorization"])
                self._answer(*behave(self.path, body))

            def do_GET(self) -> None:
                models = {"data": [{"id": "qwen-omni"}]}
                self._answer(200, "application/json", json.dumps(models).encode())

            def _answer(self, status: int, kind: str, data: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Keep the tests' output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        run = {"poll_interval": 0.02}
        threading.Thread(target=self.server.serve_forever, kwargs=run, daemon=True).start()


@pytest.fixture
def serving() -> Iterator[Callable[[Behave], Endpoint]]:
    open_ones: list[Endpoint] = []

    def make(behave: Behave) -> Endpoint:
        open_ones.append(Endpoint(behave))
        return open_ones[-1]

    yield make
    for one in open_ones:
        one.server.shutdown()
        one.server.server_close()


def absent() -> Answer:
    return 404, "application/json", b'{"error": {"message": "Not Found"}}'


def refused(message: str) -> Answer:
    return 400, "application/json", json.dumps({"error": {"message": message}}).encode()


def spoken(
    *words: str,
    sound: bytes = PCM,
    key: str = "transcript",
    cuts: tuple[int, ...] = (),
    reason: str = "stop",
) -> Answer:
    """A stream as Bailian's: words in one delta each, then base64 that is cut anywhere."""
    data = b64encode(sound).decode()
    edges = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    deltas = [{"audio": {key: word}} if key == "transcript" else {key: word} for word in words]
    deltas += [{"audio": {"data": piece, "id": "audio_1"}} for piece in pieces]
    lines = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    lines.append({"choices": [{"delta": {}, "finish_reason": reason}]})
    body = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
    return 200, "text/event-stream", body.encode()


def samples(sound: bytes) -> tuple[bytes, int]:
    with wave.open(BytesIO(sound)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        assert len(sound) == 44 + 2 * file.getnframes(), "the header says the real length"
        return file.readframes(file.getnframes()), file.getframerate()


def test_an_endpoint_that_reads_aloud_is_given_the_sentence(
    serving: Callable[[Behave], Endpoint],
) -> None:
    """Its WAV may say that it is endless, as streamed ones do, and have another rate."""
    endless = bytearray(to_wav(PCM, rate_hz=16_000))
    endless[4:8] = endless[40:44] = struct.pack("<I", 0xFFFFFFFF)
    endpoint = serving(lambda path, body: (200, "audio/wav", bytes(endless)))
    voice = RemoteVoice(endpoint.url, api_key="k", voice="Chelsie", patience=QUICK)
    assert samples(voice.say(SENTENCE)) == (PCM, 16_000)
    body = {
        "model": "qwen-omni",
        "input": SENTENCE,
        "response_format": "wav",
        "voice": "Chelsie",
    }
    assert endpoint.sent == [("/v1/audio/speech", body)]
    assert endpoint.keys == ["Bearer k"]


@pytest.mark.parametrize("cuts", [(), (1,), (7, 8, 4001)])
def test_a_model_that_speaks_repeats_the_sentence_in_a_stream(
    cuts: tuple[int, ...], serving: Callable[[Behave], Endpoint]
) -> None:
    """Where nothing reads aloud, which is found out once."""

    def behave(path: str, body: dict[str, Any]) -> Answer:
        said = "3号塔吊下", "一人未戴安全帽。"
        return absent() if path.endswith("speech") else spoken(*said, cuts=cuts)

    endpoint = serving(behave)
    voice = RemoteVoice(endpoint.url, "qwen-omni", patience=QUICK)
    assert samples(voice.say(SENTENCE)) == (PCM, 24_000)
    voice.say(SENTENCE)
    paths = [path.removeprefix("/v1/") for path, _ in endpoint.sent]
    assert paths == ["audio/speech", "chat/completions", "chat/completions"]
    body = endpoint.sent[1][1]
    assert body["stream"] is True
    assert body["modalities"] == ["text", "audio"]
    assert body["audio"] == {"format": "wav"}
    assert body["max_tokens"] == len(SENTENCE.encode()) + 32
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["messages"][0]["content"].endswith(f"\n{SENTENCE}")


def test_other_forms_of_a_spoken_answer_are_read(serving: Callable[[Behave], Endpoint]) -> None:
    """Words in the content, whole WAV files, pieces that are base64 in themselves."""
    padded = [b64encode(PCM[a : a + 1000]).decode() for a in range(0, len(PCM), 1000)]

    def behave(path: str, body: dict[str, Any]) -> Answer:
        if path.endswith("speech"):
            return absent()
        if "Gate: fire" in body["messages"][0]["content"]:
            return spoken("gate fire", sound=to_wav(PCM), key="content")
        lines = [{"choices": [{"delta": {"audio": {"data": one}}}]} for one in padded]
        lines += [{"choices": [{"delta": {"content": SENTENCE}, "finish_reason": "stop"}]}]
        body_text = "".join(f"data: {json.dumps(line)}\n\n" for line in lines)
        return 200, "text/event-stream", body_text.encode()

    voice = RemoteVoice(serving(behave).url, "qwen-omni", patience=QUICK)
    assert samples(voice.say("Gate: fire"))[0] == PCM
    assert samples(voice.say(SENTENCE))[0] == PCM


def test_a_model_that_says_something_else_is_not_believed(
    serving: Callable[[Behave], Endpoint],
) -> None:
    """It is asked once more, and may then say it right."""
    answers = ["好的，3 号塔吊下两人未戴安全帽", SENTENCE, "no", "no"]

    def behave(path: str, body: dict[str, Any]) -> Answer:
        return absent() if path.endswith("speech") else spoken(answers.pop(0))

    voice = RemoteVoice(serving(behave).url, "qwen-omni", patience=QUICK)
    assert samples(voice.say(SENTENCE))[0] == PCM
    with pytest.raises(ReplyError, match=f"was to say '{SENTENCE}' and said 'no'; its sound is"):
        voice.say(SENTENCE)
    assert not answers


def test_a_format_that_is_refused_is_called_by_its_other_name(
    serving: Callable[[Behave], Endpoint],
) -> None:
    def behave(path: str, body: dict[str, Any]) -> Answer:
        if path.endswith("speech"):
            return absent()
        if body["audio"]["format"] == "wav":
            return refused("audio.format must be pcm16 in streams")
        return spoken(SENTENCE)

    endpoint = serving(behave)
    voice = RemoteVoice(endpoint.url, "gpt-4o-audio", patience=QUICK)
    assert samples(voice.say(SENTENCE))[0] == PCM
    voice.say(SENTENCE)
    assert [body["audio"]["format"] for path, body in endpoint.sent if "chat" in path] == [
        "wav",
        "pcm16",
        "pcm16",
    ]


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (refused("no voice 'x'"), EndpointError, "refuses the request .*no voice 'x'"),
        ((200, "application/json", b'{"id": 1}'), EndpointError, "with text where sound was"),
        ((200, "text/html", b"<html>"), EndpointError, "where JSON was expected"),
        ((200, "audio/mpeg", b"ID3"), EndpointError, "no WAV file of 16-bit samples"),
        ((200, "audio/wav", to_wav(b"")), EndpointError, "and 0 bytes; expected one channel"),
        ((503, "text/plain", b""), EndpointError, "still asks to slow down after 2 attempts"),
    ],
)
def test_what_an_endpoint_answers_instead_of_reading_is_an_error(
    answer: Answer, error: type[Exception], sentence: str, serving: Callable[[Behave], Endpoint]
) -> None:
    voice = RemoteVoice(serving(lambda *_: answer).url, "tts", voice="x", patience=QUICK)
    with pytest.raises(error, match=sentence):
        voice.say(SENTENCE)


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (spoken(SENTENCE, sound=b""), EndpointError, "answers without sound; expected a model"),
        (spoken(SENTENCE, reason="length"), ReplyError, "was cut off before it had said all"),
        (refused("modalities: text only"), EndpointError, "refuses .*modalities: text only"),
        (
            (200, "text/event-stream", b'data: {"choices":[{"delta":{"audio":{"data":"%"}},'
             b'"finish_reason":"stop"}]}\n\n'),
            EndpointError,
            "sends sound that is no base64",
        ),
    ],
)  # fmt: skip
def test_what_a_model_answers_instead_of_speaking_is_an_error(
    answer: Answer, error: type[Exception], sentence: str, serving: Callable[[Behave], Endpoint]
) -> None:
    def behave(path: str, body: dict[str, Any]) -> Answer:
        return absent() if path.endswith("speech") else answer

    voice = RemoteVoice(serving(behave).url, "qwen-omni", patience=QUICK)
    with pytest.raises(error, match=sentence):
        voice.say(SENTENCE)


def test_an_endpoint_that_is_not_there_is_an_error() -> None:
    voice = RemoteVoice("http://127.0.0.1:9/v1", "qwen-omni", patience=QUICK)
    with pytest.raises(
        EndpointError, match=r"Nothing answers at http://127\.0\.0\.1:9/v1.* correct --voice-url"
    ):
        voice.say(SENTENCE)


def test_words_are_compared_without_what_is_not_heard() -> None:
    assert plain_words("３ 号塔吊，Gate-A。") == plain_words("3号塔吊 gate a") == "3号塔吊gatea"
    assert plain_words("一人") != plain_words("二人")
