"""Turn JSON objects into frozen configs: complete or refused, never guessed.

Each config dataclass sits beside the module it configures and carries config.json's own names;
this file holds what all of them need.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from qianyan.errors import ConfigError, quote

Config = TypeVar("Config")

MAX_LAYERS = 1000
MAX_EXPERTS = 4096
"""Far beyond any released model: a damaged config must not build modules for minutes."""


def build(cls: type[Config], data: Mapping[str, Any], *, where: str) -> Config:
    """Make `cls` from a JSON object, taking the fields it declares and no others.

    `where` names the object in the sentence of the ConfigError that a missing field raises.
    Lists become tuples, so that the result can be hashed.
    """
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    missing = [
        name
        for name, field in known.items()
        if name not in data and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{where} has no {', '.join(missing)}; {cls.__name__} needs them.")
    return cls(
        **{
            name: tuple(data[name]) if isinstance(data[name], list) else data[name]
            for name in known
            if name in data
        }
    )


def require_positive_integers(config: object, *names: str) -> None:
    """Raise ConfigError unless each named field of `config` is an integer of at least 1."""
    for name in names:
        check_positive_integer(name, getattr(config, name))


def check_positive_integer(name: str, value: object) -> None:
    """Raise ConfigError unless the value of field `name` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {quote(value)}; expected an integer of at least 1.")


def require_at_most(config: object, name: str, limit: int) -> None:
    """Raise ConfigError when field `name` is larger than `limit`."""
    value = getattr(config, name)
    if value > limit:
        raise ConfigError(f"{name} is {value}; expected at most {limit}.")


def require_positive_numbers(config: object, *names: str) -> None:
    """Raise ConfigError unless each named field of `config` is a number above 0."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"{name} is {quote(value)}; expected a number above 0.")


def require_booleans(config: object, *names: str) -> None:
    """Raise ConfigError unless each named field of `config` is true or false."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {quote(value)}; expected true or false.")


def require_multiple(config: object, name: str, of: str) -> None:
    """Raise ConfigError unless field `name` is a multiple of field `of`."""
    value, unit = getattr(config, name), getattr(config, of)
    if value % unit:
        raise ConfigError(f"{name} is {value}; expected a multiple of {of} ({unit}).")


def require_silu(act: str) -> None:
    """Raise ConfigError unless `hidden_act` is silu, as in every released model."""
    if act != "silu":
        raise ConfigError(f"hidden_act is {quote(act)}; expected 'silu'.")
