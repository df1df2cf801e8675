"""Names and short forms in batch files: which entries there are, and what text stands for where fields are due."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from ctxforge.batch.specs import SECTIONS
from ctxforge.batch.tree import Node, Place, mapping_of, merged, wrong
from ctxforge.errors import UsageError
from ctxforge.recipe import parse_attachment, parse_method

# The entry that text alone stands for.
_SHORT = {"calibrate": "recipe", "verify": "tier", "push": "repo"}


def unknown(place: Place, name: str, known: Iterable[str], what: str) -> UsageError:
    """The error for a name that isn't one, with the nearest that is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return wrong(
        place,
        f"{what} has no entry {name!r}",
        f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}",
    )


def refuse_unknown(node: Node, kind: Any, what: str) -> None:
    """Refuse entries of a mapping that are no fields of the dataclass `kind`.

    Raises:
        UsageError: with the place of the first, and the nearest field.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name in node.mapping:
        if name not in known:
            raise unknown(node.at([name]), name, known, what)


def with_sections(job: Node) -> Node:
    """A job's entries with every short form written out.

    Raises:
        UsageError: text that names no method or attachment, with its place.
    """
    long = {name: _written_out(name, node) for name, node in job.mapping.items()}
    return Node(long, job.place, job.keys)


def over_defaults(defaults: Node, job: Node) -> Node:
    """A job with what the defaults say where it is silent; `false` or nothing switches a section of theirs off."""
    return merged(defaults, with_sections(job), SECTIONS)


def _written_out(name: str, node: Node) -> Node:
    if name in _SHORT:
        if node.value is False:
            return Node(None, node.place)
        if node.value is True:
            return mapping_of({}, node.place)
        if isinstance(node.value, str):
            return mapping_of({_SHORT[name]: node}, node.place)
    if name in ("method", "attach") and isinstance(node.value, str):
        return _parsed(name, node)
    return node


def _parsed(name: str, node: Node) -> Node:
    from ctxforge.batch.reading import located

    try:
        chosen = (parse_method if name == "method" else parse_attachment)(str(node.value))
    except UsageError as error:
        raise wrong(node.place, error.cause, error.remedy) from None
    fields = {key: value for key, value in dataclasses.asdict(chosen).items() if value}
    return located(fields, node.place)
