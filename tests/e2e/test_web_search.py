"""Web search from `qianyan serve`, started as its users do, by clients as they come.

The model is a small one that asks for a search by itself; the provider is a real HTTP server.
"""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.served import serving

from qianyan.server.search_providers import SearchSettings, open_provider

UNIT = Path(__file__).parents[1] / "unit" / "server"
SERVER = runpy.run_path(str(UNIT / "search_server.py"))
MODEL = runpy.run_path(str(UNIT / "searching_model.py"))
KEY = "sk-e2e-0123456789"
ASKED: dict[str, Any] = {
    "model": "qwen-plus",
    "messages": [{"role": "user", "content": MODEL["QUESTION"]}],
    "max_tokens": 60,
}


@pytest.fixture(scope="module")
def provider() -> Iterator[Any]:
    server = SERVER["SearchServer"]()
    yield server
    server.close()


@pytest.fixture(scope="module")
def address(provider: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = SearchSettings(provider="searxng", url=provider.url)
    model = MODEL["teach"](tmp_path_factory.mktemp("searching"), open_provider(settings))
    options = ["--model", str(model), "--served-name", "qwen-plus", "--search-provider", "searxng"]
    options += ["--search-url", provider.url]
    keys = {"QIANYAN_API_KEYS": KEY, "QIANYAN_SEARCH_API_KEY": "searxng-behind-a-key"}
    with serving(tmp_path_factory.mktemp("state"), *options, **keys) as (_, address):
        yield address


def test_openai_s_client_is_answered_from_the_web(address: str, provider: Any) -> None:
    provider.asked.clear()
    with OpenAI(base_url=f"{address}/compatible-mode/v1", api_key=KEY) as client:
        create = client.chat.completions.create
        body = {"enable_search": True, "search_options": MODEL["CITED"]}
        answer = create(**ASKED, extra_body=body)
        assert answer.choices[0].message.content == MODEL["ANSWER"]
        assert answer.model_extra is not None
        found = answer.model_extra["search_info"]["search_results"]
        assert found[0]["url"] == "https://www.example.com/hats"
        text = ""
        for chunk in create(**ASKED, stream=True, extra_body=body):
            text += chunk.choices[0].delta.content or ""
        assert text == MODEL["ANSWER"]
    assert {key for _, _, key in provider.asked} == {"Bearer searxng-behind-a-key"}
    assert {given["q"] for _, given, _ in provider.asked} == {"hard hats"}


@pytest.mark.filterwarnings("default")  # the SDK's own are not ours to end tests with
def test_dashscope_s_client_is_answered_from_the_web(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashscope = pytest.importorskip("dashscope", reason="Bailian's SDK is not installed")
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{address}/api/v1")
    how: dict[str, Any] = {"enable_search": True, "search_options": MODEL["CITED"]}
    answer = dashscope.Generation.call(**ASKED, api_key=KEY, **how)
    assert answer.output.text == MODEL["ANSWER"]
    assert answer.output.search_info["search_results"][0]["site_name"] == "example.com"
    assert answer.usage.plugins == {"search": {"count": 1, "strategy": "turbo"}}
