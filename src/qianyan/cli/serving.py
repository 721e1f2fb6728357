"""The verb `serve`: one model behind HTTP, until it is told to stop."""

import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Path | None, option("--api-keys-file", "file of keys that open the server, one a line")
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
    max_waiting: Annotated[
        int, option("--max-waiting", "requests that may wait; one more is answered with 429", min=0)
    ] = 256,
    max_wait: Annotated[
        float, option("--max-wait", "seconds until a request must have begun, else 503", min=1)
    ] = 60.0,
    drain: Annotated[
        int, option("--drain", "seconds that running answers have after a signal to stop", min=0)
    ] = 30,
    state_dir: Annotated[
        Path, option("--state-dir", "folder of files and batches, with their database")
    ] = Path("~/.local/state/qianyan"),
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
    from qianyan.server.settings import ServerLimits, ServerSettings

    settings = ServerSettings(
        model_names=(model, *(served_name or ())),
        host=host,
        port=port,
        api_keys=(*(api_keys or ()), *_read_keys(api_keys_file)),
        limits=ServerLimits(max_waiting=max_waiting, max_wait_s=max_wait, drain_s=drain),
        state_folder=state_dir,
    )
    try:
        import uvicorn

        from qianyan.server.app import create_app
        from qianyan.server.keeping import claim
    except ImportError as error:
        raise ConfigError(
            "The server's packages are not installed; run pip install 'qianyan[server]'."
        ) from error
    look = look_settings(context)
    listener = _listen(settings)  # before the model is loaded, which may take minutes
    with claim(state_dir):
        engine, name = _load(look)
        settings = replace(
            settings,
            model_names=(name, *(served_name or ())),
            port=listener.getsockname()[1],
        )
        served = uvicorn.Config(
            create_app(settings, engine),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.limits.drain_s,
        )
        listener.listen(BACKLOG)
        _say(settings)
        uvicorn.Server(served).run(sockets=[listener])


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


def _load(look: "LookSettings") -> "tuple[Engine, str]":
    """Load the model; its pictures may come from where the options allow."""
    from qianyan.cli.answering import load_engine

    engine, name = load_engine(look)
    limits, allowed = engine.processor.limits, look.allow_hosts
    engine.processor.limits = replace(
        limits,
        fetch=look.fetch_limits,
        fetch_video=replace(limits.fetch_video, allow_private=allowed),
        fetch_document=replace(limits.fetch_document, allow_private=allowed),
    )
    return engine, name


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        keys = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--api-keys-file {quote(path)} cannot be read; expected a text file of keys."
        ) from error
    if not keys:
        raise ConfigError(f"--api-keys-file {quote(path)} holds no key; expected one a line.")
    return keys


def _say(settings: "ServerSettings") -> None:
    """Say in both languages where the server is, and who may use it."""
    address, names = settings.address, ", ".join(settings.model_names)
    print(f"千眼已启动，模型 {names}，地址 {address}/v1")
    print(f"qianyan serves {names} at {address}/v1", flush=True)
    if not settings.api_keys:
        print("警告：未设置 API 密钥，本机上的任何程序都可以使用。", file=sys.stderr)
        print(
            "Warning: no API key is set, so every program on this machine may use the server.",
            file=sys.stderr,
            flush=True,
        )
