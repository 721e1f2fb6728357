"""The verb `serve`: one model behind HTTP, until it is told to stop."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qianyan.cli.options import (
    AllowHost,
    Config,
    Debug,
    Device,
    DtypeOption,
    FetchTimeout,
    MaxPixels,
    Model,
    QuantizeOption,
    look_settings,
    option,
)
from qianyan.errors import ConfigError, quote

if TYPE_CHECKING:
    from qianyan.engine.engine import Engine
    from qianyan.inspection.inspector import LookSettings
    from qianyan.server.search_providers import ProviderName, SearchSettings
    from qianyan.server.settings import ServerSettings

BACKLOG = 1024
"""Connections that the system keeps while they wait to be accepted."""

ServedNames = Annotated[
    list[str] | None,
    option("--served-name", "a name that requests may give the model, such as qwen-plus, beside "
            "its own; can be repeated"),
]  # fmt: skip
ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        help="a key that opens the server; can be repeated. Better set as QIANYAN_API_KEYS (with "
        "blanks between several) or in --api-keys-file: command lines can be read by others",
        envvar="QIANYAN_API_KEYS",
        show_envvar=False,
    ),
]
ApiKeysFile = Annotated[
    Path | None,
    option("--api-keys-file", "file of keys that open the server, one a line, each as it is or as "
           "sha256: and its hash"),
]  # fmt: skip
NoAuth = Annotated[
    bool,
    option("--no-auth", "let every program on this machine ask without a key; on loopback only"),
]
NoSpeech = Annotated[
    bool,
    option("--no-speech", "have Qwen2.5-Omni answer in text alone: nothing that speaks is loaded, "
           "and no memory is set aside for it"),
]  # fmt: skip
LogFormatOption = Annotated[
    Literal["text", "json"], option("--log-format", "lines of the log on standard error")
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], option("--log-level", "the least that is logged")
]
SearchProviderOption = Annotated[
    Literal["searxng", "tavily", "ddgs"] | None,
    option(
        "--search-provider", "who searches the web for requests with enable_search; none: nobody"
    ),
]
SearchUrl = Annotated[
    str | None,
    option("--search-url", "address of the SearXNG server, or of one that speaks Tavily's API"),
]
SearchApiKey = Annotated[
    str | None,
    typer.Option(
        "--search-api-key",
        help="key of the search provider. Better set as QIANYAN_SEARCH_API_KEY: command lines can "
        "be read by others",
        envvar="QIANYAN_SEARCH_API_KEY",
        show_envvar=False,
    ),
]

Upstreams = Annotated[
    list[str] | None,
    option("--upstream", "NAME=URL#MODEL: a name that requests may give a model at another "
           "OpenAI-compatible server; can be repeated. Its key comes from "
           "QIANYAN_UPSTREAM_API_KEY"),
]  # fmt: skip
ModelsFile = Annotated[
    Path | None,
    option("--models-file", "TOML file of models at other servers, a table [models.NAME] each"),
]

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="PostgreSQL for the tables of files, tasks and batches, for one server at a time: "
        "postgresql+psycopg://user@host/name. Better set as QIANYAN_DATABASE_URL: command lines "
        "can be read by others",
        envvar="QIANYAN_DATABASE_URL",
        show_envvar=False,
    ),
]


def serve(
    context: typer.Context,
    model: Model = "bundled",
    host: Annotated[
        str, option("--host", "where to listen; other than loopback needs a key")
    ] = "127.0.0.1",
    port: Annotated[int, option("--port", "port; 0: any free one")] = 8000,
    served_name: ServedNames = None,
    api_keys: ApiKeys = None,
    api_keys_file: ApiKeysFile = None,
    no_auth: NoAuth = False,
    max_waiting: Annotated[
        int, option("--max-waiting", "requests that may wait; one more is answered with 429", min=0)
    ] = 256,
    max_wait: Annotated[
        float, option("--max-wait", "seconds until a request must have begun, else 503", min=1)
    ] = 60.0,
    max_answer: Annotated[
        float, option("--max-answer", "seconds after which an answer is cut short", min=1)
    ] = 300.0,
    max_open_per_key: Annotated[
        int,
        option("--max-open-per-key", "requests of one key that wait or run; 0: no limit", min=0),
    ] = 0,
    requests_per_minute: Annotated[
        int, option("--requests-per-minute", "requests of one key; 0: no limit", min=0)
    ] = 0,
    tokens_per_minute: Annotated[
        int, option("--tokens-per-minute", "tokens of one key, both ways; 0: no limit", min=0)
    ] = 0,
    thinking_budget: Annotated[
        int,
        option(
            "--thinking-budget",
            "tokens that a model may think where a request says nothing of it",
            min=1,
        ),
    ] = 16_384,
    search_provider: SearchProviderOption = None,
    search_url: SearchUrl = None,
    search_api_key: SearchApiKey = None,
    upstream: Upstreams = None,
    models_file: ModelsFile = None,
    drain: Annotated[
        int, option("--drain", "seconds that running answers have after a signal to stop", min=0)
    ] = 30,
    state_dir: Annotated[
        Path, option("--state-dir", "folder of files and batches, with their database")
    ] = Path("~/.local/state/qianyan"),
    database_url: DatabaseUrl = None,
    max_files: Annotated[int, option("--max-files", "files that a key may keep", min=1)] = 10_000,
    max_stored: Annotated[
        float, option("--max-stored", "GB that the files of a key may take together", min=0.001)
    ] = 100.0,
    max_tasks: Annotated[
        int, option("--max-tasks", "tasks that a key may have in line", min=1)
    ] = 1_000,
    keep_results: Annotated[
        float, option("--keep-results", "hours that results of tasks are kept", min=0.01)
    ] = 24.0,
    no_speech: NoSpeech = False,
    log_format: LogFormatOption = "text",
    log_level: LogLevel = "info",
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    allow_host: AllowHost = None,
    fetch_timeout: FetchTimeout = 20.0,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Answer clients of OpenAI's API at /v1 and /compatible-mode/v1, and of DashScope's at /api/v1.

    Example: qianyan serve --model path/to/Qwen2.5-VL-3B-Instruct --served-name qwen-vl-plus
    """
    with _needing_server():
        from qianyan.server.files import FileLimits
        from qianyan.server.keys import make_key, read_keys
        from qianyan.server.settings import KeepingLimits, ServerLimits, ServerSettings
        from qianyan.server.tasks import TaskLimits
        from qianyan.server.upstream_settings import read_upstreams

    given = (*(api_keys or ()), *(read_keys(api_keys_file) if api_keys_file else ()))
    if given and no_auth:
        raise ConfigError("--no-auth and API keys are given; expected only one of them.")
    new_key = make_key()
    settings = ServerSettings(
        model_names=(model, *(served_name or ())),
        host=host,
        port=port,
        api_keys=given or (() if no_auth else (new_key,)),
        limits=ServerLimits(
            max_waiting=max_waiting,
            max_wait_s=max_wait,
            max_answer_s=max_answer,
            max_open_per_key=max_open_per_key,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            thinking_budget=thinking_budget,
            drain_s=drain,
        ),
        state_folder=state_dir,
        database_url=database_url,
        keeping=KeepingLimits(
            files=FileLimits(max_files=max_files, max_total_bytes=int(max_stored * 1e9)),
            tasks=TaskLimits(max_waiting=max_tasks, keep_s=keep_results * 3600),
        ),
        search=_search(search_provider, search_url, search_api_key),
        upstreams=read_upstreams(upstream or (), models_file),
    )
    with _needing_server():
        from qianyan.server.app import create_app
        from qianyan.server.database import open_database
        from qianyan.server.keeping import claim
        from qianyan.server.logs import write_log
        from qianyan.server.wire import Server, listen_config
    write_log(log_format, log_level)
    look = look_settings(context)
    listener = _listen(settings)  # before the model is loaded, which may take minutes
    with claim(state_dir) as folder:
        open_database(folder, database_url).close()  # also before that
        engine, name = _load(look, use_speech=not no_speech)
        settings = replace(
            settings,
            model_names=tuple(dict.fromkeys((name, *(served_name or ())))),
            port=listener.getsockname()[1],
        )
        if not (given or no_auth):  # after the model, so that a wrong one spends no key
            settings = replace(settings, api_keys=_keep_key(folder, new_key))
        app = create_app(settings, engine)
        listener.listen(BACKLOG)
        _say(settings)
        Server(listen_config(app, settings)).run(sockets=[listener])


@contextmanager
def _needing_server() -> Iterator[None]:
    """Say how to install what the server needs and the command line does not."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            "The server's packages are not installed; run pip install 'qianyan[server]'."
        ) from error


def _search(
    provider: "ProviderName | None", url: str | None, api_key: str | None
) -> "SearchSettings | None":
    """Read who searches the web; what is missing is told before the model is loaded."""
    from qianyan.server.search_providers import SearchSettings, open_provider

    if provider is None:
        if url:
            raise ConfigError("--search-url is given without --search-provider; expected both.")
        return None
    settings = SearchSettings(provider=provider, url=url, api_key=api_key)
    open_provider(settings)
    return settings


def _listen(settings: "ServerSettings") -> socket.socket:
    """Take the port; clients are let in when the model is there."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Nothing can listen at {quote(f'{settings.host}:{settings.port}')}: {error.strerror}. "
            "Give another --host or --port."
        ) from error
    return listener


def _load(look: "LookSettings", *, use_speech: bool) -> "tuple[Engine, str]":
    """Load the model; its pictures may come from where the options allow."""
    from qianyan.cli.answering import load_engine

    engine, name = load_engine(look, use_speech=use_speech)
    limits, allowed = engine.processor.limits, look.allow_hosts
    engine.processor.limits = replace(
        limits,
        fetch=look.fetch_limits,
        fetch_video=replace(limits.fetch_video, allow_private=allowed),
        fetch_document=replace(limits.fetch_document, allow_private=allowed),
    )
    return engine, name


def _keep_key(folder: Path, new_key: str) -> tuple[str, ...]:
    """Give the keys that were made for a state folder; at first keep a new one and show it."""
    from qianyan.server.keys import MADE_KEYS, find_made_keys, keep_key

    if known := find_made_keys(folder):
        path = folder / MADE_KEYS
        print(f"密钥：第一次启动时生成的密钥（哈希值在 {path} 中，删除该文件可重新生成）")
        print(
            f"Key: the one made at the first start (its hash is in {path}; delete it for a new one)"
        )
        return tuple(known)
    path = keep_key(folder, new_key)
    print(f"已生成 API 密钥（只显示这一次，{path} 中只保存其哈希值）：{new_key}")
    print(f"Made an API key, shown only now ({path} keeps its hash): {new_key}", flush=True)
    return (new_key,)


def _say(settings: "ServerSettings") -> None:
    """Say in both languages where the server is, and who may use it."""
    address, names = settings.address, ", ".join(settings.all_names)
    print(f"千眼已启动，模型 {names}，地址 {address}/v1 (DashScope: {address}/api/v1)")
    print(f"qianyan serves {names} at {address}/v1 (DashScope: {address}/api/v1)", flush=True)
    if not settings.api_keys:
        print("警告：已用 --no-auth 关闭 API 密钥，本机上的任何程序都可以使用。", file=sys.stderr)
        print(
            "Warning: --no-auth is set, so every program on this machine may use the server.",
            file=sys.stderr,
            flush=True,
        )
