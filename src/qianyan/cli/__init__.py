"""The command line: parse, call, print.

Rooms are imported by the verb that needs them, so that `qianyan --help` answers at once.
Exit codes are those of `exit_codes.py`.
"""

import logging
import sys
import traceback
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from qianyan.cli import (
    bench,
    chat,
    evaluating,
    exporting,
    inspecting,
    measuring,
    models,
    serving,
    train,
)
from qianyan.cli.exit_codes import DONE, UNUSABLE, WRONG_USAGE
from qianyan.cli.options import Version, name_options
from qianyan.errors import CheckpointError, EndpointError, QianyanError
from qianyan.settings import check_environment

app = typer.Typer(
    name="qianyan",
    help="Look for fire, smoke and missing hard hats in photos; mark them and write a report.\n\n"
    "Every option can also be set as QIANYAN_OPTION_NAME or in a --config file.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def check(
    version: Version = False,
) -> None:
    """Look for fire, smoke and missing hard hats in photos; mark them and write a report.

    Every option can also be set as QIANYAN_OPTION_NAME or in a --config file.
    """
    check_environment(name_options(typer.main.get_command(app)))


app.command()(inspecting.inspect)
app.command()(inspecting.demo)
app.command()(inspecting.report)
app.command()(exporting.export)
app.command(name="eval")(evaluating.evaluate)
app.command()(measuring.doctor)
app.command()(bench.bench)
app.command()(chat.chat)
app.command()(serving.serve)
app.add_typer(models.verbs, name="models")
app.add_typer(train.verbs, name="train")


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; say in one sentence what went wrong, and give the exit code."""
    try:
        code = app(arguments, prog_name="qianyan", standalone_mode=False)
    except TyperException as error:
        message = error.format_message().rstrip(".")
        print(f"qianyan: {message}. See qianyan --help.", file=sys.stderr)
        return WRONG_USAGE
    except (QianyanError, OSError) as error:
        if logging.getLogger("qianyan").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        print(f"qianyan: {error}", file=sys.stderr)
        return UNUSABLE if isinstance(error, CheckpointError | EndpointError) else WRONG_USAGE
    return code if isinstance(code, int) else DONE
