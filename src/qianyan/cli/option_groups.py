"""Options that belong together as one parameter of a verb.

A parameter whose type is a dataclass stands for its fields: on the command line, in variables and
in files there are these alone, in their order, in the parameter's place. Typer reads options from a
function's signature; here it is given one in which the groups are spelt out.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints


def spelling_out(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a verb that takes groups of options.

    Every field of a group needs a default, and no two options the same name.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{one.name: given.pop(one.name) for one in fields(group)})
        verb(**given)

    parameters = list(_spell_out(verb, hints, groups))
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _spell_out(
    verb: Callable[..., None], hints: dict[str, Any], groups: dict[str, Any]
) -> Iterator[Parameter]:
    for one in inspect.signature(verb).parameters.values():
        kind = Parameter.KEYWORD_ONLY
        if one.name not in groups:
            yield one.replace(kind=kind, annotation=hints[one.name])
            continue
        types = get_type_hints(groups[one.name], include_extras=True)
        for field in fields(groups[one.name]):
            yield Parameter(field.name, kind, default=field.default, annotation=types[field.name])
