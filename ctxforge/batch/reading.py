"""Batch files as text: YAML with places, JSON through the same reader, TOML without places."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from ctxforge.batch.tree import Node, Place, Plain, wrong
from ctxforge.errors import ResourceError, UsageError

SUFFIXES = (".yaml", ".yml", ".json", ".toml")
LARGEST = 4 * 1024 * 1024
"""Bytes of a batch file, at most."""

_DEEPEST, _MOST = 64, 200_000
_TEXT, _LIST, _MAP = ("tag:yaml.org,2002:" + kind for kind in ("str", "seq", "map"))
# The core schema of YAML 1.2: `no` and `1:30` are text, `1e5` is a number.
_WHOLE = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Plain] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def read_file(path: Path) -> Node:
    """The mapping that a batch file holds.

    Raises:
        UsageError: missing, too large, not of a known format, not valid, or no mapping; with line and column.
        ResourceError: it can't be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is no batch file", f"give one that ends in {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"the batch file {path} does not exist", "check the path") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise wrong(Place(str(path), line), "is not UTF-8 text", "save the file as UTF-8") from None
    except OSError as error:
        raise ResourceError(f"{path} can't be read: {error.strerror}", "check the path and its permissions") from None
    if len(data) > LARGEST:
        raise UsageError(f"{path} has more than {LARGEST} bytes", "split it into files and include them")
    return read_text(text, str(path), path.suffix.lower())


def read_text(text: str, name: str, suffix: str = ".yaml") -> Node:
    """As `read_file`, from text; `name` is what messages call it."""
    if suffix == ".toml":
        return _toml(text, name)
    if suffix == ".json":
        _check_json(text, name)
        text = text.replace("\t", " ")  # YAML allows no tabs there, and within JSON's strings there are none
    node = _yaml(text, name)
    if not isinstance(node.value, dict):
        raise wrong(node.place, "a batch file holds a mapping", "begin with `version: 1`")
    return node


def _toml(text: str, name: str) -> Node:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not valid TOML: {error}", "correct that place") from None
    return located(found, Place(name))


def located(value: Any, place: Place) -> Node:
    """Plain data as nodes that all stand at one place."""
    if isinstance(value, dict):
        entries = {str(key): located(inner, place) for key, inner in value.items()}
        return Node(entries, place, dict.fromkeys(entries, place))
    if isinstance(value, list | tuple):
        return Node([located(inner, place) for inner in value], place)
    if value is None or isinstance(value, bool | int | float | str):
        return Node(value, place)
    raise wrong(place, f"{value} is of a kind that no entry takes", "write it as text, in quotation marks")


def _check_json(text: str, name: str) -> None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        place = Place(name, error.lineno, error.colno)
        raise wrong(place, f"not valid JSON: {error.msg}", "correct that place") from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply", "write it flatter") from None


def _yaml(text: str, name: str) -> Node:
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
        """Every plain scalar stays text; `_scalar` decides what it means."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  the base class's own attribute

    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(name) if mark is None else Place(name, mark.line + 1, mark.column + 1)
        raise wrong(place, f"not valid YAML: {error.problem or error.context}", "correct that place") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not valid YAML: {error}", "correct that place") from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply", "write it flatter") from None
    if root is None:
        raise UsageError(f"{name} is empty", "begin with `version: 1`")
    return _Builder(name).build(root, 0)


class _Builder:
    """Turns the nodes of PyYAML into ours; counts them, because aliases can stand for any number."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made = 0

    def build(self, node: Any, depth: int) -> Node:
        """One node and all below it."""
        place = self._place(node)
        self._made += 1
        if depth > _DEEPEST or self._made > _MOST:
            raise wrong(place, "too deeply nested, or its aliases stand for too much", "write it flatter")
        if node.id == "scalar" and node.tag == _TEXT:
            return Node(_whole(node.value, place) if node.style is not None else _scalar(node.value), place)
        if node.id == "sequence" and node.tag == _LIST:
            return Node([self.build(item, depth + 1) for item in node.value], place)
        if node.id == "mapping" and node.tag == _MAP:
            return self._mapping(node, place, depth)
        raise wrong(place, f"the tag {node.tag} is not taken here", "write plain values")

    def _mapping(self, node: Any, place: Place, depth: int) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        shared: list[Node] = []
        for key, value in node.value:
            where = self._place(key)
            if key.id != "scalar":
                raise wrong(where, "a name is a list or a mapping", "write names as text")
            if key.value == "<<" and key.style is None:
                below = self.build(value, depth + 1)
                shared += below.value if isinstance(below.value, list) else [below]
                continue
            if key.value in entries:
                raise wrong(where, f"{key.value!r} is given twice (first in line {keys[key.value].line})", "keep one")
            entries[key.value], keys[key.value] = self.build(value, depth + 1), where
        for below in shared:
            for name, inner in below.entries("what << names").items():
                if name not in entries:
                    entries[name], keys[name] = inner, below.keys[name]
        return Node(entries, place, keys)

    def _place(self, node: Any) -> Place:
        return Place(self._name, node.start_mark.line + 1, node.start_mark.column + 1)


def _whole(text: str, place: Place) -> str:
    """Quoted text, with the two halves that JSON writes a rare character in put together."""
    if text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise wrong(place, "holds half a character", "write the character itself") from None


def _scalar(text: str) -> Plain:
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text) and len(text) < 40:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    return float(text) if _REAL.fullmatch(text) else text
