"""Which model classes each engine has, and what is known of how each hands on its rope keys: `classes.json`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(__file__).with_name("classes.json").read_text(encoding="utf-8"))
    return document


@functools.cache
def _kinds(engine: str) -> dict[str, str]:
    return {name: kind for kind, entry in _document()[engine]["kinds"].items() for name in entry["names"].split()}


def kind_of(engine: str, name: str | None) -> str | None:
    """The kind of class `name` (or model type, for engines that choose by it) in `engine`; None when it has none.

    A kind is one of those that `classes.json` explains under `means`; `listed` says that the class exists and nothing
    else.
    """
    return None if name is None else _kinds(engine).get(name)


def class_of_type(model_type: str) -> str | None:
    """The causal-LM class of a model type, for configs that name no architecture."""
    name: str | None = _document()["transformers"]["class_of_type"].get(model_type)
    return name
