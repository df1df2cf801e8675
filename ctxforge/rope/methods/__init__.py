"""The method table. Adding a method is one file here and one name in this list.

A module holds one `METHOD`, or several in `METHODS` where they share their formula.
"""

from __future__ import annotations

from types import ModuleType

from ctxforge.errors import UsageError
from ctxforge.rope.methods import (
    abf,
    alibi_interpolation,
    by_parts,
    clex,
    clex_dynamic,
    drope,
    dynamic,
    dynamic_ntk,
    dynamic_yarn,
    giraffe,
    learned_interpolation,
    llama3,
    longrope,
    longrope2,
    mrrope,
    none,
    ntk,
    pi,
    pose_yarn,
    prope,
    randomised,
    xpos,
    yarn,
    yarn_paper,
)
from ctxforge.rope.methods.base import Method, Request

_MODULES: tuple[ModuleType, ...] = (
    yarn,
    mrrope,
    ntk,
    by_parts,
    pi,
    abf,
    llama3,
    yarn_paper,
    pose_yarn,
    longrope,
    longrope2,
    giraffe,
    clex,
    prope,
    drope,
    randomised,
    dynamic,
    dynamic_ntk,
    dynamic_yarn,
    clex_dynamic,
    xpos,
    learned_interpolation,
    alibi_interpolation,
    none,
)


def _rows(module: ModuleType) -> tuple[Method, ...]:
    rows: tuple[Method, ...] = module.METHODS if hasattr(module, "METHODS") else (module.METHOD,)
    return rows


METHODS: dict[str, Method] = {method.name: method for module in _MODULES for method in _rows(module)}
ALIASES: dict[str, str] = {alias: method.name for method in METHODS.values() for alias in method.aliases}

__all__ = ["ALIASES", "METHODS", "Method", "Request", "find_method"]


def find_method(name: str) -> Method:
    """The method called `name`, or known under it.

    Raises:
        UsageError: there is none; the message offers the nearest names.
    """
    if name in METHODS:
        return METHODS[name]
    if name in ALIASES:
        return METHODS[ALIASES[name]]
    import difflib

    from ctxforge.rope.modifiers import MODIFIERS

    if name in MODIFIERS:
        raise UsageError(f"{name!r} modifies a method and is none", f"write --method yarn+{name}, or none+{name}")
    near = difflib.get_close_matches(name, [*METHODS, *ALIASES], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown method {name!r}", f"{hint}methods: {', '.join(METHODS)}")
