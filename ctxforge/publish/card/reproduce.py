"""The commands that make a conversion again, from its record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ctxforge.publish.card.record import Record, mapping, read_record, text
from ctxforge.sources import BUNDLED

_MOST_STAGES = 20


def commands(record: Record, *, source: str, revision: str | None, out: str) -> tuple[str, ...]:
    """`ctxforge extend ...` of every conversion since the source, each with a `ctxforge calibrate ...` a calibration.

    Folders of the machine that converted are not told: of a path, the last part stands in the command.

    Args:
        record: of the conversion; empty without a recipe.
        source: as `extend` takes it, where the conversion was made from it and not from a conversion of it.
        revision: of a Hub source.
        out: the folder to write.
    """
    stages = _stages(record)
    lines: list[str] = []
    first = stages[-1]
    if len(stages) > 1 or not made_from(first, source):
        source, revision = _recorded(first)
    for left, stage in enumerate(reversed(stages), 1 - len(stages)):
        folder = out if left == 0 else f"{out}-before-{-left}"
        lines += _stage(stage, source, revision, folder)
        source, revision = folder, None
    return tuple(lines)


def _stages(record: Record) -> list[Record]:
    """The conversion and those that its source came of, as long as that is a folder; the last one first."""
    found = [record]
    while not found[-1].source_revision and found[-1].previous and len(found) < _MOST_STAGES:
        found.append(read_record(found[-1].previous))
    return [one for one in found if one.recipe] or [record]


def _recorded(record: Record) -> tuple[str, str | None]:
    if record.source_revision:
        return record.source_name.partition("@")[0], record.source_revision
    return source_name(record), None


def _stage(record: Record, source: str, revision: str | None, out: str) -> list[str]:
    if not record.recipe:
        return []
    steps = len(record.calibrations)
    names = [out if step == steps else f"{out}-step-{step}" for step in range(steps + 1)]
    lines = [shlex.join([*_extend(record.recipe, source, revision), "--out", names[0]])]
    for entry, before, after in zip(record.calibrations, names, names[1:], strict=False):
        told = [*_calibrate(entry), "--source", source, "--out", after]
        lines.append(shlex.join(["ctxforge", "calibrate", before, *told]))
    return lines


def made_from(record: Record, source: str) -> bool:
    """Whether a record is of a conversion of just this source, as far as it says."""
    return not record.source_name or source in (record.source_name.partition("@")[0], source_name(record))


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


def _calibrate(entry: Mapping[str, Any]) -> list[str]:
    found = ["--recipe", text(entry, "recipe") or "RECIPE"]
    for part in data_names(entry):
        found += ["--data", part]
    if isinstance(entry.get("seed"), int):
        found += ["--seed", str(entry["seed"])]
    return found


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
