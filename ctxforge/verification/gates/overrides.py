"""What a user's recipe or gate file changes: thresholds, and which gates there are.

    [gates]
    short_nll = 0.02            # another threshold
    use = false                 # not judged
    retrieval = true            # judged, and inconclusive when it was not measured
    long_nll = { threshold = 0.2, gross = 1.0 }

The same as a JSON object `{"gates": {...}}`.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.errors import ResourceError, UsageError
from ctxforge.verification.gates.defaults import GATES
from ctxforge.verification.gates.types import Gate

if TYPE_CHECKING:
    from pydantic import BaseModel

_FORMS = "write a threshold, true, false, or a table of threshold, gross and required"
_LARGEST_FILE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Override:
    """What is changed of one gate; None keeps it.

    Attributes:
        threshold: the last good value.
        gross: the value beyond which any number of units fails.
        required: whether the gate is inconclusive when its quantity was not measured.
        enabled: False drops the gate.
    """

    threshold: float | None = None
    gross: float | None = None
    required: bool | None = None
    enabled: bool = True


def read_gates(path: str | Path) -> dict[str, Override]:
    """The `[gates]` table of a TOML or JSON file, which may be a recipe with other tables.

    Raises:
        UsageError: a file that is missing, not TOML or JSON, or without the table; a wrong entry of it.
        ResourceError: a file that can't be read.
    """
    path = Path(path)
    text = _read(path)
    try:
        document = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UsageError(
            f"{path} is not {kind}: {error}", f"mend the file, or name it .toml or .json; {_FORMS}"
        ) from None
    gates = document.get("gates") if isinstance(document, dict) else None
    if not isinstance(gates, dict):
        raise UsageError(f"{path} has no table [gates]", "write gates under [gates], such as short_nll = 0.02")
    try:
        return parse_gates(gates)
    except UsageError as error:
        raise UsageError(f"{path}: {error.cause}", error.remedy) from None


def parse_gates(entries: Mapping[str, Any], known: Iterable[Gate] = GATES) -> dict[str, Override]:
    """Overrides from plain data, by gate name.

    Args:
        entries: name to threshold, true, false, or a table of the fields of `Override`.
        known: the gates that may be named.

    Raises:
        UsageError: an unknown name (with the nearest known one), a wrong type, or a number that is not finite.
    """
    gates = {gate.name: gate for gate in known}
    return {name: _override(gates, name, entry) for name, entry in entries.items()}


def apply_overrides(gates: Iterable[Gate], overrides: Mapping[str, Override]) -> tuple[Gate, ...]:
    """`gates` as the overrides change them.

    A gate that is named without `required` becomes required: who sets a threshold wants an answer. A default gate that
    is named and not among `gates` is added.
    """
    present = tuple(gates)
    names = {gate.name for gate in present}
    added = [gate for gate in GATES if gate.name in overrides and gate.name not in names]
    changed = []
    for gate in (*present, *added):
        override = overrides.get(gate.name)
        if override is None:
            changed.append(gate)
        elif override.enabled:
            changed.append(
                replace(
                    gate,
                    threshold=gate.threshold if override.threshold is None else override.threshold,
                    gross=_gross(gate, override),
                    required=override.required is not False,
                )
            )
    return tuple(changed)


def _override(gates: Mapping[str, Gate], name: str, entry: Any) -> Override:
    if name not in gates:
        near = difflib.get_close_matches(str(name), gates, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(gates)}"
        raise UsageError(f"there is no gate {str(name)[:60]!r}", hint)
    if isinstance(entry, bool):
        return Override(enabled=entry)
    if entry is None:
        raise UsageError(f"gate {name} is null", _FORMS)
    values = entry if isinstance(entry, Mapping) else {"threshold": entry}
    override = _validated(name, values)
    gate = gates[name]
    if gate.basis == "exact" and override.gross is not None:
        raise UsageError(f"gate {name} has no gross limit, its value is exact", "give its threshold alone")
    threshold = gate.threshold if override.threshold is None else override.threshold
    if override.gross is not None and (override.gross - threshold) * (1 if gate.direction == "at most" else -1) < 0:
        raise UsageError(
            f"gate {name}: its gross limit {override.gross:g} is stricter than its threshold {threshold:g}",
            f"the gate is {gate.direction} its threshold; put the gross limit beyond that",
        )
    return override


def _validated(name: str, values: Mapping[str, Any]) -> Override:
    from pydantic import ValidationError

    try:
        return Override(**_table().model_validate({str(key): values[key] for key in values}).model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        raise UsageError(f"gate {where}: {first['msg']}", _FORMS) from None


@cache
def _table() -> type[BaseModel]:
    """`Override` as a pydantic model: strict validation takes no dict for a dataclass."""
    from pydantic import ConfigDict, create_model

    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(
        "Gate",
        __config__=config,
        threshold=(float | None, None),
        gross=(float | None, None),
        required=(bool | None, None),
        enabled=(bool, True),
    )


def _gross(gate: Gate, override: Override) -> float | None:
    """The gross limit, moved along where a new threshold is looser than it."""
    if override.gross is not None or gate.gross is None or override.threshold is None:
        return gate.gross if override.gross is None else override.gross
    looser = max if gate.direction == "at most" else min
    return looser(gate.gross, override.threshold)


def _read(path: Path) -> str:
    remedy = "give a TOML or JSON file with a table [gates]"
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UsageError(f"{path} is larger than a file of gates can be", remedy)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", remedy) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", remedy) from None
    except OSError as error:
        raise ResourceError(f"{path} can't be read: {error.strerror}", "check the path and its permissions") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice in one object")
    return found
