"""The verbs about models: bring one, quantise it, list what is on disk, say what one needs."""

from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qianyan.cli.model_words import (
    architecture_word,
    count_word,
    licence_sentence,
    size_word,
    words,
)
from qianyan.cli.options import Config, Debug, Lang, Quiet, WordsOption, option
from qianyan.cli.terminal import printable
from qianyan.errors import ConfigError, quote

if TYPE_CHECKING:
    from rich.table import Table

    from qianyan.engine.library import Licence, ModelOnDisk
    from qianyan.engine.memory import ModelFacts

verbs = typer.Typer(
    help="Bring models from a hub, quantise them, list what is on disk, say what one needs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="owner/name, e.g. Qwen/Qwen2.5-VL-3B-Instruct")
]
SourceOption = Annotated[
    Literal["huggingface", "modelscope"], option("--source", "hub to bring the model from")
]
Folder = Annotated[
    Path | None, option("--out", "folder for the files, instead of the hub's own cache")
]
Revision = Annotated[str | None, option("--revision", "branch, tag or commit; else the newest")]
Token = Annotated[str | None, option("--token", "key for models that are not open to everyone")]
Endpoint = Annotated[str | None, option("--endpoint", "a mirror's address instead of the hub's")]
Contexts = Annotated[
    str, option("--context", "numbers of tokens to reckon the memory of a conversation for")
]
Json = Annotated[bool, option("--json", "print JSON")]
NAMES = "bundled, owner/name or a folder"
MAX_CONTEXTS = 5


@verbs.command(name="pull")
def pull_model(
    name: Name,
    source: SourceOption = "huggingface",
    out: Folder = None,
    revision: Revision = None,
    token: Token = None,
    endpoint: Endpoint = None,
    lang: WordsOption = "zh",
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Bring a model from Hugging Face or ModelScope; an interrupted pull is gone on with.

    Prints the model's folder.

    Example: qianyan models pull Qwen/Qwen2.5-VL-3B-Instruct
    """
    from qianyan.cli.pull_display import PullDisplay
    from qianyan.engine.library import read_licence
    from qianyan.engine.pull import pull

    with PullDisplay(lang=lang, is_quiet=quiet) as display:
        folder = pull(
            name,
            source=source,
            folder=out,
            revision=revision,
            token=token,
            endpoint=endpoint,
            on_progress=display.show,
        )
    display.close(licence_sentence(read_licence(folder), lang))
    print(folder)


@verbs.command(name="quantize")
def quantize_once(
    model: Annotated[str, typer.Argument(metavar="NAME_OR_FOLDER", help=NAMES)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="new folder for the quantised model")],
    to: Annotated[
        Literal["int8", "int4"], option("--to", "bits that each weight is kept in")
    ] = "int8",
    lang: WordsOption = "zh",
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Quantise a model once, into a folder that loads as it is: faster, and without --quantize.

    Tensors are taken one at a time; the whole model is never in memory. Prints the folder.

    Example: qianyan models quantize Qwen/Qwen2-VL-2B-Instruct qwen2-vl-2b-int8 --to int8
    """
    from qianyan.cli.pull_display import PullDisplay
    from qianyan.engine.checkpoint import find_checkpoint
    from qianyan.engine.library import read_licence
    from qianyan.engine.pull import PullProgress
    from qianyan.engine.quantizing import QuantizeProgress, quantize_model

    def show(progress: QuantizeProgress) -> None:
        display.show(
            PullProgress(
                file=out.name,
                done_bytes=progress.done_bytes,
                total_bytes=progress.total_bytes,
                num_files_done=0,
                num_files=1,
            )
        )

    with PullDisplay(lang=lang, is_quiet=quiet, sentence="quantized") as display:
        source = find_checkpoint(model)
        folder = quantize_model(source, out, to=to, on_progress=show)
    display.close(licence_sentence(read_licence(source), lang))
    print(folder)


@verbs.command(name="export-onnx")
def export_a_detector(
    detector: Annotated[
        str, typer.Argument(metavar="DETECTOR", help="bundled, a detector's folder or its pair's")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="file to write, named *.onnx")],
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Write a small detector as one ONNX file, for other run-times; its metadata say how to use it.

    inspect and eval take the file as --model. Prints its name.

    Example: qianyan models export-onnx bundled detector.onnx
    """
    if out.suffix != ".onnx":
        raise ConfigError(f"OUT is {quote(out)}; expected a name that ends in .onnx.")
    from qianyan.inspection.inspector import require_detector
    from qianyan.models.detector import load_detector
    from qianyan.models.detector_onnx import export_onnx

    export_onnx(load_detector(require_detector(detector)), out)
    print(out)


@verbs.command(name="list")
def list_what_is_on_disk(
    lang: WordsOption = "zh", json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """List the models on disk with their size and licence.

    Example: qianyan models list --lang en
    """
    from qianyan.engine.library import list_models

    models = list_models()
    if json:
        print(dumps([_record(model) for model in models], ensure_ascii=False, indent=1))
    else:
        _print_list(models, lang)


def _record(model: "ModelOnDisk") -> dict[str, Any]:
    return {**asdict(model), "folder": str(model.folder)}


def _print_list(models: "list[ModelOnDisk]", lang: Lang) -> None:
    """Print one line for each model, and in whole sentences what its licence forbids."""
    from rich.console import Console
    from rich.table import Table

    said = words(lang)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("name", "architecture", "size", "licence"):
        is_size = heading == "size"
        table.add_column(
            said[heading], overflow="fold", justify="right" if is_size else "left", no_wrap=is_size
        )
    for model in models:
        state = "" if model.is_complete else f" ({said['incomplete']})"
        table.add_row(
            printable(model.name) + state,
            architecture_word(model.architecture),
            size_word(model.size_bytes),
            _short_licence(model.licence, lang),
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    for model in models:
        if model.licence is not None and model.licence.is_commercial is False:
            sentence = licence_sentence(model.licence, lang)
            console.print(f"! {printable(model.name)}: {sentence}", style="bold")


def _short_licence(licence: "Licence | None", lang: Lang) -> str:
    said = words(lang)
    if licence is None:
        return said["no_licence"]
    use = {True: "", False: f" · {said['non_commercial']}", None: f" · {said['unknown_use']}"}
    return printable(licence.id) + use[licence.is_commercial]


@verbs.command(name="info")
def say_what_a_model_needs(
    model: Annotated[str, typer.Argument(metavar="NAME_OR_FOLDER", help=NAMES)],
    context: Contexts = "4096,32768",
    source: SourceOption = "huggingface",
    token: Token = None,
    endpoint: Endpoint = None,
    lang: WordsOption = "zh",
    json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Say what a model is, what memory it needs and what its licence allows, before loading it.

    A model that is not on disk is described from what its hub says about it.

    Example: qianyan models info Qwen/Qwen2.5-VL-3B-Instruct --context 8192
    """
    contexts = _contexts(context)
    from qianyan.engine.memory import describe

    facts = describe(model, source=source, token=token, endpoint=endpoint)
    if json:
        print(dumps(_facts_record(facts, contexts), ensure_ascii=False, indent=1))
    else:
        _print_facts(facts, contexts, lang)


def _contexts(given: str) -> list[int]:
    """Read numbers of tokens with commas between them."""
    numbers = [one.strip() for one in given.split(",")]
    if not all(one.isdecimal() and one.isascii() and len(one) < 10 for one in numbers):
        raise ConfigError(
            f"--context is {quote(given)}; expected numbers of tokens such as 4096,32768."
        )
    if len(numbers) > MAX_CONTEXTS:
        raise ConfigError(f"--context has {len(numbers)} numbers; expected at most {MAX_CONTEXTS}.")
    return [int(one) for one in numbers]


def _facts_record(facts: "ModelFacts", contexts: Sequence[int]) -> dict[str, Any]:
    from qianyan.engine.memory import total_bytes

    memory = {
        dtype: {
            "weights_bytes": weights,
            "total_bytes": {str(length): total_bytes(facts, dtype, length) for length in contexts},
        }
        for dtype, weights in facts.weights_bytes.items()
    }
    record = {**asdict(facts), "memory": memory}
    del record["weights_bytes"]
    return {**record, "folder": None if facts.folder is None else str(facts.folder)}


def _print_facts(facts: "ModelFacts", contexts: Sequence[int], lang: Lang) -> None:
    """Print what a model is, line by line, and a table of the memory it needs."""
    from rich.console import Console

    said = words(lang)
    parts = [f"{said[part]} {count_word(n)}" for part, n in facts.num_parameters.items() if n]
    parameters = f"{count_word(sum(facts.num_parameters.values()))} ({' · '.join(parts)})"
    if facts.num_active_parameters is not None:
        parameters += said["active"].format(n=count_word(facts.num_active_parameters))
    stored = " · ".join(one for one in (facts.stored_dtype, facts.quantization) if one)
    lines = {
        "name": facts.name,
        "folder": said["not_on_disk"] if facts.folder is None else str(facts.folder),
        "architecture": facts.architecture,
        "parameters": parameters,
        "stored": stored or "?",
        "max_length": said["tokens"].format(n=facts.max_length),
    }
    console = Console(highlight=False, markup=False)
    for key, value in lines.items():
        console.print(f"{said[key]}{said['colon']}{printable(value)}", soft_wrap=True)
    is_free = facts.licence is not None and facts.licence.is_commercial is not False
    sentence = licence_sentence(facts.licence, lang)
    console.print(sentence, style="" if is_free else "bold")
    console.print()
    fitting = list(dict.fromkeys(min(length, facts.max_length) for length in contexts))
    console.print(_memory_table(facts, fitting, lang))
    console.print(said["memory_note"], style="dim")
    for note in facts.notes:
        console.print(f"- {printable(note)}")


def _memory_table(facts: "ModelFacts", contexts: Sequence[int], lang: Lang) -> "Table":
    """Make a table of weights, and of weights with keys and values, for each number format."""
    from rich.table import Table

    from qianyan.engine.memory import total_bytes

    said = words(lang)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(said["dtype"])
    for heading in (said["weights"], *(said["with_context"].format(n=n) for n in contexts)):
        table.add_column(heading, justify="right")
    for dtype, weights in facts.weights_bytes.items():
        totals = [size_word(total_bytes(facts, dtype, length)) for length in contexts]
        table.add_row(said.get(f"dtype_{dtype}", dtype), size_word(weights), *totals)
    return table
