"""What a card needs of `ctxforge.json`, each part read on its own: a part that is missing or malformed is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.rope.types import UNROTATED
from ctxforge.verification.html.rotation import RotaryTable, rotary_tables

# The divisor of a pair that doesn't rotate is the largest number that is meant.
_LARGEST = UNROTATED


@dataclass(frozen=True)
class Record:
    """A conversion as it was recorded.

    Attributes:
        plan: the `plan` document; empty where there is none.
        recipe: what was asked for.
        method: its name with its modifiers; "none" where RoPE was left alone.
        scheme: rope, learned or alibi.
        original_length, target_length: L0 and L' in tokens; None where they are not recorded.
        scale: s; None likewise.
        tables: rotary tables with a pair that rotates.
        still: how many tables the conversion changed to rotate no more.
        folded: by layer type, the factor on q.k that the weights carry instead of the config.
        expressed_as, warnings: lines.
        attachment: name of the attention system; None without one.
        attachment_parameters: its parameters.
        tensors_edited: names.
        source_name, source_revision, weights: as the conversion was given them.
        tool, python: versions.
        calibrations: what is recorded of each.
        previous: the source's own record, where it was converted before.
    """

    plan: Mapping[str, Any]
    recipe: Mapping[str, Any]
    method: str
    scheme: str
    original_length: int | None
    target_length: int | None
    scale: float | None
    tables: tuple[RotaryTable, ...]
    still: int
    folded: Mapping[str | None, float]
    expressed_as: tuple[str, ...]
    warnings: tuple[str, ...]
    attachment: str | None
    attachment_parameters: Mapping[str, Any]
    tensors_edited: tuple[str, ...]
    source_name: str
    source_revision: str
    weights: str
    tool: str
    python: str
    calibrations: tuple[Mapping[str, Any], ...]
    previous: Mapping[str, Any]

    @property
    def changed(self) -> tuple[RotaryTable, ...]:
        """The tables that the conversion changed."""
        return tuple(table for table in self.tables if table.changed)


def read_record(provenance: Mapping[str, Any]) -> Record:
    """Read the document; never fails."""
    provenance = cleaned(provenance)
    plan, recipe = mapping(provenance, "plan"), mapping(provenance, "recipe")
    source, tool = mapping(provenance, "source"), mapping(provenance, "tool")
    attachment = mapping(plan, "attachment")
    calibrations = provenance.get("calibrations")
    return Record(
        plan=plan,
        recipe=recipe,
        method=text(plan, "method") or "none",
        scheme=text(plan, "scheme") or "rope",
        original_length=whole(plan, "original_length"),
        target_length=whole(plan, "target_length"),
        scale=real(plan, "scale"),
        tables=tuple(rotary_tables(plan)),
        still=sum(map(_still, _list(plan.get("tables")))),
        folded=_folded(plan),
        expressed_as=lines(plan, "expressed_as"),
        warnings=lines(plan, "warnings"),
        attachment=text(attachment, "name") or None,
        attachment_parameters=mapping(attachment, "parameters"),
        tensors_edited=lines(plan, "tensors_edited"),
        source_name=text(source, "name"),
        source_revision=text(source, "revision"),
        weights=text(source, "weights"),
        tool=text(tool, "version"),
        python=text(tool, "python"),
        calibrations=tuple(entry for entry in _list(calibrations) if isinstance(entry, Mapping)),
        previous=mapping(provenance, "previous"),
    )


def cleaned(value: Any) -> Any:
    """JSON data with numbers that no count, length or factor can be as None, which reads as missing."""
    if isinstance(value, Mapping):
        return {str(key): cleaned(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(entry) for entry in value]
    if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= _LARGEST:
        return None
    return value


def mapping(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a key; empty where there is none."""
    found = holder.get(key)
    return found if isinstance(found, Mapping) else {}


def text(holder: Mapping[str, Any], key: str) -> str:
    """The text under a key; empty where there is none."""
    found = holder.get(key)
    return found if isinstance(found, str) else ""


def whole(holder: Mapping[str, Any], key: str) -> int | None:
    """The whole number from 0 on under a key."""
    found = holder.get(key)
    usable = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**40
    return found if usable else None


def real(holder: Mapping[str, Any], key: str) -> float | None:
    """The number under a key."""
    found = holder.get(key)
    usable = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e12
    return float(found) if usable and found is not None else None


def lines(holder: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The texts of a list under a key."""
    return tuple(entry for entry in _list(holder.get(key)) if isinstance(entry, str))


def _list(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list | tuple) else []


def _still(entry: Any) -> bool:
    divisors = entry.get("divisors") if isinstance(entry, Mapping) else None
    numbers = divisors if isinstance(divisors, list) and divisors and entry.get("changed") is True else []
    return bool(numbers) and all(isinstance(one, float) and one >= UNROTATED / 10 for one in numbers)


def _folded(plan: Mapping[str, Any]) -> dict[str | None, float]:
    found = {}
    for entry in _list(plan.get("tables")):
        if isinstance(entry, Mapping):
            factor, kind = real(entry, "folded_into_weights"), entry.get("layer_type")
            if factor is not None and factor != 1.0:
                found[kind if isinstance(kind, str) else None] = factor
    return found
