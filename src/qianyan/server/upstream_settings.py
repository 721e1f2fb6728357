"""Models at other servers: what each is called here, where it is, and what it may cost.

Addresses are the operator's own words, so private hosts are as good as others; requests choose
among the names and never an address. Keys come from the environment only.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import httpx2

from qianyan.errors import ConfigError, quote
from qianyan.settings import UPSTREAM_KEY_VARIABLE, read_variable

_KEYS = ("base_url", "model", "api_key_env")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class UpstreamLimits:
    """What is borne of one upstream model.

    Args:
        connect_timeout_s: seconds until the server must have taken a connection.
        timeout_s: seconds that it may be silent, before its answer and within.
        max_connections: requests that it is asked at the same time; others wait in line.
        max_reply_bytes: largest answer that is not streamed.
        max_media_bytes: pictures, videos, sounds and documents of one request together, those that
            were fetched for it.
        longest_retry_after_s: longest wait that is handed on from its Retry-After.
    """

    connect_timeout_s: float = 10.0
    timeout_s: float = 120.0
    max_connections: int = 64
    max_reply_bytes: int = 64_000_000
    max_media_bytes: int = 100_000_000
    longest_retry_after_s: int = 3600

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ConfigError(f"{one.name} is {quote(value)}; expected a number above 0.")
            if one.type is int and not isinstance(value, int):
                raise ConfigError(f"{one.name} is {quote(value)}; expected a whole number.")


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """One model at another server: `name` is what requests call it, `model` its name there."""

    name: str
    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    limits: UpstreamLimits = field(default_factory=UpstreamLimits)

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.model.strip():
            raise ConfigError("An upstream model has an empty name; expected NAME=URL#MODEL.")
        _check_url(self.base_url, self.name)
        key = self.api_key or ""
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"The key of the upstream model {quote(self.name)} holds blanks or letters outside "
                "ASCII; expected the bare key."
            )


def read_upstreams(given: Sequence[str], file: Path | None = None) -> tuple[UpstreamSettings, ...]:
    """Read all models at other servers: NAME=URL#MODEL each, and the tables of a TOML file.

    Raises ConfigError for one that is not in this form, and for two of one name.
    """
    found = _read_short(given, read_variable(UPSTREAM_KEY_VARIABLE)) if given else []
    if file is not None:
        found += _read_file(file)
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two upstream models are called {quote(name)}; expected one.")
    return tuple(found)


def _read_short(given: Sequence[str], key: str | None) -> list[UpstreamSettings]:
    found = []
    for text in given:
        name, equals, place = text.partition("=")
        base_url, _, model = place.partition("#")
        if not equals:
            raise ConfigError(
                f"--upstream is {quote(text)}; expected NAME=URL or NAME=URL#MODEL, such as "
                "qwen-max=http://gpu-1:8000/v1#Qwen/Qwen3-32B."
            )
        name = name.strip()
        found.append(
            UpstreamSettings(
                name=name,
                base_url=base_url.strip().rstrip("/"),
                model=model.strip() or name,
                api_key=key,
            )
        )
    if key and len({httpx2.URL(one.base_url).netloc for one in found}) > 1:
        raise ConfigError(
            f"{UPSTREAM_KEY_VARIABLE} is set and --upstream names several servers, to "
            "all of which it would be sent. Name them in --models-file, each with an api_key_env."
        )
    return found


def _read_file(path: Path) -> list[UpstreamSettings]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--models-file {quote(path)} cannot be read; expected a file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--models-file {quote(path)} is not TOML: {error}.") from error
    models = content.get("models")
    if set(content) != {"models"} or not isinstance(models, dict) or not models:
        raise ConfigError(
            f"--models-file {quote(path)} holds other things than models; expected tables such as "
            '[models.qwen-max] with base_url = "http://host:8000/v1".'
        )
    return [_read_table(name, table) for name, table in models.items()]


def _read_table(name: str, table: Any) -> UpstreamSettings:
    limits = [one.name for one in fields(UpstreamLimits)]
    if not isinstance(table, dict) or not isinstance(table.get("base_url"), str):
        raise ConfigError(
            f"models.{quote(name)} has no base_url; expected a table with the address of an "
            "OpenAI-compatible server."
        )
    unknown = sorted(set(table) - {*_KEYS, *limits})
    if unknown:
        raise ConfigError(
            f"{quote(unknown[0])} of models.{quote(name)} is no setting; known are "
            f"{', '.join([*_KEYS, *limits])}."
        )
    model = table.get("model", name)
    if not isinstance(model, str):
        raise ConfigError(f"model of models.{quote(name)} is no text; expected the name there.")
    return UpstreamSettings(
        name=name,
        base_url=table["base_url"].strip().rstrip("/"),
        model=model,
        api_key=_read_key(name, table.get("api_key_env")),
        limits=UpstreamLimits(**{one: table[one] for one in limits if one in table}),
    )


def _read_key(name: str, variable: Any) -> str | None:
    if variable is None:
        return None
    if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
        raise ConfigError(
            f"api_key_env of models.{quote(name)} is no name of a variable; expected the variable "
            "that holds the key, not the key."
        )
    key = read_variable(variable)
    if not key:
        raise ConfigError(
            f"The environment variable {variable}, which should hold the key of "
            f"models.{quote(name)}, is not set."
        )
    return key


def _check_url(base_url: str, name: str) -> None:
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, ValueError):
        url = httpx2.URL("")
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query:
        raise ConfigError(
            f"The address of the upstream model {quote(name)} is none; expected a plain address "
            "such as http://gpu-1:8000/v1, without user name and query."
        )
