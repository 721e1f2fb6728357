"""The options of `serve`, in groups: who may ask, how much, what is searched, kept and logged."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qianyan.cli.options import (
    AllowHost,
    Device,
    DtypeOption,
    FetchTimeout,
    MaxPixels,
    QuantizeOption,
    option,
)
from qianyan.errors import ConfigError
from qianyan.settings import variable_name

if TYPE_CHECKING:
    from qianyan.server.search_providers import SearchSettings
    from qianyan.server.settings import KeepingLimits, ServerLimits
    from qianyan.server.upstream_settings import UpstreamSettings


def secret(name: str, text: str, variable: str = "") -> Any:
    """Declare an option that is better set as a variable, which other users cannot read."""
    variable = variable or variable_name(name)
    return typer.Option(name, help=text.format(variable), envvar=variable, show_envvar=False)


@dataclass(frozen=True, kw_only=True)
class KeyOptions:
    """Which keys open the server."""

    api_keys: Annotated[
        list[str] | None,
        secret("--api-key", "a key that opens the server; can be repeated. Better set as {} (with "
               "blanks between several) or in --api-keys-file: command lines can be read by others",
               "QIANYAN_API_KEYS"),
    ] = None  # fmt: skip
    api_keys_file: Annotated[
        Path | None,
        option("--api-keys-file", "file of keys that open the server, one a line, each as it is or "
               "as sha256: and its hash"),
    ] = None  # fmt: skip
    no_auth: Annotated[
        bool,
        option("--no-auth", "let every program on this machine ask without a key; on loopback "
               "only"),
    ] = False  # fmt: skip

    def given(self) -> tuple[str, ...]:
        """Give the keys of the command line and of the file; none are to be made with --no-auth."""
        from qianyan.server.keys import read_keys

        in_file = read_keys(self.api_keys_file) if self.api_keys_file else ()
        given = (*(self.api_keys or ()), *in_file)
        if given and self.no_auth:
            raise ConfigError("--no-auth and API keys are given; expected only one of them.")
        return given


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """How much may be asked, and how long it may take."""

    max_waiting: Annotated[
        int, option("--max-waiting", "requests that may wait; one more is answered with 429", min=0)
    ] = 256
    max_wait: Annotated[
        float, option("--max-wait", "seconds until a request must have begun, else 503", min=1)
    ] = 60.0
    max_answer: Annotated[
        float, option("--max-answer", "seconds after which an answer is cut short", min=1)
    ] = 300.0
    max_open_per_key: Annotated[
        int,
        option("--max-open-per-key", "requests of one key that wait or run; 0: no limit", min=0),
    ] = 0
    requests_per_minute: Annotated[
        int, option("--requests-per-minute", "requests of one key; 0: no limit", min=0)
    ] = 0
    tokens_per_minute: Annotated[
        int, option("--tokens-per-minute", "tokens of one key, both ways; 0: no limit", min=0)
    ] = 0
    thinking_budget: Annotated[
        int,
        option("--thinking-budget", "tokens that a model may think where a request says nothing of "
               "it", min=1),
    ] = 16_384  # fmt: skip
    drain: Annotated[
        int, option("--drain", "seconds that running answers have after a signal to stop", min=0)
    ] = 30

    def limits(self) -> "ServerLimits":
        """Give them as the server takes them."""
        from qianyan.server.settings import ServerLimits

        return ServerLimits(
            max_waiting=self.max_waiting,
            max_wait_s=self.max_wait,
            max_answer_s=self.max_answer,
            max_open_per_key=self.max_open_per_key,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            thinking_budget=self.thinking_budget,
            drain_s=self.drain,
        )


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Who searches the web."""

    search_provider: Annotated[
        Literal["searxng", "tavily", "ddgs"] | None,
        option("--search-provider", "who searches the web for requests with enable_search; none: "
               "nobody"),
    ] = None  # fmt: skip
    search_url: Annotated[
        str | None,
        option("--search-url", "address of the SearXNG server, or of one that speaks Tavily's API"),
    ] = None
    search_api_key: Annotated[
        str | None,
        secret("--search-api-key", "key of the search provider. Better set as {}: command lines "
               "can be read by others"),
    ] = None  # fmt: skip

    def settings(self) -> "SearchSettings | None":
        """Read who searches; what is missing is told before the model is loaded."""
        from qianyan.server.search_providers import SearchSettings, open_provider

        if self.search_provider is None:
            if self.search_url:
                raise ConfigError("--search-url is given without --search-provider; expected both.")
            return None
        settings = SearchSettings(
            provider=self.search_provider, url=self.search_url, api_key=self.search_api_key
        )
        open_provider(settings)
        return settings


@dataclass(frozen=True, kw_only=True)
class UpstreamOptions:
    """Models at other servers."""

    upstream: Annotated[
        list[str] | None,
        option("--upstream", "NAME=URL#MODEL: a name that requests may give a model at another "
               "OpenAI-compatible server; can be repeated. Its key comes from "
               "QIANYAN_UPSTREAM_API_KEY"),
    ] = None  # fmt: skip
    models_file: Annotated[
        Path | None,
        option("--models-file", "TOML file of models at other servers, a table [models.NAME] each"),
    ] = None

    def upstreams(self) -> "tuple[UpstreamSettings, ...]":
        """Read them from both places."""
        from qianyan.server.upstream_settings import read_upstreams

        return read_upstreams(self.upstream or (), self.models_file)


@dataclass(frozen=True, kw_only=True)
class KeepingOptions:
    """Where files, tasks and batches are kept, how many and how long."""

    state_dir: Annotated[
        Path, option("--state-dir", "folder of files and batches, with their database")
    ] = Path("~/.local/state/qianyan")
    database_url: Annotated[
        str | None,
        secret("--database-url", "PostgreSQL for the tables of files, tasks and batches, for one "
               "server at a time: postgresql+psycopg://user@host/name. Better set as {}: command "
               "lines can be read by others"),
    ] = None  # fmt: skip
    max_files: Annotated[int, option("--max-files", "files that a key may keep", min=1)] = 10_000
    max_stored: Annotated[
        float, option("--max-stored", "GB that the files of a key may take together", min=0.001)
    ] = 100.0
    max_tasks: Annotated[int, option("--max-tasks", "tasks that a key may have in line", min=1)] = (
        1_000
    )
    keep_results: Annotated[
        float, option("--keep-results", "hours that results of tasks are kept", min=0.01)
    ] = 24.0

    def limits(self) -> "KeepingLimits":
        """Give them as the server takes them."""
        from qianyan.server.files import FileLimits
        from qianyan.server.settings import KeepingLimits
        from qianyan.server.tasks import TaskLimits

        return KeepingLimits(
            files=FileLimits(max_files=self.max_files, max_total_bytes=int(self.max_stored * 1e9)),
            tasks=TaskLimits(max_waiting=self.max_tasks, keep_s=self.keep_results * 3600),
        )


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is logged, and in which form."""

    log_format: Annotated[
        Literal["text", "json"], option("--log-format", "lines of the log on standard error")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        option("--log-level", "the least that is logged"),
    ] = "info"


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How the model is loaded, and where its pictures may come from; `look_settings` reads them."""

    max_pixels: MaxPixels = None
    device: Device = "cpu"
    dtype: DtypeOption = "auto"
    quantize: QuantizeOption = "none"
    allow_host: AllowHost = None
    fetch_timeout: FetchTimeout = 20.0
