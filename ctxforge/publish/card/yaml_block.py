"""YAML of others: read without running or expanding anything, and told of what is odd."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

_LARGEST = 4 << 20
_MOST_VALUES = 20_000
_DEEPEST = 40
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What PyYAML's safe constructors raise over values such as `!!int ""`, beside its own errors.
_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError)
_DROPPED = object()


class _Loader(_BASE):  # type: ignore[misc]
    """A safe loader that finds keys written twice, and takes no merge keys: nobody's card needs them."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[str] = []
        self._root = True

    def flatten_mapping(self, node: Any) -> None:
        """Refuse `<<`, whose expansion can be as large as the writer likes."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", node.start_mark)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As the base does; keys that the outermost mapping holds twice are remembered."""
        if self._root:
            self._root = False
            seen: dict[str, Any] = {}
            for key, value in node.value:
                if key.value in seen and _scalar(seen[key.value]) != _scalar(value):
                    self.twice.append(str(key.value))
                seen[key.value] = value
        return super().construct_mapping(node, deep)


def read_block(text: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """A YAML mapping as plain data, and remarks on what was left out of it.

    Keys that stand twice with different values are left out: readers disagree on which one counts.
    """
    if len(text) > _LARGEST:
        return {}, (f"the source's card has {len(text)} characters of metadata: left out",)
    try:
        loader = _Loader(text)
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()
    except _ERRORS as error:
        return {}, (f"the metadata of the source's card is no sound YAML, and was left out: {_cause(error)}",)
    if found is None:
        return {}, ()
    if not isinstance(found, dict):
        return {}, ("the metadata of the source's card is no mapping, and was left out",)
    kept: dict[str, Any] = {}
    remarks = []
    for key, value in found.items():
        if not isinstance(key, str):
            remarks.append(f"the source's card has a key that is no text, left out: {str(key)[:60]!r}")
        elif key in loader.twice:
            remarks.append(f"the source's card says {key!r} twice, differently: left out")
        elif (plain := _plain(value, [_MOST_VALUES])) is _DROPPED:
            remarks.append(f"the source's card has no plain data under {key!r}: left out")
        else:
            kept[key] = plain
    return kept, tuple(remarks)


def _scalar(node: Any) -> object:
    """What tells two values apart; values with parts are never the same."""
    return (node.tag, node.value) if isinstance(node.value, str) else object()


def _plain(value: Any, left: list[int], depth: int = 0) -> Any:
    """A copy of text, numbers, lists and mappings; `_DROPPED` for anything else, and for too much of it."""
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        return _DROPPED
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _DROPPED
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, list):
        entries = [_plain(entry, left, depth + 1) for entry in value]
        return _DROPPED if any(entry is _DROPPED for entry in entries) else entries
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        pairs = {key: _plain(entry, left, depth + 1) for key, entry in value.items()}
        return _DROPPED if any(entry is _DROPPED for entry in pairs.values()) else pairs
    return _DROPPED


def _cause(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 2})" if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    return " ".join(str(problem).split())[:200] + where
