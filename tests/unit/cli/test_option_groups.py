"""Options in groups: what a verb gets, and that nothing of the groups shows outside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer

from qianyan.cli.option_groups import spelling_out
from qianyan.cli.options import Config, option
from qianyan.settings import variable_name

DEPTH = "--depth"


@dataclass(frozen=True, kw_only=True)
class Digging:
    """A group."""

    depth: Annotated[int, option(DEPTH, "how deep", min=1)] = 3
    tool: Annotated[list[str] | None, option("--tool", "with what")] = None


@pytest.fixture
def got() -> list[object]:
    """What the verb was called with."""
    return []


@pytest.fixture
def app(got: list[object]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @spelling_out
    def dig(
        context: typer.Context,
        place: Path,
        *,
        first: Annotated[str, option("--first", "before")] = "a",
        digging: Digging,
        last: Annotated[bool, option("--last", "behind")] = False,
        config: Config = None,
    ) -> None:
        """Dig in PLACE."""
        got.extend((place, first, digging, last, context.params["depth"]))

    @app.callback()
    def nothing() -> None:
        pass

    return app


def run(app: typer.Typer, *arguments: str) -> None:
    app(["dig", *arguments], standalone_mode=False)


def test_a_group_is_its_options_with_their_defaults(app: typer.Typer, got: list[object]) -> None:
    run(app, "here")
    assert got == [Path("here"), "a", Digging(), False, 3]


def test_options_of_a_group_are_given_like_any_others(app: typer.Typer, got: list[object]) -> None:
    run(app, "here", "--tool", "x", "--last", "--tool", "y", DEPTH, "7")
    assert got == [Path("here"), "a", Digging(depth=7, tool=["x", "y"]), True, 7]


def test_options_of_a_group_come_from_variables_and_files_too(
    app: typer.Typer, got: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "options.toml").write_text('tool = ["spade"]\n')
    monkeypatch.setenv(variable_name(DEPTH), "5")
    run(app, "here", "--config", str(tmp_path / "options.toml"))
    assert got[2] == Digging(depth=5, tool=["spade"])


def test_a_group_stands_in_its_place_and_names_nothing_itself(app: typer.Typer) -> None:
    (verb,) = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    assert [one.name for one in verb.params] == [
        "place", "first", "depth", "tool", "last", "config"
    ]  # fmt: skip
    assert verb.help == "Dig in PLACE."


def test_what_is_wrong_is_said_of_the_option(app: typer.Typer) -> None:
    with pytest.raises(typer.exceptions.TyperException, match="greater than or equal to 1"):
        run(app, "here", DEPTH, "0")
