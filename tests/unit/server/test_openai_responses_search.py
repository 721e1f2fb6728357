"""Web search as a tool of responses: a model that asks for it, a real provider over HTTP."""

import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from qianyan.engine.engine import Engine
from qianyan.server.search_providers import SearchSettings, open_provider
from qianyan.server.search_results import SearchLimits

HERE = Path(__file__)
SERVER = runpy.run_path(str(HERE.with_name("search_server.py")))
MODEL = runpy.run_path(str(HERE.with_name("searching_model.py")))
fold: Callable[..., dict[str, Any]] = runpy.run_path(str(HERE.with_name("folded_response.py")))[
    "fold"
]
QUESTION: str = MODEL["QUESTION"]
ANSWER: str = MODEL["ANSWER"]
HATS = "https://www.example.com/hats"
LIMITS = SearchLimits(timeout_s=5.0, first_wait_s=0.01)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def provider() -> Iterator[Any]:
    server = SERVER["SearchServer"]()
    yield server
    server.close()


@pytest.fixture(scope="module")
def api(
    serve: Any, provider: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    settings = SearchSettings(provider="searxng", url=provider.url, limits=LIMITS)
    taught = Engine(MODEL["teach"](tmp_path_factory.mktemp("searching"), open_provider(settings)))
    folder = tmp_path_factory.mktemp("state")
    with serve(model=taught, search=settings, state_folder=folder) as client:
        yield client


def post(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    body = {"model": "qwen-plus", "input": QUESTION, "tools": [{"type": "web_search"}]}
    answer = client.post("/v1/responses", json={**body, "max_output_tokens": 60, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    *blocks, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    events = [json.loads(block.split("\ndata: ")[1]) for block in blocks]
    for event in events:
        EVENT.validate_python(event)
    return events


def test_a_search_is_an_item_and_the_answer_names_its_sources(api: Any, provider: Any) -> None:
    provider.asked.clear()
    response = post(api).json()
    assert Response.model_validate(response).output_text == ANSWER
    call, message = response["output"]
    assert (call["type"], call["status"]) == ("web_search_call", "completed")
    assert call["action"]["type"] == "search"
    assert call["action"]["query"] == "hard hats"
    assert call["action"]["queries"] == ["hard hats"]
    assert call["action"]["sources"][0] == {"type": "url", "url": HATS}
    (part,) = message["content"]
    (citation,) = part["annotations"]
    assert (citation["type"], citation["url"]) == ("url_citation", HATS)
    assert part["text"][citation["start_index"] : citation["end_index"]] == "[1]"
    assert [given["q"] for _, given, _ in provider.asked] == ["hard hats"]


def test_a_stream_of_a_search_folds_to_the_same_response(api: Any) -> None:
    whole = post(api).json()
    response = fold(events_of(post(api, stream=True)))

    def told(one: dict[str, Any]) -> Any:
        return [{**item, "id": ""} for item in one["output"]]

    assert told(response) == told(whole)
    place = f"/v1/responses/{response['id']}"
    assert fold(events_of(api.get(place, params={"stream": True}))) == response


def test_a_forced_search_comes_before_the_first_word(api: Any, provider: Any) -> None:
    for choice in ("required", {"type": "web_search"}):
        provider.asked.clear()
        response = post(api, tool_choice=choice).json()
        assert response["tool_choice"] == choice
        assert response["output"][0]["type"] == "web_search_call"
        assert response["output"][0]["action"]["query"] == QUESTION
        assert provider.asked[0][1]["q"] == QUESTION


def test_sites_and_size_are_asked_for(api: Any, provider: Any) -> None:
    provider.asked.clear()
    filters = {"allowed_domains": ["example.com"]}
    tool = {"type": "web_search_preview", "search_context_size": "high", "filters": filters}
    post(api, tools=[tool], tool_choice="required")
    assert "site:example.com" in provider.asked[0][1]["q"]


def test_a_choice_can_leave_searching_out(api: Any, provider: Any) -> None:
    provider.asked.clear()
    response = post(api, tool_choice="none").json()
    assert [item["type"] for item in response["output"]] == ["message"]
    assert provider.asked == []


def test_a_conversation_goes_on_after_a_search(api: Any) -> None:
    first = post(api).json()
    by_id = post(api, tools=[], input="Why?", previous_response_id=first["id"]).json()
    said = [{"role": "user", "content": QUESTION}, *first["output"]]
    by_hand = post(api, tools=[], input=[*said, {"role": "user", "content": "Why?"}]).json()
    assert by_id["usage"]["input_tokens"] == by_hand["usage"]["input_tokens"]


def test_a_search_in_the_background_is_kept_with_its_sources(api: Any) -> None:
    queued = post(api, background=True).json()
    while (found := api.get(f"/v1/responses/{queued['id']}").json())["status"] in (
        "queued",
        "in_progress",
    ):
        pass
    assert [item["type"] for item in found["output"]] == ["web_search_call", "message"]


def test_domains_that_are_none_are_named(api: Any) -> None:
    tool = {"type": "web_search", "filters": {"allowed_domains": ["no host"]}}
    body = {"model": "qwen-plus", "input": QUESTION, "tools": [tool]}
    answer = api.post("/v1/responses", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools.filters.allowed_domains"
