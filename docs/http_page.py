"""The page of every route of the server, with what each takes, read off the routers themselves."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qianyan.server.app import OPENAI_PREFIXES, OPENAI_ROUTERS, ROUTERS
from qianyan.server.auth import OPEN_PATHS


def http_page() -> str:
    """One table of routes, one table of fields for each body and query."""
    lines = [
        "# Routes and fields of the HTTP API",
        "",
        f"Paths without a prefix are at {' and '.join(f'`{one}`' for one in OPENAI_PREFIXES)}. "
        "What the fields mean and answer is in [api.md](../api.md), limits are in "
        "[limits.md](limits.md).",
        "",
        "| method | path | key | what it does | takes |",
        "|---|---|---|---|---|",
    ]
    bodies: dict[str, type[BaseModel]] = {}
    for route in _routes():
        taken = list(_taken(route))
        bodies |= {model.__name__: model for model in taken}
        given = ", ".join(f"[{one.__name__}](#{one.__name__.lower()})" for one in taken)
        plain = ", ".join(f"`{_parameter(one)}`" for one in _plain(route))
        key = "none" if route.path in OPEN_PATHS else "yes"
        what = (route.endpoint.__doc__ or "").strip().splitlines()[0]
        methods = ", ".join(sorted(route.methods))
        takes = ", ".join(part for part in (given, plain) if part)
        lines.append(f"| {methods} | `{route.path}` | {key} | {what} | {takes} |")
    for name, model in sorted(_with_inner(bodies).items()):
        lines += ["", f"## {name}", "", (model.__doc__ or "").strip().splitlines()[0], ""]
        lines += ["| field | type | default |", "|---|---|---|"]
        lines += [
            f"| `{field.alias or key}` | {_words(field.annotation)} | {_default(field)} |"
            for key, field in model.model_fields.items()
        ]
    return "\n".join(lines) + "\n"


def _routes() -> Iterator[APIRoute]:
    for router in (*OPENAI_ROUTERS, *ROUTERS):
        for route in router.routes:
            if isinstance(route, APIRoute) and route.methods != {"HEAD"}:
                yield route


def _taken(route: APIRoute) -> Iterator[type[BaseModel]]:
    """Yield the models of a route's body and query."""
    fields = [route.body_field] if route.body_field else []
    for field in (*fields, *route.dependant.query_params):
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _plain(route: APIRoute) -> Iterator[Any]:
    """Yield the query parameters that stand alone."""
    for field in route.dependant.query_params:
        kind = field.field_info.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            yield field


def _parameter(field: Any) -> str:
    required = field.field_info.is_required()
    return field.alias if required else f"{field.alias}={field.field_info.default}"


def _with_inner(models: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Add the models that fields of models hold."""
    found, waiting = dict(models), list(models.values())
    while waiting:
        for field in waiting.pop().model_fields.values():
            for kind in _inside(field.annotation):
                if kind.__name__ not in found:
                    found[kind.__name__] = kind
                    waiting.append(kind)
    return found


def _inside(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for one in get_args(kind):
        yield from _inside(one)


PLAIN = {
    str: "text", int: "integer", float: "number", bool: "true or false", dict: "object",
    list: "list", type(None): "null", Any: "any",
}  # fmt: skip


def _words(kind: Any) -> str:
    """Say a type as JSON knows it; limits of lengths are left to the API's own sentences."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if origin in (list, tuple):
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return "object" if inner[1] is Any else f"object of {_words(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return PLAIN.get(kind) or kind.__name__


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    return "-" if default is None else f"`{default}`"
