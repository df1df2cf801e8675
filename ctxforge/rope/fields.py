"""Reading numbers out of a config that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ctxforge.errors import CheckpointError

_REPAIR = "repair config.json, or take the checkpoint from its original source again"


def integer(config: Mapping[str, Any], key: str, default: int | None, *, high: int, low: int = 1) -> int:
    """`config[key]` as an integer in [low, high]; integral floats such as 4096.0 count, as readers accept them.

    Raises:
        CheckpointError: the key is missing without a default, is no number, or is out of range.
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise CheckpointError(f"config.json has no {key}", _REPAIR)
        return default
    number = _number(key, value)
    if number != int(number):
        raise CheckpointError(f"config.json: {key} is {value!r}, not a whole number", _REPAIR)
    if not low <= number <= high:
        raise CheckpointError(f"config.json: {key} is {value!r}, outside {low} ... {high}", _REPAIR)
    return int(number)


def real(config: Mapping[str, Any], key: str, default: float | None, *, low: float = 0.0) -> float:
    """`config[key]` as a finite float above `low`.

    Raises:
        CheckpointError: the key is missing without a default, is no number, not finite, or not above `low`.
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise CheckpointError(f"config.json has no {key}", _REPAIR)
        return default
    number = _number(key, value)
    if not low < number < 1e15:
        raise CheckpointError(f"config.json: {key} is {value!r}, not between {low:g} and 1e15", _REPAIR)
    return number


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """`config[key]` as a boolean.

    Raises:
        CheckpointError: the value is something else.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {value!r}, not true or false", _REPAIR)
    return value


def table(config: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """`config[key]` as an object, None when absent, null or empty (readers treat an empty dict as absent).

    Raises:
        CheckpointError: the value is something else.
    """
    value = config.get(key)
    if value is None or value == {}:
        return None
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key} is {type(value).__name__}, not an object", _REPAIR)
    return value


def reals(config: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """`config[key]` as `count` positive finite numbers.

    Raises:
        CheckpointError: it is no list, has another length, or holds something else.
    """
    value = config.get(key)
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
        raise CheckpointError(
            f"config.json: {key} must be a list of {count} numbers, one a rotated pair; found {found}", _REPAIR
        )
    numbers = tuple(_number(key, entry) for entry in value)
    if not all(number > 0 for number in numbers):
        raise CheckpointError(f"config.json: {key} holds a number that is not positive", _REPAIR)
    return numbers


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"config.json: {key} is {value!r:.60}, not a number", _REPAIR)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CheckpointError(f"config.json: {key} is not a finite number", _REPAIR)
    return number
