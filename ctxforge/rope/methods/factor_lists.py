"""Lists of numbers, one a pair, that a search or a training run left behind: read from files and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from ctxforge.errors import UsageError

_LARGEST_FILE = 16 * 2**20
_KEYS = ("long_factor", "factors", "lambda")
_PARENTS = ("rope_parameters", "rope_scaling", "text_config")


def read_numbers(method: str, name: str, value: object) -> tuple[float, ...]:
    """The list that `value` is, or that the file `value` holds.

    A file is JSON (a list; a rope dict or a whole config with `long_factor`) or text with one number a line, or one
    comma-separated row a layer, as microsoft/LongRoPE writes them, where all rows must agree.

    Args:
        method, name: for the message.
        value: a sequence of numbers, or a path.

    Raises:
        UsageError: unreadable, no list, rows that differ, or an entry that is not a finite number.
    """
    if isinstance(value, str | Path):
        return _from_file(method, name, Path(value))
    if isinstance(value, list | tuple):
        return _floats(f"{method}: {name}", value)
    raise UsageError(f"{method}: {name}={value!r} is no list of numbers", f"give {name} a list, or the path of a file")


def check_list(
    method: str, name: str, numbers: tuple[float, ...], count: int, *, monotone: bool, above: float = 0.0
) -> None:
    """Refuse a list that does not fit the model or that no such search could have left.

    Args:
        method, name: for the message.
        numbers: the list.
        count: the pairs it must cover.
        monotone: whether it must never decrease.
        above: every number must be larger.

    Raises:
        UsageError: the wrong length, sign or order.
    """
    if len(numbers) != count:
        raise UsageError(
            f"{method}: {name} holds {len(numbers)} numbers and this model rotates {count} pairs",
            "give one number for each rotated pair (half the rotated dimensions of a head)",
        )
    for i, number in enumerate(numbers):
        if not number > above:
            raise UsageError(
                f"{method}: number {i} of {name} is {number:g}", f"every number must be above {above:g}: check the file"
            )
    for i in range(1, count):
        if monotone and numbers[i] < numbers[i - 1]:
            raise UsageError(
                f"{method}: {name} decreases at pair {i}, from {numbers[i - 1]:g} to {numbers[i]:g}",
                "LongRoPE's lists never decrease; pass monotone=false to take this one as it is",
            )


def _from_file(method: str, name: str, path: Path) -> tuple[float, ...]:
    where = f"{method}: {name}={path}"
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UsageError(f"{where} is larger than 16 MiB", "give a file that holds the list alone")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a text file"
        raise UsageError(f"{where} can't be read: {reason}", f"give {name} the path of a JSON or CSV file") from None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise UsageError(f"{where} is not valid JSON", "repair the file, or write one number a line") from None
        found = content if isinstance(content, list) else _in_mapping(content)
        if not isinstance(found, list):
            raise UsageError(f"{where} holds no list", 'write a JSON list, or {"long_factor": [...]}')
        return _floats(where, found)
    return _rows(where, text)


def _in_mapping(content: object) -> object:
    if not isinstance(content, Mapping):
        return None
    for key in _KEYS:
        if key in content:
            return content[key]
    for key in _PARENTS:
        found = _in_mapping(content.get(key))
        if found is not None:
            return found
    return None


def _rows(where: str, text: str) -> tuple[float, ...]:
    lines = [line.strip().strip(",") for line in text.splitlines() if line.strip()]
    rows = [_floats(where, line.split(",")) for line in lines]
    if not rows:
        raise UsageError(f"{where} is empty", "write one number a line")
    if all(len(row) == 1 for row in rows):
        return tuple(row[0] for row in rows)
    if any(row != rows[0] for row in rows):
        raise UsageError(
            f"{where} holds {len(rows)} rows that differ: one list a layer",
            "no stock loader takes a list a layer; give one list for all layers",
        )
    return rows[0]


def _floats(where: str, entries: Iterable[object]) -> tuple[float, ...]:
    numbers = []
    for i, entry in enumerate(entries):
        try:
            number = float(entry) if isinstance(entry, int | float | str) and not isinstance(entry, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"{where}: number {i} is {entry!r}", "every entry must be a finite number")
        numbers.append(number)
    if not numbers:
        raise UsageError(f"{where} is an empty list", "give one number for each rotated pair")
    return tuple(numbers)
