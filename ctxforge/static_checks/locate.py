"""Where a key stands in a JSON text, so that an annotation can point at its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')

Path = tuple[str | int, ...]


def find_key(text: str, path: Path) -> tuple[int, int] | None:
    """Line and column, from 1, of the key that `path` leads to in a JSON text; None where it isn't there.

    A step is a key of an object or an index of an array; an element of an array stands where it begins.
    """
    for found, start in _places(text):
        if found == path:
            line = text.count("\n", 0, start) + 1
            return line, start - (text.rfind("\n", 0, start) + 1) + 1
    return None


def _places(text: str) -> Iterator[tuple[Path, int]]:
    """Every key and array element with its path and offset, in order. The text must be valid JSON."""
    steps: list[str | int | None] = []
    key_next = False
    for match in _TOKEN.finditer(text):
        token = match[0]
        in_array = bool(steps) and isinstance(steps[-1], int)
        if in_array and token not in (",", "]", "}"):
            yield _path(steps), match.start()
        if token == "{":
            steps.append(None)
            key_next = True
        elif token == "[":
            steps.append(0)
            key_next = False
        elif token in "}]":
            if steps:
                steps.pop()
            key_next = False
        elif token == ",":
            step = steps[-1] if steps else None
            if isinstance(step, int):
                steps[-1] = step + 1
            key_next = not isinstance(step, int)
        elif key_next and token[0] == '"':
            steps[-1] = json.loads(token)
            key_next = False
            yield _path(steps), match.start()


def _path(steps: list[str | int | None]) -> Path:
    return tuple(step for step in steps if step is not None)
