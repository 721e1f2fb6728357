"""Conversations over real sockets: heard, answered, interrupted, refused and left."""

import base64
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from tests.omni_checkpoint import write_omni_checkpoint
from tests.voiced import silence, voice
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from qianyan.engine.engine import Engine
from qianyan.engine.scheduler import EngineConfig
from qianyan.server.app import OPENAI_PREFIXES, OPENAI_ROUTERS, ROUTERS
from qianyan.server.realtime.session import Session
from qianyan.server.wire import SOCKET_PATHS

KEY = "sk-test-0123456789"
OPENAI = "/v1/realtime"
BRIEF: dict[str, Any] = {
    "instructions": "",
    "turn_detection": None,
    "max_response_output_tokens": 10,
    "temperature": 0,
    "seed": 3,
}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def ask(talker: Any, seconds: float = 1.0, **response: Any) -> list[dict[str, Any]]:
    """Say something, end the turn, and hear the whole answer."""
    talker.say(voice(seconds))
    talker.send("input_audio_buffer.commit")
    talker.send("response.create", response=response)
    events: list[dict[str, Any]] = talker.until("response.done")
    return events


def picture(colour: str = "red", size: tuple[int, int] = (112, 84)) -> str:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_sockets_are_those_that_the_wire_opens() -> None:
    routes = {one.path for router in ROUTERS for one in router.routes if "realtime" in one.path}
    for router in OPENAI_ROUTERS:
        for route in router.routes:
            if "realtime" in route.path:
                routes |= {f"{prefix}{route.path}" for prefix in OPENAI_PREFIXES}
    assert routes == SOCKET_PATHS


def test_a_turn_is_answered_in_speech_in_bailians_form(served: Any) -> None:
    with served.talk() as talker:
        assert talker.created["type"] == "session.created"
        session = talker.created["session"]
        assert session["voices"] == ["Chelsie", "Ethan"]
        assert session["modalities"] == ["text", "audio"]
        assert session["turn_detection"]["silence_duration_ms"] == 800
        assert session["sample_rate"] == 16_000
        talker.update(**BRIEF)
        events = ask(talker)
    names = list(dict.fromkeys(kinds(events)))
    assert names == [
        "input_audio_buffer.committed",
        "conversation.item.created",
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.audio_transcript.delta",
        "response.audio.delta",
        "response.audio.done",
        "response.audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    sound = b"".join(
        base64.b64decode(one["delta"]) for one in events if one["type"] == "response.audio.delta"
    )
    done = events[-1]["response"]
    usage = done["usage"]
    assert len(sound) == 2 * 480 * usage["output_token_details"]["audio_tokens"] > 9600
    assert np.abs(np.frombuffer(sound, np.int16)).max() > 100
    assert usage["input_tokens_details"]["audio_tokens"] == 25
    assert usage["output_tokens_details"]["text_tokens"] == 10
    assert done["status"] == "incomplete"
    assert done["status_details"]["reason"] == "max_output_tokens"
    said = "".join(
        one["delta"] for one in events if one["type"] == "response.audio_transcript.delta"
    )
    assert done["output"][0]["content"] == [{"type": "audio", "transcript": said}]
    assert len({one["event_id"] for one in events}) == len(events)


def test_the_same_turn_is_told_in_openais_present_form_at_24_khz(served: Any) -> None:
    with served.talk(OPENAI) as talker:
        session = talker.created["session"]
        assert session["type"] == "realtime"
        assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
        brief = {name: BRIEF[name] for name in ("instructions", "temperature", "seed")}
        input_audio = {"turn_detection": None}
        talker.update(type="realtime", max_output_tokens=10, audio={"input": input_audio}, **brief)
        talker.say(np.repeat(voice(1.0), 3)[::2], 24_000)
        talker.send("input_audio_buffer.commit")
        talker.send("response.create")
        events = talker.until("response.done")
    assert "response.output_audio.delta" in kinds(events)
    assert kinds(events).count("conversation.item.done") == 2
    assert events[-1]["response"]["usage"]["input_token_details"]["audio_tokens"] == 25
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part["type"] == "output_audio"


def test_clients_of_the_beta_get_its_events_at_openais_path(served: Any) -> None:
    with served.talk(OPENAI, headers={"openai-beta": "realtime=v1"}) as talker:
        assert talker.created["session"]["input_audio_format"] == "pcm16"
        assert talker.created["session"]["sample_rate"] == 24_000
        talker.update(**BRIEF, modalities=["text"])
        events = ask(talker)
    assert "response.text.delta" in kinds(events)
    assert "response.audio.delta" not in kinds(events)


def test_turns_follow_each_other_and_remember(served: Any) -> None:
    """The second prompt holds the first turn and its answer."""
    with served.talk() as talker:
        talker.update(**BRIEF, modalities=["text"])
        first = ask(talker)[-1]["response"]["usage"]
        second = ask(talker)[-1]["response"]["usage"]
    assert second["input_tokens_details"]["audio_tokens"] == 50
    assert second["input_tokens"] > first["input_tokens"] + 25 + 10


def test_words_and_pictures_are_asked_about_too(served: Any) -> None:
    content = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": f"data:image/jpeg;base64,{picture()}"},
        {"type": "input_audio", "audio": base64.b64encode(b"\1\0" * 8000).decode()},
    ]
    with served.talk() as talker:
        talker.update(**BRIEF, modalities=["text"])
        item = {"type": "message", "role": "user", "id": "mine", "content": content}
        talker.send("conversation.item.create", item=item)
        added = talker.next()
        assert added["item"]["id"] == "mine"
        assert [one["type"] for one in added["item"]["content"]] == [
            "input_text",
            "input_image",
            "input_audio",
        ]
        talker.send("response.create")
        usage = talker.until("response.done")[-1]["response"]["usage"]
    assert usage["input_tokens_details"]["audio_tokens"] == 12
    assert usage["input_tokens_details"]["image_tokens"] == 12


def test_what_the_camera_shows_is_seen_beside_what_is_said(served: Any) -> None:
    with served.talk() as talker:
        talker.update(**BRIEF, modalities=["text"])
        talker.send("input_image_buffer.append", image=picture("red"))
        talker.say(voice(1.5))
        talker.send("input_image_buffer.append", image=picture("blue"))
        talker.say(voice(1.5, seed=1))
        talker.send("input_audio_buffer.commit")
        talker.send("response.create")
        usage = talker.until("response.done")[-1]["response"]["usage"]
    assert usage["input_tokens_details"]["audio_tokens"] == 75
    assert usage["input_tokens_details"]["image_tokens"] > 8


def test_a_detector_finds_the_turns_and_has_them_answered(served: Any) -> None:
    with served.talk() as talker:
        changed = talker.update(**{**BRIEF, "turn_detection": {"type": "server_vad"}})
        assert changed["turn_detection"]["create_response"] is True
        talker.say(np.concatenate([silence(0.5), voice(1.0), silence(0.8)]))
        events = talker.until("response.done")
    started, stopped = events[:2]
    assert started["type"] == "input_audio_buffer.speech_started"
    assert stopped["type"] == "input_audio_buffer.speech_stopped"
    assert 100 <= started["audio_start_ms"] <= 700
    assert 1900 <= stopped["audio_end_ms"] <= 2300
    assert started["item_id"] == stopped["item_id"] == events[2]["item_id"]
    assert events[-1]["response"]["status"] == "incomplete"


def test_who_speaks_again_interrupts_the_answer_at_once(served: Any) -> None:
    long = {**BRIEF, "max_response_output_tokens": 300}
    with served.talk() as talker:
        talker.update(**{**long, "turn_detection": {"type": "server_vad"}})
        talker.say(np.concatenate([voice(1.0), silence(0.8)]))
        talker.until("response.audio_transcript.delta")
        talker.say(voice(0.6, seed=1))
        talker.until("input_audio_buffer.speech_started")
        events = talker.until("response.done")
        done = events[-1]["response"]
        assert done["status"] == "cancelled"
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert not [one for one in kinds(events) if one.endswith(".delta")]
        assert done["usage"]["output_token_details"]["text_tokens"] < 300
        talker.say(silence(0.8))
        again = talker.until("response.created")
    assert "input_audio_buffer.committed" in kinds(again)


def test_an_answer_may_be_left_uninterrupted_and_turns_unanswered(served: Any) -> None:
    detection = {"type": "server_vad", "create_response": False, "interrupt_response": False}
    with served.talk() as talker:
        talker.update(**{**BRIEF, "turn_detection": detection})
        talker.say(np.concatenate([voice(1.0), silence(0.8)]))
        talker.until("conversation.item.created")
        talker.send("response.create")
        talker.until("response.created")
        talker.say(np.concatenate([voice(1.0), silence(0.8)]))
        events = talker.until("response.done")
        assert events[-1]["response"]["status"] == "incomplete"


def test_a_client_may_cancel_and_go_on(served: Any) -> None:
    with served.talk() as talker:
        talker.update(**{**BRIEF, "max_response_output_tokens": 300})
        talker.say(voice(1.0))
        talker.send("input_audio_buffer.commit")
        talker.send("response.create")
        talker.send("response.cancel")
        done = talker.until("response.done")[-1]["response"]
        assert done["status_details"]["reason"] == "client_cancelled"
        error = talker.refused("response.cancel")
        assert error["code"] == "response_cancel_not_active"
        talker.send("response.create", response={"modalities": ["text"], "max_tokens": 3})
        done = talker.until("response.done")[-1]["response"]
        assert done["usage"]["output_tokens"] == 3


def test_two_answers_at_once_are_one_too_many(served: Any) -> None:
    with served.talk() as talker:
        talker.update(**{**BRIEF, "max_response_output_tokens": 300})
        talker.say(voice(1.0))
        talker.send("input_audio_buffer.commit")
        talker.send("response.create")
        talker.until("response.created")
        talker.send("response.create", event_id="second")
        error = talker.until("error")[-1]["error"]
        assert error["code"] == "conversation_already_has_active_response"
        assert error["event_id"] == "second"
        talker.send("response.cancel")
        talker.until("response.done")


def test_what_was_not_heard_of_an_answer_is_taken_back(served: Any) -> None:
    with served.talk() as talker:
        talker.update(**BRIEF)
        item = ask(talker)[-1]["response"]["output"][0]
        place = {"item_id": item["id"], "content_index": 0}
        talker.send("conversation.item.truncate", **place, audio_end_ms=0)
        assert talker.next()["type"] == "conversation.item.truncated"
        talker.send("conversation.item.retrieve", item_id=item["id"])
        assert talker.next()["item"]["content"][0]["transcript"] == ""
        error = talker.refused("conversation.item.truncate", **place, audio_end_ms=90_000)
        assert error["param"] == "audio_end_ms"
        talker.send("conversation.item.delete", item_id=item["id"])
        assert talker.next()["type"] == "conversation.item.deleted"
        error = talker.refused("conversation.item.delete", item_id=item["id"])
        assert error["code"] == "item_not_found"


def test_an_answer_may_stand_beside_the_conversation(served: Any) -> None:
    hello = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    with served.talk() as talker:
        talker.update(**BRIEF, modalities=["text"])
        first = ask(talker)
        beside = {"conversation": "none", "input": [hello], "metadata": {"topic": "x"}}
        talker.send("response.create", response=beside)
        events = talker.until("response.done")
        done = events[-1]["response"]
        assert done["conversation_id"] is None
        assert done["metadata"] == {"topic": "x"}
        assert "conversation.item.created" not in kinds(events)
        assert done["usage"]["input_tokens_details"]["audio_tokens"] == 0
        spoken = first[0]["item_id"]
        beside = {"input": [{"type": "item_reference", "id": spoken}], "conversation": "none"}
        talker.send("response.create", response=beside)
        done = talker.until("response.done")[-1]["response"]
        assert done["usage"]["input_tokens_details"]["audio_tokens"] == 25


def test_what_no_longer_fits_is_forgotten_from_the_oldest_on(served: Any) -> None:
    """The voice of the small model has room for 150 tokens and codes."""
    forgotten = []
    with served.talk() as talker:
        talker.update(**BRIEF)
        for _ in range(2):
            talker.say(voice(1.0))
            talker.send("input_audio_buffer.commit")
            talker.send("response.create")
            events = talker.until("response.done")
            assert events[-1]["response"]["status"] == "incomplete"
            forgotten += [one for one in events if one["type"] == "conversation.item.deleted"]
    assert forgotten


def test_a_session_that_is_finished_ends_after_its_answer(served: Any) -> None:
    with served.talk() as talker:
        talker.update(**BRIEF)
        talker.say(voice(1.0))
        talker.send("input_audio_buffer.commit")
        talker.send("response.create")
        talker.send("session.finish")
        events = talker.until("session.finished")
        assert "response.done" in kinds(events)
        assert talker.closed() == (1000, "")


BAD_EVENTS: list[tuple[str, str, str]] = [
    ("{", "invalid_json", "not valid JSON"),
    ("[1]", "invalid_value", "has no type"),
    ('{"type": "response.sing"}', "invalid_value", "is of type 'response.sing'"),
    ('{"type": "input_audio_buffer.append"}', "invalid_value", "'audio' is missing"),
    ('{"type": "input_audio_buffer.append", "audio": "?"}', "invalid_value", "no"),
    ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "invalid_value", "even number"),
    ('{"type": "input_image_buffer.append", "image": "AAAA"}', "not_a_picture", ""),
    ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty", "less than"),
    ('{"type": "session.update", "session": {"temperature": 9}}', "invalid_value", "temperature"),
    (
        '{"type": "session.update", "session": {"voice": "alloy"}}',
        "invalid_value",
        "Input should be 'Chelsie' or 'Ethan': parameters.audio.voice",
    ),
    (
        '{"type": "session.update", "session": {"modalities": ["audio"]}}',
        "invalid_value",
        "Invalid modalities: ['audio']. Supported combinations are",
    ),
    (
        '{"type": "session.update", "session": {"input_audio_format": "g711_ulaw"}}',
        "unsupported_value",
        "expected 16-bit samples",
    ),
    ('{"type": "session.update", "session": {"tools": [{}]}}', "unsupported_value", "tools"),
    (
        '{"type": "session.update", "session": {"turn_detection": {"type": "semantic_vad"}}}',
        "unsupported_value",
        "expected server_vad, or null",
    ),
    (
        '{"type": "conversation.item.create", "item": {"type": "function_call"}}',
        "invalid_value",
        "item.type",
    ),
    (
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", '
        '"content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}}',
        "not_a_picture",
        "",
    ),
    (
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", '
        '"content": [{"type": "input_text", "text": "<|AUDIO|>"}]}}',
        "bad_input",
        "<|AUDIO|>",
    ),
    ('{"type": "session.update", "session": {"instructions": "<|AUDIO|>"}}', "bad_input", ""),
    ('{"type": "session.update", "session": {"instructions": "\\ud800"}}', "invalid_json", ""),
    (f'{{"type": "x", "more": [{"1," * 20_000}1]}}', "request_too_large", "values"),
]


def test_an_event_that_is_wrong_is_told_and_the_conversation_goes_on(served: Any) -> None:
    with served.talk() as talker:
        talker.update(**BRIEF)
        for event, code, words in BAD_EVENTS:
            talker.wire.send(event)
            error = talker.next()
            assert error["type"] == "error", event
            assert error["error"]["code"] == code, error
            assert words in error["error"]["message"]
        talker.wire.send(b"\0\1\2")
        assert talker.next()["error"]["code"] == "invalid_json"
        assert ask(talker, modalities=["text"])[-1]["response"]["status"] == "incomplete"


def test_an_event_that_is_too_large_closes_the_socket(serve: Callable[..., Any]) -> None:
    with serve(max_event_bytes=10_000) as served, served.talk() as talker:
        talker.send("input_audio_buffer.append", audio="A" * 20_000)
        assert talker.closed()[0] == 1009


def test_a_picture_that_is_too_large_is_refused(serve: Callable[..., Any]) -> None:
    with serve(max_frame_bytes=500) as served, served.talk() as talker:
        error = talker.refused("input_image_buffer.append", image=picture(size=(600, 600)))
        assert error["code"] == "request_too_large"


def test_a_turn_that_is_too_long_is_refused_or_ends(serve: Callable[..., Any]) -> None:
    with serve(max_buffer_s=2.0) as served, served.talk() as talker:
        talker.update(**BRIEF)
        talker.say(voice(2.4))
        assert "too_long" in {talker.next()["error"]["code"] for _ in range(2)}
        talker.send("input_audio_buffer.clear")
        talker.until("input_audio_buffer.cleared")
        detection = {"type": "server_vad", "create_response": False}
        talker.update(turn_detection=detection)
        talker.say(voice(3.0))
        events = talker.until("input_audio_buffer.committed")
        assert kinds(events)[:2] == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
        ]


def test_sessions_are_counted_for_each_key_and_for_all(serve: Callable[..., Any]) -> None:
    with serve(max_sessions=2, max_sessions_per_key=1) as served:
        address = served.address.replace("ws:", "http:")
        headers = {"authorization": f"Bearer {KEY}"}
        with served.talk():
            counts = httpx2.get(f"{address}/metrics", headers=headers).text
            assert "qianyan_conversations 1.0" in counts
            with served.talk() as second:
                assert second.created["error"]["code"] == "limit_sessions"
                assert second.closed() == (1013, "limit_sessions")
            with served.talk(key="sk-test-9876543210") as other:
                assert other.created["type"] == "session.created"
        wait_until(lambda: served.app.state.switchboard.num_open == 0)
        with served.talk() as third:
            assert third.created["type"] == "session.created"


@pytest.mark.parametrize("limit", ["max_session_s", "max_idle_s"])
def test_a_session_has_its_time(serve: Callable[..., Any], limit: str) -> None:
    with serve(**{limit: 0.5}) as served, served.talk() as talker:
        assert talker.next()["error"]["code"] == "session_expired"
        assert talker.closed() == (1001, "session_expired")


def test_a_model_that_does_not_hear_refuses_by_an_event(
    serve: Callable[..., Any], engine: Engine
) -> None:
    with serve(engine) as served:
        with served.talk() as talker:
            assert talker.created["error"]["code"] == "unsupported_model"
            assert talker.closed() == (1008, "unsupported_model")
        with served.talk(model="other") as talker:
            assert talker.created["error"]["code"] == "model_not_found"
            assert talker.closed()[0] == 1008


def test_a_model_that_hears_and_does_not_speak_answers_in_text(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_omni_checkpoint(tmp_path)
    mute = Engine(folder, dtype="float32", config=EngineConfig(use_speech=False))
    with serve(mute) as served, served.talk() as talker:
        session = talker.created["session"]
        assert (session["modalities"], session["voices"], session["voice"]) == (["text"], [], None)
        talker.update(**BRIEF)
        events = ask(talker)
        assert "response.text.delta" in kinds(events)
        assert events[-1]["response"]["status"] == "incomplete"
        error = talker.refused("response.create", response={"modalities": ["text", "audio"]})
        assert error["code"] == "unsupported_value"
        assert "does not speak" in error["message"]


def test_without_a_detector_the_client_says_when_a_turn_ends(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with serve() as served, served.talk() as talker:
        assert talker.created["session"]["turn_detection"] is None
        detection = {"turn_detection": {"type": "server_vad"}}
        error = talker.refused("session.update", session=detection)
        assert error["code"] == "missing_extra"
        assert "pip install 'qianyan[vad]'" in error["message"]
        talker.update(**BRIEF, modalities=["text"])
        assert ask(talker)[-1]["response"]["status"] == "incomplete"


def test_a_key_is_asked_for_before_anything_else(served: Any) -> None:
    for headers in ({}, {"authorization": "Bearer sk-wrong-00000000"}):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{served.address}{OPENAI}", additional_headers=headers)
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"


def test_a_browser_sends_its_key_among_the_subprotocols(served: Any) -> None:
    protocols = ["realtime", f"openai-insecure-api-key.{KEY}"]
    with served.talk(key=None, subprotocols=protocols) as talker:
        assert talker.wire.subprotocol == "realtime"
        assert talker.created["type"] == "session.created"
    with pytest.raises(InvalidStatus):
        connect(f"{served.address}{OPENAI}", subprotocols=["realtime", f"{protocols[1]}x"])


def test_without_keys_a_page_of_another_machine_opens_nothing(serve: Callable[..., Any]) -> None:
    with serve(keys=()) as served:
        with served.talk(key=None, origin="http://localhost:3000") as talker:
            assert talker.created["type"] == "session.created"
        for origin in ("https://evil.example", "null", "http://[x"):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"{served.address}{OPENAI}", additional_headers={"origin": origin})
            assert refused.value.response.status_code == 403


def test_answers_are_paid_and_counted_like_requests(serve: Callable[..., Any]) -> None:
    with serve(requests_per_minute=1) as served:
        with served.talk() as talker:
            talker.update(**BRIEF, modalities=["text"])
            ask(talker)
            error = talker.refused("response.create")
            assert error["code"] == "limit_requests"
        headers = {"authorization": f"Bearer {KEY}"}
        address = served.address.replace("ws:", "http:")
        wait_until(
            lambda: (
                'route="/api-ws/v1/realtime",status="101"'
                in httpx2.get(f"{address}/metrics", headers=headers).text
            )
        )
        counts = httpx2.get(f"{address}/metrics", headers=headers).text
        assert 'qianyan_requests_total{model="omni",route="/api-ws/v1/realtime",status="200"}' in (
            counts
        )
        assert 'qianyan_tokens_total{kind="completion",model="omni"} 10.0' in counts


def test_a_client_that_goes_away_in_mid_speech_stops_it(served: Any) -> None:
    worker = served.app.state.serving.worker
    with served.talk() as talker:
        talker.update(**{**BRIEF, "max_response_output_tokens": 300})
        talker.say(voice(1.0))
        talker.send("input_audio_buffer.commit")
        talker.send("response.create")
        talker.until("response.audio_transcript.delta")
        assert worker.num_running == 1
        talker.wire.socket.close()
    wait_until(lambda: worker.num_running == 0 and worker.voices.num_seated == 0)
    with served.talk() as talker:
        talker.update(**BRIEF)
        assert ask(talker)[-1]["response"]["status"] == "incomplete"


def test_a_client_that_takes_nothing_is_left_and_others_are_answered(
    serve: Callable[..., Any],
) -> None:
    """Each of its bad events is answered with a sentence, which piles up."""
    limits = {"max_unsent_bytes": 100_000, "max_unread_bytes": 100_000}
    with (
        serve(**limits) as served,
        served.talk(max_queue=1) as slow,
        served.talk() as other,
    ):
        board = served.app.state.switchboard
        is_over = threading.Event()

        def flood() -> None:
            with suppress(OSError, ConnectionClosed):
                while not is_over.is_set():
                    slow.wire.send('{"type": "x"}')

        flooding = threading.Thread(target=flood)
        flooding.start()
        other.update(**BRIEF, modalities=["text"])
        assert ask(other)[-1]["response"]["status"] == "incomplete"
        wait_until(lambda: board.num_open == 1, seconds=30)
        is_over.set()
        slow.wire.socket.close()
        flooding.join()
        assert ask(other)[-1]["response"]["status"] == "incomplete"


def test_sessions_side_by_side_say_what_they_would_say_alone(served: Any) -> None:
    def hear(seed: int) -> list[str]:
        with served.talk() as talker:
            talker.update(**{**BRIEF, "seed": seed})
            return [one["delta"] for one in ask(talker) if one["type"] == "response.audio.delta"]

    alone = {seed: "".join(hear(seed)) for seed in (1, 2)}
    heard: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: heard.update({seed: "".join(hear(seed))}))
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == alone
    assert alone[1] != alone[2]


def wait_until(is_so: Callable[[], bool], seconds: float = 15) -> None:
    ends_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def test_what_nobody_foresaw_ends_the_answer_and_not_the_conversation(
    served: Any, omni: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with served.talk() as talker:
        talker.update(**BRIEF, modalities=["text"])
        with monkeypatch.context() as patched:
            patched.setattr(omni, "prepare_choices", lambda *_: 1 / 0)
            done = ask(talker)[-1]["response"]
        assert done["status"] == "failed"
        assert done["status_details"]["error"]["code"] == "internal_error"
        assert "division" not in done["status_details"]["error"]["message"]
        assert [one.getMessage() for one in caplog.records if one.levelname == "ERROR"] == [
            "answer failed"
        ]
        assert ask(talker)[-1]["response"]["status"] == "incomplete"


def test_what_nobody_foresaw_elsewhere_closes_the_socket(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Session, "_update", lambda *_: 1 / 0)
    with served.talk() as talker:
        talker.send("session.update", session={})
        assert talker.next()["error"]["code"] == "internal_error"
        assert talker.closed() == (1011, "internal_error")
    assert "conversation failed" in caplog.text


def test_the_model_takes_in_what_is_said_while_it_is_said(served: Any) -> None:
    """When the turn is over its complete blocks are known."""
    worker = served.app.state.serving.worker
    with served.talk() as talker:
        talker.update(**BRIEF, modalities=["text"])
        for seed in range(3):
            talker.say(voice(2.2, seed=seed))
            wait_until(lambda: worker.num_running == 0)
            time.sleep(0.3)
        talker.send("input_audio_buffer.commit")
        talker.send("response.create")
        given = talker.until("response.done")[-1]["response"]["usage"]["input_token_details"]
    assert given["audio_tokens"] == 165
    assert given["cached_tokens"] > 150
