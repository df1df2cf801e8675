"""Parameters of methods: what kinds there are, and how a value from a recipe or a command line becomes one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.rope.methods.factor_lists import read_numbers

Value = float | int | bool | str | tuple[float, ...] | None
_FLAGS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def parameter(default: Value, explanation: str, *, kind: str | None = None, choices: Sequence[str] = ()) -> Any:
    """A dataclass field of a method's parameters: the default, and the line that `ctxforge methods` shows.

    Args:
        default: None where the method derives the value itself.
        explanation: one line.
        kind: `number` (above 0), `count` (a whole number from 0), `flag`, `choice` (one of `choices`) or `numbers`
            (a list, or the path of a file that holds one). Left out, it follows from the default's type.
        choices: of the kind `choice`.
    """
    if kind is None:
        kind = "flag" if isinstance(default, bool) else "choice" if choices else "number"
    metadata = {"explanation": explanation, "kind": kind, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


def coerce(method: str, field: dataclasses.Field[Any], value: object) -> Value:
    """`value` as the field's kind; text is parsed, files of numbers are read, anything else is refused.

    Raises:
        UsageError: a value of another kind, or a file that holds no list of numbers.
    """
    name, kind = field.name, field.metadata["kind"]
    if kind == "numbers":
        return read_numbers(method, name, value)
    if kind == "flag":
        return _flag(method, name, value)
    if kind == "choice":
        return _choice(method, name, value, field.metadata["choices"])
    number = _real(value)
    if kind == "count":
        if not (0 <= number < 1e12 and number.is_integer()):
            raise UsageError(f"{method}: {name}={value!r} is not a whole number", f"give {name} a number like 5")
        return int(number)
    if not 0 < number < 1e12:
        raise UsageError(f"{method}: {name}={value!r} is not a positive number", f"give {name} a positive number")
    return number


def given_parameters(method: str, fields: Mapping[str, dataclasses.Field[Any]], given: Mapping[str, object]) -> Any:
    """The values in `given`, each coerced; unknown names are refused.

    Raises:
        UsageError: an unknown name, or a value of the wrong kind.
    """
    values: dict[str, Value] = {}
    for name, value in given.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise UsageError(
                f"method {method} has no parameter {name!r}", f"its parameters are: {known} (ctxforge methods {method})"
            )
        values[name] = coerce(method, fields[name], value)
    return values


def _flag(method: str, name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _FLAGS:
        return _FLAGS[value.lower()]
    raise UsageError(f"{method}: {name}={value!r} is not true or false", f"write {name}=true or {name}=false")


def _choice(method: str, name: str, value: object, choices: Sequence[str]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise UsageError(f"{method}: {name}={value!r} is not a choice", f"choose one of: {', '.join(choices)}")


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
