"""The verb `serve`: one model behind HTTP, until it is told to stop."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qianyan.cli.option_groups import spelling_out
from qianyan.cli.options import Config, Debug, Model, look_settings, option
from qianyan.cli.serving_options import (
    KeepingOptions,
    KeyOptions,
    LimitOptions,
    LoadingOptions,
    LogOptions,
    SearchOptions,
    UpstreamOptions,
)
from qianyan.errors import ConfigError, quote

if TYPE_CHECKING:
    from qianyan.engine.engine import Engine
    from qianyan.inspection.inspector import LookSettings
    from qianyan.server.settings import ServerSettings

BACKLOG = 1024
"""Connections that the system keeps while they wait to be accepted."""

ServedNames = Annotated[
    list[str] | None,
    option("--served-name", "a name that requests may give the model, such as qwen-plus, beside "
            "its own; can be repeated"),
]  # fmt: skip
NoSpeech = Annotated[
    bool,
    option("--no-speech", "have Qwen2.5-Omni answer in text alone: nothing that speaks is loaded, "
           "and no memory is set aside for it"),
]  # fmt: skip


@spelling_out
def serve(
    context: typer.Context,
    *,
    model: Model = "bundled",
    host: Annotated[
        str, option("--host", "where to listen; other than loopback needs a key")
    ] = "127.0.0.1",
    port: Annotated[int, option("--port", "port; 0: any free one")] = 8000,
    served_name: ServedNames = None,
    keys: KeyOptions,
    limits: LimitOptions,
    search: SearchOptions,
    upstream: UpstreamOptions,
    keeping: KeepingOptions,
    no_speech: NoSpeech = False,
    log: LogOptions,
    loading: LoadingOptions,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Answer clients of OpenAI's API at /v1 and /compatible-mode/v1, and of DashScope's at /api/v1.

    Example: qianyan serve --model path/to/Qwen2.5-VL-3B-Instruct --served-name qwen-vl-plus
    """
    with _needing_server():
        from qianyan.server.keys import make_key
        from qianyan.server.settings import ServerSettings

    given, new_key = keys.given(), make_key()
    settings = ServerSettings(
        model_names=(model, *(served_name or ())),
        host=host,
        port=port,
        api_keys=given or (() if keys.no_auth else (new_key,)),
        limits=limits.limits(),
        state_folder=keeping.state_dir,
        database_url=keeping.database_url,
        keeping=keeping.limits(),
        search=search.settings(),
        upstreams=upstream.upstreams(),
    )
    with _needing_server():
        from qianyan.server.app import create_app
        from qianyan.server.database import open_database
        from qianyan.server.keeping import claim
        from qianyan.server.logs import write_log
        from qianyan.server.wire import Server, listen_config
    write_log(log.log_format, log.log_level)
    look = look_settings(context)
    listener = _listen(settings)  # before the model is loaded, which may take minutes
    with claim(keeping.state_dir) as folder:
        open_database(folder, keeping.database_url).close()  # also before that
        engine, name = _load(look, use_speech=not no_speech)
        settings = replace(
            settings,
            model_names=tuple(dict.fromkeys((name, *(served_name or ())))),
            port=listener.getsockname()[1],
        )
        if not (given or keys.no_auth):  # after the model, so that a wrong one spends no key
            settings = replace(settings, api_keys=_keep_key(folder, new_key))
        app = create_app(settings, engine)
        listener.listen(BACKLOG)
        _say(settings, has_voice_page=engine.processor.sounds is not None)
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


def _say(settings: "ServerSettings", *, has_voice_page: bool) -> None:
    """Say in both languages where the server is, and who may use it."""
    address, names = settings.address, ", ".join(settings.all_names)
    print(f"千眼已启动，模型 {names}，地址 {address}/v1 (DashScope: {address}/api/v1)")
    print(f"qianyan serves {names} at {address}/v1 (DashScope: {address}/api/v1)", flush=True)
    if has_voice_page:
        print(f"语音页面 / Voice page: {address}/console/voice", flush=True)
    if not settings.api_keys:
        print("警告：已用 --no-auth 关闭 API 密钥，本机上的任何程序都可以使用。", file=sys.stderr)
        print(
            "Warning: --no-auth is set, so every program on this machine may use the server.",
            file=sys.stderr,
            flush=True,
        )
