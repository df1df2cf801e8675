"""The JSON Schema of batch files, from the very dataclasses that they are checked against."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from ctxforge.batch import specs
from ctxforge.recipe import AttachmentChoice, ConversionRecipe, MethodChoice

IDENTIFIER = "https://json-schema.org/draft/2020-12/schema"
_KINDS = (
    *(specs.BatchFile, specs.JobSpec, specs.CalibrateSpec, specs.VerifySpec, specs.PushSpec),
    *(specs.ResourceSpec, specs.MatrixSpec, specs.ExcludeSpec, MethodChoice, AttachmentChoice),
)
# What text, or true and false, may stand for.
_SHORT: dict[str, list[dict[str, Any]]] = {
    "method": [{"type": "string"}],
    "attach": [{"type": "string"}],
    "calibrate": [{"type": "string"}, {"type": "boolean"}],
    "verify": [{"enum": ["smoke", "quick", "standard", "full"]}, {"type": "boolean"}],
    "push": [{"type": "string"}, {"type": "boolean"}],
}


def json_schema() -> dict[str, Any]:
    """The schema of a batch file, for editors and other programs."""
    from pydantic import TypeAdapter

    from ctxforge.calibrate.recipes import CalibrationRecipe

    schema: dict[str, Any] = TypeAdapter(specs.BatchFile).json_schema()
    recipe = TypeAdapter(CalibrationRecipe).json_schema(ref_template="#/$defs/{model}")
    parts = schema["$defs"]
    parts |= recipe.pop("$defs")
    recipe["properties"] = {"base": {"type": "string"}, **recipe["properties"]}
    recipe["properties"]["adapter"] = {"anyOf": [{"type": "string"}, recipe["properties"]["adapter"]]}
    recipe.pop("required", None)
    parts["CalibrationRecipe"] = {**recipe, "additionalProperties": False}
    parts["CalibrateSpec"]["properties"]["recipe"] = {
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/CalibrationRecipe"}],
        "default": "quick",
    }
    job = parts["JobSpec"]
    job.pop("required", None)  # the defaults, or the matrix, may have it
    for name, forms in _SHORT.items():
        entry = job["properties"][name]
        held = entry.get("anyOf") or [{key: value for key, value in entry.items() if key == "$ref"}]
        job["properties"][name] = {"anyOf": [*forms, *held]}
    methods = [{"type": "string"}, {"$ref": "#/$defs/MethodChoice"}, {"$ref": "#/$defs/JobSpec"}]
    axes = parts["MatrixSpec"]["properties"]
    axes["models"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/JobSpec"}]}
    axes["methods"]["items"] = {"anyOf": methods}
    schema["required"] = ["version"]
    _describe(schema)
    return {"$schema": IDENTIFIER, **schema}


def _describe(schema: dict[str, Any]) -> None:
    """Give each entry the words of its docstring."""
    for kind in _KINDS:
        part = schema if kind is specs.BatchFile else schema["$defs"][kind.__name__]
        part["description"] = _summary(kind)
        bases = (ConversionRecipe, kind) if kind is specs.JobSpec else (kind,)
        for base in bases:
            for name, words in described_fields(base):
                if name in part["properties"]:
                    part["properties"][name]["description"] = words


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def described_fields(kind: type) -> Iterator[tuple[str, str]]:
    """Each field that a dataclass's docstring names, with what it says of it."""
    _, _, after = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    for entry in re.split(r"\n(?=    \S)", after.split("\n\n")[0]):
        names, _, words = entry.partition(":")
        for name in names.split(","):
            yield name.strip(), " ".join(words.split())
