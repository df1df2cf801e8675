"""The reference page of calibration recipes: names, fields and defaults from the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from ctxforge.calibrate.adapters.recipe import AdapterRecipe
from ctxforge.calibrate.recipes import (
    RECIPES,
    CalibrationRecipe,
    HeldOutRecipe,
    MemoryRecipe,
    ObjectiveRecipe,
    OptimiserRecipe,
    RowRecipe,
)

SECTIONS: dict[str, Any] = {
    "": CalibrationRecipe,
    "rows": RowRecipe,
    "adapter": AdapterRecipe,
    "optimiser": OptimiserRecipe,
    "objective": ObjectiveRecipe,
    "held_out": HeldOutRecipe,
    "memory": MemoryRecipe,
}


def recipes_page(note: str) -> str:
    """Every recipe's differences from the defaults, and every field."""
    lines = ["# Calibration recipes", "", note, "See [calibration](../calibration.md) for how they are used.", ""]
    lines += ["| recipe | | steps | changes of the defaults |", "|---|---|---|---|"]
    for recipe in RECIPES.values():
        lines.append(f"| `{recipe.name}` | {recipe.about} | {recipe.steps} | {_changes(recipe)} |")
    for section, kind in SECTIONS.items():
        lines += ["", f"## {section or 'top level'}", "", "| field | default | |", "|---|---|---|"]
        told = _explanations(kind)
        for field in dataclasses.fields(kind):
            if section or field.name not in SECTIONS:
                lines.append(f"| `{field.name}` | {_default(field)} | {told.get(field.name, '')} |")
    return "\n".join(lines) + "\n"


def _changes(recipe: CalibrationRecipe) -> str:
    plain = CalibrationRecipe(name=recipe.name, about=recipe.about, steps=recipe.steps)
    found = [f"scale_base={recipe.scale_base}"] if recipe.scale_base != plain.scale_base else []
    for section in filter(None, SECTIONS):
        ours, theirs = getattr(recipe, section), getattr(plain, section)
        for field in dataclasses.fields(ours):
            value = getattr(ours, field.name)
            if value != getattr(theirs, field.name):
                found.append(f"{section}.{field.name}={_shown(value)}")
    return "<br>".join(f"`{one}`" for one in found) or "-"


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else _shown(field.default)


def _shown(value: Any) -> str:
    return (
        ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if value is None else str(value)
    )


def _explanations(kind: Any) -> dict[str, str]:
    """What the docstring says of each field: the indented entries under Attributes or Args."""
    text = inspect.getdoc(kind) or ""
    _, _, listed = text.partition("Attributes:" if "Attributes:" in text else "Args:")
    found: dict[str, str] = {}
    for entry in re.split(r"\n {4}(?=\w)", listed):
        names, _, words = entry.strip().partition(":")
        for name in names.split(","):
            found[name.strip()] = " ".join(words.split())
    return found
