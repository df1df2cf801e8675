"""Recipes from files and from `key=value` on the command line, checked strictly."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxforge.calibrate.adapters.recipe import named_recipe
from ctxforge.calibrate.recipes.named import find_recipe
from ctxforge.calibrate.recipes.types import CalibrationRecipe
from ctxforge.errors import ResourceError, UsageError

_SUFFIXES = (".toml", ".json")
_BASE = "base"
_SEE = "see docs/calibration.md for its fields"


def read_recipe(name: str, changes: Sequence[str] = (), *, steps: int | None = None) -> CalibrationRecipe:
    """A recipe by name or from a file, with changes.

    A file holds the fields of `CalibrationRecipe`, in sections as there (`[rows]`, `[optimiser]`, ...), and `base`, the
    recipe that it changes; without it the fields' own defaults hold. `adapter` may be a name: lora, rslora, lora+ or
    full.

    Args:
        name: of `ctxforge calibrate --list`, or a path that ends in .toml or .json.
        changes: `section.field=value`, applied in order.
        steps: replaces the recipe's.

    Raises:
        UsageError: an unknown recipe, field or value, with the nearest name.
        ResourceError: the file can't be read.
    """
    recipe = _from_file(Path(name)) if name.endswith(_SUFFIXES) else find_recipe(name)
    document: dict[str, Any] = dataclasses.asdict(recipe)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{change!r} is not a change of the recipe", "write section.field=value")
        _set(document, key.strip(), _value(value.strip()))
        if isinstance(document["adapter"], str):
            document["adapter"] = dataclasses.asdict(named_recipe(document["adapter"]))
    if steps is not None:
        document["steps"] = steps
    return checked(document) if changes or steps is not None else _sensible(recipe)


def checked(document: Mapping[str, Any]) -> CalibrationRecipe:
    """A recipe from plain data; unknown keys and wrong types are refused.

    Raises:
        UsageError: names the first wrong entry.
    """
    from pydantic import TypeAdapter, ValidationError

    plain = dict(document)
    if isinstance(plain.get("adapter"), str):
        plain["adapter"] = dataclasses.asdict(named_recipe(plain["adapter"]))
    _refuse_unknown(plain, CalibrationRecipe, "")
    try:
        return _sensible(TypeAdapter(CalibrationRecipe).validate_python(plain))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"the recipe's {name}: {first['msg']}", _SEE) from None


def _from_file(path: Path) -> CalibrationRecipe:
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except FileNotFoundError:
        raise UsageError(f"the recipe {path} does not exist", "give an existing file, or a recipe's name") from None
    except OSError as error:
        raise ResourceError(f"{path} can't be read: {error.strerror}", "check the path and its permissions") from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid {path.suffix[1:].upper()}: {error}", "correct that place") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no table", "write the fields of a recipe")
    base = found.pop(_BASE, None)
    document: dict[str, Any] = {} if base is None else dataclasses.asdict(find_recipe(str(base)))
    document["name"] = path.stem
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(document.get(key), dict):
            document[key] = {**document[key], **value}
        else:
            document[key] = value
    return checked(document)


def _set(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    inner = document
    for section in sections:
        found = inner.get(section)
        if not isinstance(found, dict):
            raise _unknown(section, [name for name, part in inner.items() if isinstance(part, dict)], "section")
        inner = found
    if last not in inner:
        raise _unknown(last, list(inner), "field")
    if isinstance(inner[last], tuple) and not isinstance(value, list):
        value = [] if value is None else [value]
    inner[last] = value


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself; none and lists separated by commas as people write them."""
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return [_value(part) for part in text.split(",")] if "," in text else text


def _refuse_unknown(document: Mapping[str, Any], kind: Any, where: str) -> None:
    """Pydantic names an unknown key; this says which one was meant. And it takes true for 1; this does not."""
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    defaults = {name: entry.default_factory for name, entry in fields.items()}
    for name, value in document.items():
        if name not in fields:
            raise _unknown(f"{where}{name}", [f"{where}{one}" for one in fields], "field")
        if isinstance(value, bool) and not isinstance(fields[name].default, bool):
            raise UsageError(f"the recipe's {where}{name}: {value} is no value for it", _SEE)
        section = defaults[name]
        if isinstance(value, Mapping) and dataclasses.is_dataclass(section):
            _refuse_unknown(value, section, f"{name}.")


def _unknown(name: str, known: Sequence[str], what: str) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return UsageError(f"a recipe has no {what} {name!r}", hint)


def _sensible(recipe: CalibrationRecipe) -> CalibrationRecipe:
    """The recipe itself, unless one of its numbers can't be."""
    rows, optimiser, objective, held_out = recipe.rows, recipe.optimiser, recipe.objective, recipe.held_out
    recipe.adapter.checked()
    wrong = {
        "steps": recipe.steps < 1,
        "rows.count": rows.count is not None and rows.count < 1,
        "rows.chunks": rows.chunks < 1,
        "rows.reach": not 1 <= rows.reach < math.inf,
        "rows.short_share": not 0 <= rows.short_share <= 1,
        "rows.first_share": not 0 <= rows.first_share < 1,
        "rows.group": rows.group is not None and rows.group < 2,
        "optimiser.learning_rate": optimiser.learning_rate is not None and not 0 < optimiser.learning_rate < 1,
        "optimiser.whole_learning_rate": optimiser.whole_learning_rate is not None
        and not 0 <= optimiser.whole_learning_rate < 1,
        "optimiser.warmup": optimiser.warmup < 0,
        "optimiser.final": not 0 <= optimiser.final <= 1,
        "optimiser.betas": not all(0 <= beta < 1 for beta in optimiser.betas),
        "optimiser.weight_decay": not 0 <= optimiser.weight_decay < 1,
        "optimiser.clip": optimiser.clip is not None and not 0 < optimiser.clip < math.inf,
        "objective.context": objective.context is not None and objective.context < 1,
        "objective.refresh": objective.refresh is not None and objective.refresh < 1,
        "objective.ceiling": not 0 < objective.ceiling < math.inf,
        "objective.restoration": not 0 <= objective.restoration < 1e6,
        "held_out.share": not 0 <= held_out.share < 1,
        "held_out.windows": held_out.windows < 1,
        "held_out.short_windows": held_out.short_windows < 1,
        "held_out.every": held_out.every is not None and held_out.every < 1,
        "held_out.allowed_short": not 0 <= held_out.allowed_short < math.inf,
        "held_out.patience": held_out.patience is not None and held_out.patience < 1,
        "memory.tokens_at_once": recipe.memory.tokens_at_once is not None and recipe.memory.tokens_at_once < 1,
        "anneal_share": not 0 < recipe.anneal_share <= 1,
    }
    bad = [name for name, is_wrong in wrong.items() if is_wrong]
    if bad:
        raise UsageError(f"the recipe's {bad[0]} is out of range", _SEE)
    return recipe
