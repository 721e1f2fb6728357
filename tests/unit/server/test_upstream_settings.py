"""What operators say of models at other servers."""

from pathlib import Path

import pytest

from qianyan.errors import ConfigError
from qianyan.server.settings import ServerSettings
from qianyan.server.upstream_settings import UpstreamSettings, read_upstreams

FILE = """
[models.qwen-max]
base_url = "https://dashscope.aliyuncs.com/compatible-mode/v1/"
api_key_env = "THEIR_KEY"

["models"."team/local"]
base_url = "http://10.0.0.5:8000/v1"
model = "Qwen/Qwen3-32B"
timeout_s = 30
max_connections = 8
"""


def test_a_short_form_names_model_and_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIANYAN_UPSTREAM_API_KEY", "sk-theirs")
    first, second = read_upstreams(
        ["a=http://gpu-1:8000/v1/#Qwen/Qwen3-32B", "b=http://gpu-1:8000/v1"]
    )
    assert first == UpstreamSettings(
        name="a", base_url="http://gpu-1:8000/v1", model="Qwen/Qwen3-32B", api_key="sk-theirs"
    )
    assert (second.name, second.model) == ("b", "b")
    assert "sk-theirs" not in repr(first)


def test_a_file_names_keys_by_their_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("THEIR_KEY", "sk-theirs")
    path = tmp_path / "models.toml"
    path.write_text(FILE)
    first, second = read_upstreams([], path)
    assert (first.name, first.model, first.api_key) == ("qwen-max", "qwen-max", "sk-theirs")
    assert first.base_url == "https://dashscope.aliyuncs.com/compatible-mode/v1"
    assert (second.name, second.model, second.api_key) == ("team/local", "Qwen/Qwen3-32B", None)
    assert (second.limits.timeout_s, second.limits.max_connections) == (30, 8)
    assert second.limits.connect_timeout_s == 10.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["http://gpu-1:8000/v1"], "expected NAME=URL"),
        (["=http://gpu-1:8000/v1"], "empty name"),
        (["a=ftp://gpu-1/v1"], "expected a plain address"),
        (["a=http://user:pass@gpu-1/v1"], "without user name"),
        (["a=http://"], "expected a plain address"),
        (["a=http://gpu-1/v1", "a=http://gpu-1/v1"], "Two upstream models"),
        (["a=http://gpu-1/v1", "b=http://gpu-2/v1"], "several servers"),
    ],
)
def test_wrong_short_forms_are_refused(
    monkeypatch: pytest.MonkeyPatch, given: list[str], words: str
) -> None:
    monkeypatch.setenv("QIANYAN_UPSTREAM_API_KEY", "sk-theirs")
    with pytest.raises(ConfigError, match=words):
        read_upstreams(given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = [", "is not TOML"),
        ("port = 1", "other things than models"),
        ("[models.a]\nmodel = 'x'", "has no base_url"),
        ("[models.a]\nbase_url = 'http://x/v1'\napi_key = 'sk-1'", "'api_key' of models"),
        ("[models.a]\nbase_url = 'http://x/v1'\napi_key_env = 'sk-1-2'", "not the key"),
        ("[models.a]\nbase_url = 'http://x/v1'\napi_key_env = 'NOT_SET_HERE'", "is not set"),
        ("[models.a]\nbase_url = 'http://x/v1'\ntimeout_s = -1", "expected a number above 0"),
        ("[models.a]\nbase_url = 'http://x/v1'\nmax_connections = 1.5", "a whole number"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_upstreams([], path)


def test_a_file_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_upstreams([], Path("no-such-file"))


def test_no_name_stands_for_two_models() -> None:
    one = UpstreamSettings(name="judge", base_url="http://gpu-1/v1", model="m")
    with pytest.raises(ConfigError, match="expected different names"):
        ServerSettings(model_names=("judge",), upstreams=(one,))
