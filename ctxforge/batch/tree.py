"""What a batch file says, with the place of every word: plain data that remembers its line and column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ctxforge.errors import UsageError

Plain = bool | int | float | str | None


@dataclass(frozen=True)
class Place:
    """Where something stands; line and column count from 1, and are None where the format doesn't tell (TOML)."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        if self.line is None:
            return self.file
        return f"{self.file}:{self.line}" if self.column is None else f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Node:
    """A value of a batch file: a scalar, a list of nodes or a mapping of names to nodes.

    Attributes:
        value: what it is.
        place: where it begins.
        keys: of a mapping, where each name stands.
    """

    value: Plain | list[Node] | dict[str, Node]
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)

    @property
    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    @property
    def mapping(self) -> dict[str, Node]:
        """The entries of a mapping; none where it is none."""
        return self.value if isinstance(self.value, dict) else {}

    def entries(self, what: str) -> dict[str, Node]:
        """The entries, where it must be a mapping.

        Raises:
            UsageError: it is none; `what` says what it stands for.
        """
        if not isinstance(self.value, dict):
            raise wrong(self.place, f"{what} is {_kind(self.value)}, not a mapping", "write KEY: VALUE lines below it")
        return self.value

    def items(self, what: str) -> list[Node]:
        """The items, where it must be a list.

        Raises:
            UsageError: it is none.
        """
        if not isinstance(self.value, list):
            raise wrong(self.place, f"{what} is {_kind(self.value)}, not a list", "write one `- ITEM` a line below it")
        return self.value

    def at(self, path: Iterable[str | int]) -> Place:
        """The place of the deepest part of `path` that is there; of its name where it is a mapping's entry."""
        here, place = self, self.place
        for step in path:
            if isinstance(here.value, dict) and isinstance(step, str) and step in here.value:
                place = here.keys.get(step, here.value[step].place)
                here = here.value[step]
            elif isinstance(here.value, list) and isinstance(step, int) and 0 <= step < len(here.value):
                here = here.value[step]
                place = here.place
            else:
                break
        return place

    def without(self, *names: str) -> Node:
        """A mapping without some entries."""
        kept = {key: node for key, node in self.mapping.items() if key not in names}
        return Node(kept, self.place, {key: self.keys[key] for key in kept if key in self.keys})


def mapping_of(entries: Mapping[str, Node], place: Place) -> Node:
    """A mapping whose entries stand where they stood."""
    return Node(dict(entries), place, {key: node.place for key, node in entries.items()})


def merged(base: Node, over: Node, sections: Sequence[str] = ()) -> Node:
    """Two mappings as one, `over` winning; entries in `sections` are themselves merged where both are mappings."""
    entries = {**base.mapping}
    for key, node in over.mapping.items():
        before = entries.get(key)
        both = key in sections and before is not None and isinstance(before.value, dict)
        entries[key] = merged(before, node) if both and isinstance(node.value, dict) and before else node
    return Node(entries, over.place, {**base.keys, **over.keys})


def wrong(place: Place, cause: str, remedy: str) -> UsageError:
    """A mistake in a batch file: its place, then its cause."""
    return UsageError(f"{place}: {cause}", remedy)


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")
