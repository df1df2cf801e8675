"""What changed from one JSON document to another, value by value, and how to make the second from the first."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from ctxforge.differences.types import JsonChange, Path


def json_changes(before: Any, after: Any) -> tuple[JsonChange, ...]:
    """The changes that make `after` out of `before`, in order of the keys.

    Objects are compared by key, whatever the order; arrays by index, so that an element put in front changes all. Types
    count: 4 and 4.0 differ, as they do for readers in strict languages, and so do true and 1. `apply_changes(before,
    json_changes(before, after))` equals `after`.
    """
    return tuple(_changes(before, after, ()))


def _changes(before: Any, after: Any, path: Path) -> Iterator[JsonChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if key not in after:
                yield JsonChange((*path, key), "removed", before[key])
            elif key not in before:
                yield JsonChange((*path, key), "added", None, after[key])
            else:
                yield from _changes(before[key], after[key], (*path, key))
    elif isinstance(before, list) and isinstance(after, list):
        both = min(len(before), len(after))
        for index in range(both):
            yield from _changes(before[index], after[index], (*path, index))
        # From the end, so that each index is right when it is removed.
        for index in range(len(before) - 1, both - 1, -1):
            yield JsonChange((*path, index), "removed", before[index])
        for index in range(both, len(after)):
            yield JsonChange((*path, index), "added", None, after[index])
    elif type(before) is not type(after) or repr(before) != repr(after):
        yield JsonChange(path, "changed", before, after)


def apply_changes(document: Any, changes: Iterable[JsonChange]) -> Any:
    """A copy of `document` with the changes made, in their order."""
    holder = [copy.deepcopy(document)]
    for change in changes:
        target: Any = holder
        steps: Path = (0, *change.path)
        for step in steps[:-1]:
            target = target[step]
        if change.kind == "removed":
            del target[steps[-1]]
        elif change.kind == "added" and isinstance(target, list):
            target.insert(int(steps[-1]), copy.deepcopy(change.after))
        else:
            target[steps[-1]] = copy.deepcopy(change.after)
    return holder[0]


def path_text(path: Path) -> str:
    """A path for people: `rope_scaling.long_factor[3]`; a key with other characters stands in quotes."""
    import json

    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.replace("_", "").replace("-", "").isalnum():
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step)}]"
    return text or "(the whole document)"
