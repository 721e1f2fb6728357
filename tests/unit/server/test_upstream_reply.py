"""Whatever an upstream server sends, what leaves is in OpenAI's one form."""

import json
from contextlib import suppress
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.server.errors import RefusedError
from qianyan.server.metrics import Metrics
from qianyan.server.settings import ServerLimits
from qianyan.server.stream import to_json
from qianyan.server.upstream import Upstream
from qianyan.server.upstream_reply import REASONS, UpstreamReply
from qianyan.server.upstream_settings import UpstreamSettings

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab\ud800", max_size=3),
    lambda one: st.lists(one, max_size=2) | st.dictionaries(st.text("ab", max_size=2), one),
    max_leaves=4,
)


def sometimes(wanted: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(wanted, wanted, wanted, ANY)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


FUNCTION = some(name=sometimes(st.sampled_from(["look", "find"])), arguments=sometimes(st.text()))
CALL = some(
    index=sometimes(st.integers(0, 2)),
    id=sometimes(st.sampled_from(["c1", "c2", ""])),
    function=sometimes(FUNCTION),
)
SAID = some(
    role=ANY,
    content=sometimes(st.text(max_size=4)),
    reasoning=sometimes(st.text(max_size=4)),
    reasoning_content=sometimes(st.text(max_size=4)),
    tool_calls=sometimes(st.lists(sometimes(CALL), max_size=3)),
)
USAGE = some(
    prompt_tokens=sometimes(st.integers(0, 9)),
    completion_tokens=sometimes(st.integers(0, 9)),
    prompt_tokens_details=sometimes(some(cached_tokens=sometimes(st.integers(0, 9)))),
)
CHOICE = some(
    index=sometimes(st.integers(0, 2)),
    delta=sometimes(SAID),
    message=sometimes(SAID),
    finish_reason=sometimes(st.sampled_from([None, None, "stop", "tool_calls", "abort", "null"])),
)
CHUNK = some(choices=sometimes(st.lists(sometimes(CHOICE), max_size=2)), usage=sometimes(USAGE))


@cache
def upstream() -> Upstream:
    named = UpstreamSettings(name="far", base_url="http://gpu-1:8000/v1", model="m")
    limits = ServerLimits()
    return Upstream(named, limits, Metrics(limits))


def reply_for(num_choices: int) -> UpstreamReply:
    return UpstreamReply(upstream(), num_choices=num_choices)


@given(st.lists(CHUNK, max_size=6), st.integers(1, 2))
@settings(deadline=None)
def test_every_stream_comes_out_in_order(chunks: list[dict[str, Any]], num_choices: int) -> None:
    reply = reply_for(num_choices)
    written = list(reply.open())
    with suppress(RefusedError):
        for chunk in chunks:
            for one in reply.take(chunk):
                written.append(one)  # noqa: PERF402  (what came before a refusal counts)
    written += reply.finish()
    assert len({(one["id"], one["created"], one["model"]) for one in written}) == 1
    for index in range(num_choices):
        own = [one["choices"][0] for one in written if one["choices"][0]["index"] == index]
        assert [one["delta"]["role"] for one in own] == ["assistant"] + [None] * (len(own) - 1)
        reasons = [one["finish_reason"] for one in own]
        assert reasons[:-1] == [None] * (len(own) - 1)
        assert reasons[-1] in REASONS
        check_calls([call for one in own for call in one["delta"]["tool_calls"] or ()])
    for one in [*written, reply.usage_chunk()]:
        json.loads(to_json(one).encode())
    counts = reply.usage_chunk()["usage"]
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]


def check_calls(pieces: list[dict[str, Any]]) -> None:
    """Each call begins once, with id and name, in order, and is not named again."""
    begun = 0
    for piece in pieces:
        if "id" in piece:
            assert piece["index"] == begun
            assert piece["id"]
            assert piece["function"]["name"]
            begun += 1
        else:
            assert piece["index"] < begun
            assert set(piece["function"]) == {"arguments"}


WHOLE = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"message": SAID, "finish_reason": ANY}), min_size=1
        )
    }
)


@given(WHOLE | CHUNK)
@settings(deadline=None)
def test_every_whole_answer_is_one_or_is_refused(data: dict[str, Any]) -> None:
    with suppress(RefusedError):
        whole = reply_for(1).whole(data)
        json.loads(to_json(whole).encode())
        for index, choice in enumerate(whole["choices"]):
            assert choice["index"] == index
            assert choice["finish_reason"] in REASONS
            assert choice["message"]["role"] == "assistant"
            for call in choice["message"]["tool_calls"] or ():
                assert call["id"]
                assert isinstance(call["function"]["name"], str)
