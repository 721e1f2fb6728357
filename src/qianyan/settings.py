"""Settings that are not typed on the command line: QIANYAN_… variables and a TOML file.

The command line's own options are the only settings there are; a variable or key that is none of
them is an error, because a misspelt one would silently leave the default in force.
"""

import difflib
import os
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from qianyan.errors import ConfigError, quote

PREFIX = "QIANYAN_"
# Where tests and benchmarks find development data, and whether native kernels are used: for the
# process, not for one command.
NATIVE_VARIABLE = "QIANYAN_NATIVE"
UPSTREAM_KEY_VARIABLE = "QIANYAN_UPSTREAM_API_KEY"
"""No option: a key on a command line can be read by others."""
OTHER_VARIABLES = frozenset({"QIANYAN_SHARED", NATIVE_VARIABLE, UPSTREAM_KEY_VARIABLE})


def read_variable(name: str) -> str | None:
    """Read an environment variable that a setting names, such as one that holds a key."""
    return os.environ.get(name)


def modelscope_cache() -> Path:
    """Say where ModelScope's clients keep their models: MODELSCOPE_CACHE, else ~/.cache."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()


def wants_native() -> bool:
    """Whether native kernels may be used: QIANYAN_NATIVE is not 0."""
    return os.environ.get(NATIVE_VARIABLE, "1") != "0"


def variable_name(option: str) -> str:
    """Name the environment variable of an option, --max-objects or max_objects."""
    return PREFIX + option.lstrip("-").replace("-", "_").upper()


def check_environment(options: Collection[str]) -> None:
    """Refuse a QIANYAN_… variable that belongs to no option; `options` are their Python names."""
    known = {variable_name(option) for option in options} | OTHER_VARIABLES
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            raise ConfigError(
                f"The environment variable {quote(name)} is no setting; "
                f"{_nearest(name, known)}. Unset or rename it."
            )


def read_config(path: Path, options: Collection[str]) -> dict[str, Any]:
    """Read a TOML file of options, written max_objects or max-objects, by their Python names."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {quote(path)} cannot be opened; expected a file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {quote(path)} is not TOML: {error}.") from error
    values = {}
    for key, value in content.items():
        option = key.replace("-", "_")
        if option not in options:
            raise ConfigError(
                f"{quote(key)} in {quote(path.name)} is no setting; {_nearest(option, options)}."
            )
        values[option] = value
    return values


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"the nearest is {close[0]}" if close else f"known are {', '.join(sorted(known))}"
