"""Web search on the wire: a model that asks for it, a real provider over HTTP, both dialects."""

import asyncio
import json
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from qianyan.engine.engine import Engine
from qianyan.server.search_providers import SearchSettings, open_provider
from qianyan.server.search_results import SearchLimits

SERVER = runpy.run_path(str(Path(__file__).with_name("search_server.py")))
MODEL = runpy.run_path(str(Path(__file__).with_name("searching_model.py")))
QUESTION: str = MODEL["QUESTION"]
ANSWER: str = MODEL["ANSWER"]
CITED: dict[str, Any] = MODEL["CITED"]
KEY = "sk-test-0123456789"
LIMITS = SearchLimits(timeout_s=5.0, first_wait_s=0.01)
GENERATION = "/api/v1/services/aigc/text-generation/generation"
PLUGINS = {"search": {"count": 1, "strategy": "turbo"}}


@pytest.fixture(scope="module")
def provider() -> Iterator[Any]:
    server = SERVER["SearchServer"]()
    yield server
    server.close()


@pytest.fixture(scope="module")
def settings(provider: Any) -> SearchSettings:
    return SearchSettings(provider="searxng", url=provider.url, limits=LIMITS)


@pytest.fixture(scope="module")
def taught(settings: SearchSettings, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(MODEL["teach"](tmp_path_factory.mktemp("searching"), open_provider(settings)))


@pytest.fixture(scope="module")
def api(
    serve: Any, taught: Engine, settings: SearchSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("state")
    with serve(model=taught, search=settings, state_folder=folder) as client:
        yield client


def chat(client: httpx2.Client, question: str = QUESTION, **fields: Any) -> httpx2.Response:
    body = {
        "model": "qwen-plus",
        "messages": [{"role": "user", "content": question}],
        "enable_search": True,
        "search_options": CITED,
        "max_tokens": 60,
        **fields,
    }
    return client.post("/v1/chat/completions", json=body)


def generate(
    client: httpx2.Client, question: str = QUESTION, *, streams: bool = False, **parameters: Any
) -> httpx2.Response:
    body = {
        "model": "qwen-plus",
        "input": {"messages": [{"role": "user", "content": question}]},
        "parameters": {
            "enable_search": True,
            "search_options": CITED,
            "max_tokens": 60,
            **parameters,
        },
    }
    headers = {"x-dashscope-sse": "enable"} if streams else {}
    return client.post(GENERATION, json=body, headers=headers)


def chunks_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def packets_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    return [
        json.loads(line.removeprefix("data:"))
        for line in answer.text.splitlines()
        if line.startswith("data:")
    ]


def check_sources(info: dict[str, Any]) -> None:
    first, second = info["search_results"]
    assert {"index", "title", "url", "site_name", "icon"} <= set(first)
    assert (first["index"], first["url"]) == (1, "https://www.example.com/hats")
    assert second["index"] == 2


def test_the_answer_names_its_sources_and_hides_the_call(api: Any, provider: Any) -> None:
    provider.asked.clear()
    answer = chat(api).json()
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == ANSWER
    assert choice["message"]["tool_calls"] is None
    assert choice["finish_reason"] == "stop"
    check_sources(answer["search_info"])
    assert [given["q"] for _, given, _ in provider.asked] == ["hard hats"]
    assert answer["usage"]["plugins"] == PLUGINS
    alone = chat(api, enable_search=False).json()
    assert "search_info" not in alone
    assert "plugins" not in alone["usage"]
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 3 * alone["usage"]["prompt_tokens"], "of both turns"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_searches_are_counted(api: Any) -> None:
    series = 'qianyan_searches_total{outcome="good",provider="searxng"} '
    chat(api)
    before, chatted, after = api.get("/metrics").text, chat(api), api.get("/metrics").text
    assert chatted.json()["usage"]["plugins"] == PLUGINS
    counts = [float(text.partition(series)[2].split("\n")[0]) for text in (before, after)]
    assert counts[1] - counts[0] == 1


def test_a_stream_gives_the_sources_alone_and_before_what_cites_them(api: Any) -> None:
    whole = chat(api).json()
    streamed = chunks_of(chat(api, stream=True, stream_options={"include_usage": True}))
    *chunks, last = streamed
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta["content"] or "" for delta in deltas) == ANSWER
    assert all(delta["tool_calls"] is None for delta in deltas)
    (at,) = [place for place, chunk in enumerate(chunks) if "search_info" in chunk]
    check_sources(chunks[at]["search_info"])
    assert deltas[at]["content"] == ""
    assert all(not delta["content"] for delta in deltas[:at])
    cached = ("prompt_tokens_details",)
    assert {k: v for k, v in last["usage"].items() if k not in cached} == {
        k: v for k, v in whole["usage"].items() if k not in cached
    }


def test_dashscope_gives_sources_where_they_are_asked_for(api: Any) -> None:
    answer = generate(api, result_format="message").json()
    (choice,) = answer["output"]["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER}
    assert choice["finish_reason"] == "stop"
    check_sources(answer["output"]["search_info"])
    assert answer["usage"]["plugins"] == PLUGINS
    text = generate(api).json()["output"]
    assert text["text"] == ANSWER
    check_sources(text["search_info"])
    # What the model reads is no longer what it knows by heart, but it is asked the same way.
    quiet = generate(api, search_options={"forced_search": True}).json()
    assert "search_info" not in quiet["output"]
    assert quiet["usage"]["plugins"] == PLUGINS
    direct = generate(
        api, search_options={"forced_search": True, "enable_search_extension": True}
    ).json()["output"]["search_info"]
    assert direct["search_results"] == []
    assert direct["extra_tool_info"][0] == {"result": "21 °C", "tool": "searxng answer"}


def test_dashscope_s_packets_have_the_sources_once_or_always(api: Any) -> None:
    pieces = packets_of(generate(api, streams=True, incremental_output=True))
    assert "".join(one["output"]["text"] for one in pieces) == ANSWER
    told = [one["output"].get("search_info", {}).get("search_results") for one in pieces]
    at = next(place for place, sources in enumerate(told) if sources)
    check_sources(pieces[at]["output"]["search_info"])
    assert all(sources == [] for sources in told[at + 1 :])
    assert "".join(one["output"]["text"] for one in pieces[:at]) == ""
    sizes = [one["usage"]["input_tokens"] for one in pieces]
    whole = generate(api).json()["usage"]
    assert sizes[-1] == max(sizes) == whole["input_tokens"]
    assert pieces[-1]["usage"]["output_tokens"] == whole["output_tokens"]
    growing = packets_of(generate(api, streams=True, incremental_output=False))
    assert growing[-1]["output"]["text"] == ANSWER
    check_sources(growing[-1]["output"]["search_info"])


@pytest.mark.parametrize("is_incremental", [True, False])
def test_dashscope_puts_the_sources_first_where_that_is_asked_for(
    api: Any, is_incremental: bool
) -> None:
    options = {**CITED, "forced_search": True, "prepend_search_result": True}
    how = {"incremental_output": is_incremental, "result_format": "message", "max_tokens": 4}
    first, *others = packets_of(generate(api, streams=True, search_options=options, **how))
    assert first["usage"] == {}
    assert first["output"]["choices"][0]["message"]["content"] == ""
    assert first["output"]["choices"][0]["finish_reason"] == "null"
    check_sources(first["output"]["search_info"])
    assert others
    for other in others:
        sources = other["output"]["search_info"]["search_results"]
        assert sources == ([] if is_incremental else first["output"]["search_info"]
                           ["search_results"])  # fmt: skip
    assert sum(not one["usage"] for one in (first, *others)) == 1


def test_a_forced_search_comes_before_the_first_word(api: Any, provider: Any) -> None:
    provider.asked.clear()
    options = {"forced_search": True, "assigned_site_list": ["example.com"], "freshness": 7}
    chunks = chunks_of(chat(api, "safety news", search_options=options, stream=True, max_tokens=3))
    assert [given["q"] for _, given, _ in provider.asked] == ["safety news (site:example.com)"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    (source,) = chunks[1]["search_info"]["search_results"]
    assert source["site_name"] == "example.com"


@pytest.mark.parametrize("streams", [False, True])
def test_a_forced_search_that_fails_is_an_error_in_the_dialect_s_words(
    api: Any, streams: bool
) -> None:
    forced = {"forced_search": True}
    answer = chat(api, "down", search_options=forced, stream=streams)
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("search_failed", "server_error")
    assert "searxng" in error["message"]
    answer = generate(api, "down", streams=streams, search_options=forced)
    assert answer.status_code == 502
    assert set(answer.json()) == {"code", "message", "request_id"}
    assert "searxng" in answer.json()["message"]


def test_a_provider_that_is_gone_leaves_an_answer_that_says_so(
    serve: Any, taught: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    gone = SERVER["SearchServer"]()
    gone.close()
    search = SearchSettings(provider="searxng", url=gone.url, limits=LIMITS)
    with serve(model=taught, search=search) as client:
        answer = chat(client).json()
        assert "choices" in answer, answer
        assert "cannot be reached" in answer["search_info"]["errors"][0]
        assert answer["search_info"]["search_results"] == []
        output = generate(client, search_options={}).json()["output"]
        assert "cannot be reached" in output["search_info"]["errors"][0]
        chunks = chunks_of(chat(client, stream=True))
        (told,) = [chunk["search_info"] for chunk in chunks if "search_info" in chunk]
        assert told == answer["search_info"]
        assert 'qianyan_searches_total{outcome="failed",provider="searxng"} 3.0' in (
            client.get("/metrics").text
        )
    logged = [one.getMessage() for one in caplog.records if "a search failed" in one.getMessage()]
    assert len(logged) >= 3, "who runs the server is told"
    assert not any("hats" in line for line in logged), "and not what was searched for"


TALLY = {
    "type": "function",
    "function": {
        "name": "tally",
        "parameters": {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}


def test_the_client_s_own_functions_are_called_beside_a_search(api: Any) -> None:
    named = {"type": "function", "function": {"name": "tally"}}
    how: dict[str, Any] = {"tools": [TALLY], "tool_choice": named, "parallel_tool_calls": False}
    (choice,) = chat(api, **how).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "tally"
    assert choice["finish_reason"] == "tool_calls"
    chunks = chunks_of(chat(api, stream=True, **how))
    pieces = [
        piece for chunk in chunks for piece in chunk["choices"][0]["delta"]["tool_calls"] or ()
    ]
    assert next(piece.get("function", {}).get("name") for piece in pieces) == "tally"
    assert sum("id" in piece for piece in pieces) == 1
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    assert arguments == call["function"]["arguments"]
    packets = packets_of(generate(api, streams=True, incremental_output=True, **how))
    messages = [one["output"]["choices"][0]["message"] for one in packets]
    told = [call for message in messages for call in message.get("tool_calls", ())]
    assert "".join(one["function"]["arguments"] for one in told) == arguments
    assert next(one["function"].get("name") for one in told) == "tally"


def test_a_client_can_tell_that_nothing_was_searched(api: Any) -> None:
    """The model asks for a search of its own accord only where it learnt to."""
    answer = chat(api, "hello", max_tokens=2).json()
    assert "search_info" not in answer
    assert answer["usage"]["plugins"] == {"search": {"count": 0, "strategy": "turbo"}}
    output = generate(api, "hello", max_tokens=2).json()
    assert "search_info" not in output["output"]
    assert output["usage"]["plugins"]["search"]["count"] == 0


def test_a_form_is_kept_after_a_forced_search(api: Any) -> None:
    form = {"type": "json_object"}
    answer = chat(api, search_options={"forced_search": True}, response_format=form, max_tokens=200)
    text = answer.json()["choices"][0]["message"]["content"]
    assert text.startswith("{")
    assert answer.json()["search_info"]["search_results"]


def test_tasks_and_batches_search_too(api: Any) -> None:
    body = json.loads(generate(api).request.content)
    task = api.post(GENERATION, json=body, headers={"x-dashscope-async": "enable"}).json()
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = json.loads(chat(api).request.content)
    file = api.post(
        "/v1/files", files={"file": ("in.jsonl", json.dumps(line))}, data={"purpose": "batch"}
    ).json()
    asked = {"input_file_id": file["id"], "endpoint": line["url"], "completion_window": "24h"}
    batch = api.post("/v1/batches", json=asked).json()
    end = time.monotonic() + 30
    while batch.get("output_file_id") is None or "text" not in task["output"]:
        assert time.monotonic() < end, (task, batch)
        time.sleep(0.05)
        task = api.get(f"/api/v1/tasks/{task['output']['task_id']}").json()
        batch = api.get(f"/v1/batches/{batch['id']}").json()
    assert task["output"]["text"] == ANSWER
    check_sources(task["output"]["search_info"])
    written = api.get(f"/v1/files/{batch['output_file_id']}/content").json()
    check_sources(written["response"]["body"]["search_info"])


OWN_SEARCH = [{"type": "function", "function": {"name": "web_search"}}]
PICTURE_ONLY = [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 2}, "n is 2; expected 1"),
        ({"search_options": {"freshness": 8}}, "freshness is '8'"),
        ({"search_options": {"search_strategy": "best"}}, "search_strategy"),
        ({"search_options": {"assigned_site_list": ["a b"]}}, "host names"),
        ({"search_options": {"page": 2}}, "search_options has 'page'"),
        ({"search_options": {"page": 2}, "enable_search": False}, "search_options has 'page'"),
        ({"search_options": []}, "search_options"),
        ({"tools": OWN_SEARCH}, "function called web_search"),
        ({"messages": PICTURE_ONLY}, "nothing to search for"),
    ],
)
def test_what_cannot_be_searched_is_refused(api: Any, fields: dict[str, Any], words: str) -> None:
    answer = chat(api, **fields)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_without_a_provider_searching_is_refused(client: httpx2.Client) -> None:
    for answer in (chat(client), generate(client)):
        assert answer.status_code == 400
        assert "--search-provider" in answer.text


def test_a_client_that_goes_away_during_a_search_leaves_nothing_behind(api: Any) -> None:
    body = {
        "model": "qwen-plus",
        "messages": [{"role": "user", "content": "slow"}],
        "enable_search": True,
        "search_options": {"forced_search": True},
    }
    with pytest.raises(httpx2.ReadTimeout):
        api.post("/v1/chat/completions", json=body, timeout=0.2)
    app: FastAPI = api.app
    worker = app.state.serving.worker
    end = time.monotonic() + 30
    while worker.num_running or worker.num_waiting:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert chat(api).json()["choices"][0]["message"]["content"] == ANSWER


def test_openai_s_client_gets_the_answer_and_the_sources(api: Any) -> None:
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    asked: dict[str, Any] = {
        "model": "qwen-plus",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 60,
        "extra_body": {"enable_search": True, "search_options": CITED},
    }

    async def ask_many() -> None:
        async with openai.AsyncOpenAI(base_url=f"{api.base_url}/v1", api_key=KEY) as client:
            one = client.chat.completions.create
            for answer in await asyncio.gather(*(one(**asked) for _ in range(5))):
                assert answer.choices[0].message.content == ANSWER
                check_sources(answer.model_extra["search_info"])
            text, sources = "", []
            async for chunk in await one(stream=True, **asked):
                text += chunk.choices[0].delta.content or ""
                sources += [chunk.search_info] if hasattr(chunk, "search_info") else []
            assert text == ANSWER
            (info,) = sources
            check_sources(info)

    asyncio.run(ask_many())


@pytest.mark.filterwarnings("default")  # the SDK's own are not ours to end tests with
def test_dashscope_s_client_gets_the_answer_and_the_sources(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashscope = pytest.importorskip("dashscope", reason="Bailian's SDK is not installed")
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{api.base_url}/api/v1")
    how: dict[str, Any] = {
        "messages": [{"role": "user", "content": QUESTION}],
        "api_key": KEY,
        "enable_search": True,
        "search_options": CITED,
        "max_tokens": 60,
        "result_format": "message",
    }
    answer = dashscope.Generation.call("qwen-plus", **how)
    assert answer.output.choices[0].message.content == ANSWER
    check_sources(answer.output.search_info)
    packets = list(
        dashscope.Generation.call("qwen-plus", stream=True, incremental_output=True, **how)
    )
    assert "".join(one.output.choices[0].message.content for one in packets) == ANSWER
    told = [one.output.search_info for one in packets if "search_info" in one.output]
    (info,) = [one for one in told if one["search_results"]]
    check_sources(info)
