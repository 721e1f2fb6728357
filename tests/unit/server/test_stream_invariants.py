"""What holds of every stream, whatever was asked: OpenAI's chunks and DashScope's packets.

Hypothesis chooses questions and options; the server is a real one over TCP with the bundled judge.
"""

import json
from typing import Any

import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ASKS = st.fixed_dictionaries(
    {
        "question": st.sampled_from(["hello", "Is it burning?", "列出所有隐患", "1 2 3 4"]),
        "n": st.integers(1, 3),
        "max_tokens": st.integers(1, 24),
        "temperature": st.sampled_from([0, 0.7, 1.5]),
        "stop": st.sampled_from([None, "e", ["answer", "s of"]]),
        "logprobs": st.booleans(),
        "includes_usage": st.booleans(),
        "form": st.sampled_from([None, {"type": "json_object"}]),
    }
)
# The server outlives the examples; how long one takes is the machine's affair.
ON_ONE_SERVER = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def options_of(ask: dict[str, Any]) -> dict[str, Any]:
    """The options that both dialects have; a seed, so that whole and streamed draw the same."""
    names = ("n", "max_tokens", "temperature", "stop", "logprobs")
    options = {name: ask[name] for name in names if ask[name] is not None}
    return {**options, "seed": 5, **({"response_format": ask["form"]} if ask["form"] else {})}


@ON_ONE_SERVER
@given(ask=ASKS)
def test_chunks_agree_among_themselves_and_with_the_whole_answer(
    client: httpx2.Client, ask: dict[str, Any]
) -> None:
    body = {
        "model": "judge",
        "messages": [{"role": "user", "content": ask["question"]}],
        **options_of(ask),
    }
    whole = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    streaming = {"stream": True, "stream_options": {"include_usage": ask["includes_usage"]}}
    sent = client.post("/v1/chat/completions", json={**body, **streaming}).raise_for_status()
    *events, done, end = sent.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len({(one["id"], one["created"], one["model"], one["object"]) for one in chunks}) == 1
    if ask["includes_usage"]:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(one["usage"] is None and len(one["choices"]) == 1 for one in chunks)
    choices = [one["choices"][0] for one in chunks]
    for index in range(ask["n"]):
        mine = [one for one in choices if one["index"] == index]
        assert [one["delta"]["role"] for one in mine] == ["assistant"] + [None] * (len(mine) - 1)
        reasons = [one["finish_reason"] for one in mine]
        assert reasons[:-1] == [None] * (len(mine) - 1)
        assert reasons[-1] == whole["choices"][index]["finish_reason"]
        text = "".join(one["delta"]["content"] or "" for one in mine)
        assert text == whole["choices"][index]["message"]["content"]
        if ask["logprobs"]:
            told = [one["logprobs"]["content"] for one in mine if one["logprobs"]]
            tokens = [entry["token"] for entries in told for entry in entries]
            final = whole["choices"][index]["logprobs"]["content"]
            assert tokens == [entry["token"] for entry in final]


@ON_ONE_SERVER
@given(ask=ASKS, has_parts=st.booleans(), is_incremental=st.booleans())
def test_packets_are_numbered_count_upwards_and_agree_with_the_whole_answer(
    client: httpx2.Client, ask: dict[str, Any], has_parts: bool, is_incremental: bool
) -> None:
    path = "multimodal" if has_parts else "text"
    url = f"/api/v1/services/aigc/{path}-generation/generation"
    question = [{"text": ask["question"]}] if has_parts else ask["question"]
    body = {
        "model": "judge",
        "input": {"messages": [{"role": "user", "content": question}]},
        "parameters": {
            **options_of(ask), "result_format": "message", "incremental_output": is_incremental,
        },
    }  # fmt: skip
    whole = client.post(url, json=body).raise_for_status().json()
    headers = {"x-dashscope-sse": "enable"}
    sent = client.post(url, json=body, headers=headers).raise_for_status()
    *packets, end = sent.text.split("\n\n")
    assert end == ""
    lines = [packet.split("\n") for packet in packets]
    assert [one[:3] for one in lines] == [
        [f"id:{number + 1}", "event:result", ":HTTP_STATUS/200"] for number in range(len(lines))
    ]
    assert all(one[3].startswith("data:{") and len(one) == 4 for one in lines)
    data = [json.loads(one[3].removeprefix("data:")) for one in lines]
    assert len({one["request_id"] for one in data}) == 1
    counts = [one["usage"]["output_tokens"] for one in data]
    assert counts == sorted(counts)
    assert counts[-1] == whole["usage"]["output_tokens"]
    choices = [choice for one in data for choice in one["output"]["choices"]]
    for index in range(ask["n"]):
        mine = [one for one in choices if one["index"] == index]
        reasons = [one["finish_reason"] for one in mine]
        final = next(one for one in whole["output"]["choices"] if one["index"] == index)
        assert reasons == ["null"] * (len(mine) - 1) + [final["finish_reason"]]
        texts = [to_text(one["message"]["content"]) for one in mine]
        assert ("".join(texts) if is_incremental else texts[-1]) == to_text(
            final["message"]["content"]
        )


def to_text(content: Any) -> str:
    """Join content, which is a list of parts on the multimodal path."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
