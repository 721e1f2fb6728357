"""Every path needs a key but two, and every refusal has its dialect's body."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qianyan.errors import ConfigError
from qianyan.server.auth import OPEN_PATHS
from qianyan.server.keys import hash_key
from qianyan.server.settings import ServerSettings


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_needs_no_key(client: httpx2.Client, path: str) -> None:
    assert client.get(path, headers={"authorization": ""}).status_code == 200
    assert client.head(path, headers={"authorization": ""}).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer sk-test-012345678", "Basic sk-test-0123456789"]
)
@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/v1/models", "/nothing", "//ready"])
def test_everything_else_needs_a_right_key(client: httpx2.Client, path: str, header: str) -> None:
    answer = client.get(path, headers={"authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_every_route_needs_a_key_but_those_that_the_docs_name(client: Any) -> None:
    """Walks over all that the app answers; a new route is behind the key unless it is named."""
    paths: dict[str, Any] = client.app.openapi()["paths"]
    walked = {
        (method.upper(), re.sub(r"\{\w+\}", "x", path))
        for path, item in paths.items()
        for method in item
        if method in {"get", "post", "put", "patch", "delete"}
    }
    walked |= {("GET", getattr(route, "path", "/")) for route in client.app.routes}
    walked |= {("GET", path) for path in OPEN_PATHS}
    assert len(walked) > 15
    open_ones = set()
    for method, path in walked:
        status = client.request(method, path, headers={"authorization": ""}).status_code
        if status != 401:
            open_ones.add(path)
    assert open_ones == OPEN_PATHS
    docs = (Path(__file__).parents[3] / "docs" / "security.md").read_text("utf-8")
    for path in OPEN_PATHS:
        assert f"`{path}`" in docs


def test_a_websocket_is_no_way_round_the_key(client: Any) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    key = {"sec-websocket-key": "x3JJHMbDL1EzLkh9GBhXDw==", "authorization": ""}
    assert client.get("/v1/models", headers={**headers, **key}).status_code == 401


def test_the_hash_of_a_key_opens_nothing(client: Any) -> None:
    digest = hash_key("sk-test-0123456789")
    for given in (digest, f"sha256:{digest}"):
        answer = client.get("/v1/models", headers={"authorization": f"Bearer {given}"})
        assert answer.status_code == 401


def test_a_key_may_be_set_as_its_hash(serve: Callable[..., Any]) -> None:
    with serve(api_keys=(f"sha256:{hash_key('sk-test-0123456789')}",)) as client:
        assert client.get("/v1/models").status_code == 200


def test_each_of_several_keys_opens(client: httpx2.Client) -> None:
    for key in ("sk-test-0123456789", "sk-test-9876543210"):
        headers = {"authorization": f"bearer {key}"}
        assert client.get("/metrics", headers=headers).status_code == 200


def test_every_response_has_an_id_and_a_harmless_one_of_the_caller_is_kept(
    client: httpx2.Client,
) -> None:
    ids = {client.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    for given, is_kept in (("trace-1:2.3", True), ("a b", False), ("x" * 65, False)):
        got = client.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
        assert (got == given) is is_kept


def test_without_keys_only_the_machine_s_own_names_are_answered(
    serve: Callable[..., Any],
) -> None:
    """A page that makes its own name lead to 127.0.0.1 gets nothing (DNS rebinding)."""
    with serve(api_keys=()) as client:
        assert client.get("/metrics").status_code == 200
        refused = client.get("/metrics", headers={"host": "evil.example:8000"})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "access_denied"


def test_a_server_that_others_can_reach_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="expected an API key"):
        ServerSettings(model_names=("m",), host="0.0.0.0")  # noqa: S104
    assert ServerSettings(model_names=("m",), host="::1").is_loopback


@pytest.mark.parametrize(
    "key",
    ["", "short", "with blank 123", "schlüssel-0123", "tab\t0123456", "sha256:0123456789abcdef"],
)
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="API key"):
        ServerSettings(model_names=("m",), api_keys=(key,))


def test_a_key_that_is_missing_is_told_from_a_wrong_one(client: httpx2.Client) -> None:
    with httpx2.Client(base_url=client.base_url) as stranger:
        missing = stranger.get("/v1/models").json()["error"]["message"]
    wrong = client.get("/v1/models", headers={"authorization": "Bearer sk-other-key"})
    assert missing.startswith("No API key was provided; expected the header Authorization: Bearer")
    assert wrong.json()["error"]["message"].startswith("Incorrect API key provided; expected the")
