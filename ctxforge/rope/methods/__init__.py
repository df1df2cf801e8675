"""The method table. Adding a method is one file here and one name in this list."""

from __future__ import annotations

from ctxforge.errors import UsageError
from ctxforge.rope.methods import abf, by_parts, dynamic, llama3, none, ntk, pi, yarn
from ctxforge.rope.methods.base import Method, Request

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (yarn, ntk, by_parts, pi, abf, llama3, dynamic, none)
}

__all__ = ["METHODS", "Method", "Request", "find_method"]


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        UsageError: there is none; the message offers the nearest names.
    """
    if name in METHODS:
        return METHODS[name]
    import difflib

    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown method {name!r}", f"{hint}methods: {', '.join(METHODS)}")
