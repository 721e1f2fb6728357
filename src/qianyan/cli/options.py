"""The options that verbs share: one declaration each, with its help, variable and type."""

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qianyan import __version__
from qianyan.settings import read_config, variable_name

if TYPE_CHECKING:
    from qianyan.inspection.inspector import LookSettings

Lang = Literal["zh", "en"]
Way = Literal["auto", "list", "two-step", "cascade", "detector"]
PromptOrder = Literal["picture-first", "rules-first"]
AnswerForm = Literal["objects", "rows"]
Quantize = Literal["int8", "int4", "w8a8", "w4a8", "none"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def option(name: str, text: str, **more: Any) -> Any:
    """Declare an option that QIANYAN_… and a --config file can set as well."""
    return typer.Option(name, help=text, envvar=variable_name(name), show_envvar=False, **more)


def name_options(verb: Any) -> set[str]:
    """Name every option of a command and of the verbs below it, as Python does."""
    names = {one.name for one in verb.params if one.name and one.envvar}
    for below in getattr(verb, "commands", {}).values():
        names |= name_options(below)
    return names


def _use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take what a TOML file says as defaults of this command."""
    if path is not None:
        context.default_map = read_config(path, name_options(context.find_root().command))
    return path


Config = Annotated[
    Path | None,
    option("--config", "TOML file of options, e.g. max-objects = 5", callback=_use_config,
            is_eager=True),
]  # fmt: skip
Model = Annotated[
    str,
    option(
        "--model",
        "bundled, bundled-fast (its detector alone), a checkpoint's or detector's "
        "folder, a detector's .onnx file, a hub id, or a model name at --base-url",
    ),
]
BaseUrl = Annotated[
    str | None, option("--base-url", "an OpenAI-compatible endpoint, e.g. http://host:8000/v1")
]
ApiKey = Annotated[str | None, option("--api-key", "the endpoint's key")]
Device = Annotated[str, option("--device", "where models run: cpu, cuda, cuda:1, mps …")]
DtypeOption = Annotated[Dtype, option("--dtype", "number format of a local checkpoint")]
QuantizeOption = Annotated[
    Quantize,
    option(
        "--quantize",
        "store a local checkpoint smaller; w8a8 and w4a8 also read prompts and pictures in 8 bits, "
        "which is faster and coarser",
    ),
]
LangOption = Annotated[Lang, option("--lang", "language of labels, report and questions")]
WordsOption = Annotated[Lang, option("--lang", "language of what is said here")]
Look = Annotated[
    Way,
    option("--look", "list: the model names boxes; two-step: in the whole picture, shown small, "
            "and then in the parts that matter; cascade: the detector proposes, the model judges; "
            "detector: no second look; auto: cascade for the bundled pair, else list"),
]  # fmt: skip
MaxObjects = Annotated[int, option("--max-objects", "detections kept for each picture")]
MaxPixels = Annotated[
    int | None, option("--max-pixels", "largest size at which a model looks at a picture")
]
VisualTokens = Annotated[
    int | None,
    option("--visual-tokens", "most visual tokens of a picture: whole (list), in the first of two "
            "steps (else 512), or of all crops (cascade)"),
]  # fmt: skip
PromptOrderOption = Annotated[
    PromptOrder,
    option("--prompt-order", "of a list's question: as the models were trained, or rules-first, "
            "which is computed once for all pictures"),
]  # fmt: skip
AnswerFormOption = Annotated[
    AnswerForm,
    option("--answer-form", "of a list: objects, as the models were trained, or rows, a third "
            "fewer tokens"),
]  # fmt: skip
Tiles = Annotated[
    int,
    option("--tiles", "parts along each side in which a detector looks at large photos once more, "
            "for small things; 1: none, 2: 2 x 2, five times the work"),
]  # fmt: skip
Workers = Annotated[int, option("--workers", "pictures asked about at once at an endpoint")]
Batch = Annotated[
    str,
    option("--batch", "pictures that a model here answers together: a number, or auto, as many as "
            "memory and cores bear"),
]  # fmt: skip
AllowHost = Annotated[
    list[str] | None,
    option("--allow-host", "private HOST[:PORT] that picture URLs may lead to; can be repeated"),
]
FetchTimeout = Annotated[float, option("--fetch-timeout", "seconds that a download may take")]
Rules = Annotated[Path | None, option("--rules", "not in this version", hidden=True)]
Out = Annotated[Path, option("--out", "results folder")]
Quiet = Annotated[bool, option("--quiet", "print nothing but errors")]
Json = Annotated[bool, option("--json", "one JSON line per picture on standard output")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qianyan {__version__}")
        raise typer.Exit


def _use_debug(wanted: bool) -> bool:
    if wanted:
        logging.basicConfig(level=logging.DEBUG)
    return wanted


Debug = Annotated[
    bool,
    option("--debug", "log everything and show tracebacks", callback=_use_debug, is_eager=True),
]


Version = Annotated[
    bool, typer.Option("--version", help="print the version", callback=_show_version, is_eager=True)
]


@dataclass(frozen=True, kw_only=True)
class LookOptions:
    """Which model looks at pictures, and how; `look_settings` reads them."""

    model: Model = "bundled"
    base_url: BaseUrl = None
    api_key: ApiKey = None
    look: Look = "auto"
    lang: LangOption = "zh"
    max_objects: MaxObjects = 10
    max_pixels: MaxPixels = None
    visual_tokens: VisualTokens = None
    prompt_order: PromptOrderOption = "picture-first"
    answer_form: AnswerFormOption = "objects"
    tiles: Tiles = 1
    device: Device = "cpu"
    dtype: DtypeOption = "auto"
    quantize: QuantizeOption = "none"
    workers: Workers = 4
    batch: Batch = "auto"


_OTHER_NAMES = {"allow_host": "allow_hosts", "fetch_timeout": "fetch_timeout_s"}


def look_settings(context: typer.Context) -> "LookSettings":
    """Take those options of a verb that say which model looks, and how."""
    from qianyan.inspection.inspector import LookSettings

    known = {one.name for one in fields(LookSettings)}
    params = {_OTHER_NAMES.get(name, name): value for name, value in context.params.items()}
    return LookSettings.from_options(
        {name: value for name, value in params.items() if name in known and value is not None}
    )
