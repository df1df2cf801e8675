"""The commands that make a conversion again, from its record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ctxforge.publish.card.record import Record, mapping, text
from ctxforge.sources import BUNDLED


def commands(record: Record, *, source: str, revision: str | None, out: str) -> tuple[str, ...]:
    """`ctxforge extend ...`, then a `ctxforge calibrate ...` for every calibration; empty without a recipe.

    Folders of the machine that converted are not told: of a path, the last part stands in the command.

    Args:
        record: of the conversion.
        source: as `extend` takes it.
        revision: of a Hub source.
        out: the folder to write.
    """
    if not record.recipe:
        return ()
    steps = len(record.calibrations)
    names = [out if step == steps else f"{out}-step-{step}" for step in range(steps + 1)]
    lines = [shlex.join([*_extend(record.recipe, source, revision), "--out", names[0]])]
    for entry, before, after in zip(record.calibrations, names, names[1:], strict=False):
        lines.append(shlex.join(["ctxforge", "calibrate", before, *_calibrate(entry, source), "--out", after]))
    return tuple(lines)


def source_name(record: Record) -> str:
    """The recorded source without the folders that lead to it."""
    name = record.source_name.rstrip("/")
    return name if name == BUNDLED else name.replace("\\", "/").rsplit("/", 1)[-1] or "SOURCE"


def _extend(recipe: Mapping[str, Any], source: str, revision: str | None) -> list[str]:
    method, attach = mapping(recipe, "method"), mapping(recipe, "attach")
    found = ["ctxforge", "extend", source]
    if revision:
        found += ["--revision", revision]
    modifiers = [str(entry) for entry in method.get("modifiers") or ()]
    name = "+".join([text(method, "name") or "none", *modifiers])
    if name != "none" or not attach:
        found += ["--method", name]
    for key, value in mapping(method, "parameters").items():
        found += ["--param", f"{key}={_value(value)}"]
    if method.get("temperature") is not None:
        found += ["--temperature", str(method["temperature"])]
    if attach:
        given = ",".join(f"{key}={_value(value)}" for key, value in mapping(attach, "parameters").items())
        found += ["--attach", text(attach, "name") + (f":{given}" if given else "")]
    for key in ("to", "original_length", "trained_length"):
        if recipe.get(key) is not None:
            found += [f"--{key.replace('_', '-')}", str(recipe[key])]
    if recipe.get("portability") not in (None, "widest"):
        found += ["--portability", str(recipe["portability"])]
    return found


def _calibrate(entry: Mapping[str, Any], source: str) -> list[str]:
    found = ["--recipe", text(entry, "recipe") or "RECIPE"]
    for part in data_names(entry):
        found += ["--data", part]
    if isinstance(entry.get("seed"), int):
        found += ["--seed", str(entry["seed"])]
    return [*found, "--source", source]


def data_names(entry: Mapping[str, Any]) -> list[str]:
    """The data sources of a calibration as `--data` takes them, files without their folders."""
    sources = entry.get("data")
    parts = [one for one in sources if isinstance(one, Mapping)] if isinstance(sources, list) else []
    return [_data(mapping(one, "source")) for one in parts]


def _data(source: Mapping[str, Any]) -> str:
    named = text(source, "location")
    if text(source, "kind") == "hub":
        named = f"hf://{named}"
        config, split, revision = (text(source, key) for key in ("config", "split", "revision"))
        named += f":{config}" if config else ""
        named += f"{':' if not config else ''}:{split}" if split else ""
        named += f"@{revision}" if revision else ""
    else:
        named = named.replace("\\", "/").rsplit("/", 1)[-1]
    column = "repositories" if source.get("by_repository") is True else text(source, "column")
    weight = source.get("weight")
    named += f"#{column}" if column else ""
    return (named or "DATA") + (f"::{weight:g}" if isinstance(weight, int | float) else "")


def _value(value: Any) -> str:
    """As the command line takes it; a file's path without its folders."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "/".join(str(entry) for entry in value)
    written = str(value)
    return written.rsplit("/", 1)[-1] if written.startswith(("/", "~", "./", "../")) else written
