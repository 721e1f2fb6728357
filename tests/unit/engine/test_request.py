"""Text as it becomes certain: characters across tokens, stop strings across tokens."""

import codecs
from dataclasses import dataclass, field

import pytest

from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request, Sampled

STOP_TOKEN = 300


@dataclass
class ByteDecoder:
    """A tokenizer whose tokens are bytes."""

    _utf8: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def push(self, token_id: int) -> str:
        return self._utf8.decode(bytes([token_id]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def reply_to(data: bytes, *stop: str) -> tuple[list[str], Reply]:
    """Push bytes one by one; return the pieces and the reply."""
    reply = Reply(ByteDecoder(), stop)
    pieces = []
    for byte in data:
        pieces.append(reply.push(byte))
        if reply.is_stopped:
            break
    pieces.append(reply.finish())
    assert "".join(pieces) == reply.text
    return pieces, reply


def test_a_character_of_several_tokens_appears_with_its_last() -> None:
    pieces, reply = reply_to("火!".encode())
    assert pieces == ["", "", "火", "!", ""]
    assert not reply.is_stopped


def test_a_character_cut_in_half_shows_as_such_at_the_end() -> None:
    pieces, _ = reply_to("a火".encode()[:-1])
    assert pieces == ["a", "", "", "�"]


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    pieces, reply = reply_to(b"yes</s>more", "</s>")
    assert pieces == ["y", "e", "s", "", "", "", "", ""]
    assert reply.is_stopped


def test_text_that_only_looked_like_a_stop_string_is_shown_after_all() -> None:
    pieces, reply = reply_to(b"a<b</t", "</s>")
    assert pieces == ["a", "", "<b", "", "", "</t", ""]
    assert reply.text == "a<b</t"


def test_a_stop_string_that_never_completes_is_shown_at_the_end() -> None:
    pieces, reply = reply_to(b"a</", "</s>")
    assert pieces == ["a", "", "", "</"]
    assert reply.text == "a</"


def test_the_earliest_of_several_stop_strings_cuts() -> None:
    _, reply = reply_to(b"one two three", "three", "wo", "two t")
    assert reply.text == "one t"


def test_overlapping_beginnings_hold_back_the_longest() -> None:
    _, reply = reply_to(b"aab", "aab")
    assert reply.text == ""
    _, reply = reply_to(b"aaab", "aab")
    assert reply.text == "a"


def make_request(**how: object) -> Request:
    sampling = Sampling(**{"max_tokens": 5, "stop_token_ids": frozenset({STOP_TOKEN}), **how})  # type: ignore[arg-type]
    return Request(1, [10, 11], sampling, Reply(ByteDecoder(), sampling.stop))


def draw(request: Request, *token_ids: int) -> None:
    for token_id in token_ids:
        assert not request.is_finished
        request.append_sampled(Sampled(token_id=token_id))


def test_a_request_ends_at_its_length() -> None:
    request = make_request()
    draw(request, *b"fires")
    assert request.finish_reason == "length"
    assert request.completion().text == "fires"
    assert request.completion().usage.completion_tokens == 5


def test_a_request_ends_at_a_stop_token_and_keeps_it_out_of_the_text() -> None:
    request = make_request()
    draw(request, *b"fi", STOP_TOKEN)
    done = request.completion()
    assert (done.text, done.finish_reason) == ("fi", "stop")
    assert done.token_ids == [*b"fi", STOP_TOKEN]


def test_a_request_ends_at_a_stop_string() -> None:
    request = make_request(stop=("re",))
    draw(request, *b"fire")
    done = request.completion()
    assert (done.text, done.finish_reason) == ("fi", "stop")


@pytest.mark.parametrize("stop", [(), ("e!",), ("zz",), ("fir",)])
def test_events_join_to_the_text(stop: tuple[str, ...]) -> None:
    request = make_request(stop=stop, max_tokens=9)
    for token_id in [*"fé火!".encode(), STOP_TOKEN]:
        request.append_sampled(Sampled(token_id=token_id))
    assert "".join(event.text for event in request.events) == request.completion().text


def test_tokens_of_prompt_and_output_are_one_sequence() -> None:
    request = make_request()
    draw(request, 20, 21, 22)
    assert request.num_tokens == 5
    whole = [10, 11, 20, 21, 22]
    for start in range(6):
        for stop in range(start, 6):
            assert request.token_ids(start, stop) == whole[start:stop]
