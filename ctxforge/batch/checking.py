"""Nodes to the dataclasses of `specs`: strict types, unknown entries refused, every error with its place."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from ctxforge.batch.tree import Node, wrong
from ctxforge.batch.words import unknown

Kind = TypeVar("Kind")
_SEE = "see docs/batch.md, or `ctxforge schema`, for what each entry takes"


def checked(node: Node, kind: type[Kind], what: str) -> Kind:
    """`node` as an object of the dataclass `kind`.

    Args:
        node: a mapping.
        kind: the dataclass.
        what: what messages call it: "a job".

    Raises:
        UsageError: the first wrong entry, unknown ones before others, with its place.
    """
    from pydantic import ValidationError

    node.entries(what)
    try:
        # As JSON, because strict Python would take no list for a tuple; strict, or true would count as 1.
        found: Kind = _adapter(kind).validate_json(json.dumps(node.plain), strict=True)
        return found
    except ValidationError as error:
        errors = error.errors(include_url=False)
    strange = [one for one in errors if one["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    first = (strange or errors)[0]
    loc = first["loc"]
    place = node.at(loc)
    if strange:
        *above, name = loc
        owner = _section(kind, above)
        called = ".".join(str(part) for part in above if isinstance(part, str)) or what
        raise unknown(place, str(name), [field.name for field in dataclasses.fields(owner)], called)
    if first["type"] == "missing":
        raise wrong(node.at(loc[:-1]), f"{what} has no {_dotted(loc)}", _SEE)
    same = [one["msg"] for one in errors if one["loc"][:-1] == loc[:-1] and one["type"] != "missing"]
    messages = same if len(same) > 1 and node.at(loc) == node.at(loc[:-1]) else [first["msg"]]
    told = " or ".join(dict.fromkeys(message[:1].lower() + message[1:] for message in messages))
    raise wrong(place, f"{_dotted(_known_part(node, loc))}: {told}", _SEE)


def _dotted(loc: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in loc)


def _known_part(node: Node, loc: Sequence[str | int]) -> Sequence[str | int]:
    """The part of a location that the file has; pydantic adds the member of a union that it tried."""
    here: Any = node
    for count, step in enumerate(loc):
        inner = here.value
        listed = isinstance(inner, list) and isinstance(step, int) and step < len(inner)
        if listed or (isinstance(inner, dict) and step in inner):
            here = inner[step]
        else:
            return loc[:count]
    return loc


_ADAPTERS: dict[Any, Any] = {}


def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _section(kind: Any, path: Sequence[str | int]) -> Any:
    """The dataclass that stands at `path` below the dataclass `kind`."""
    for step in path:
        if isinstance(step, str) and step in typing.get_type_hints(kind):
            found = _dataclass_in(typing.get_type_hints(kind)[step])
            kind = kind if found is None else found
    return kind


def _dataclass_in(annotation: Any) -> Any:
    if dataclasses.is_dataclass(annotation):
        return annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, tuple, list):
        found = (_dataclass_in(one) for one in typing.get_args(annotation))
        return next((one for one in found if one is not None), None)
    return None
