"""The calibrations of a checkpoint as a template shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.publish.card.markdown import Markdown, table
from ctxforge.publish.card.record import Record, mapping, real, text, whole
from ctxforge.publish.card.reproduce import data_names
from ctxforge.verification.html import numbers

_RATES = ("low_rank_rate", "whole_rate")
_GAIN = "what far context is worth beyond cutting the text to the trained length"


@dataclass(frozen=True)
class CalibrationView:
    """One calibration.

    Attributes:
        title: the recipe's name.
        facts: rows of (what, how).
        data: the table of its data, empty without any.
    """

    title: str
    facts: Markdown
    data: Markdown


def calibration_views(record: Record) -> list[CalibrationView]:
    """Every calibration in the order in which they were done."""
    return [_view(entry) for entry in record.calibrations]


def _view(entry: Mapping[str, Any]) -> CalibrationView:
    return CalibrationView(text(entry, "recipe") or "without a name", _facts(entry), _data(entry))


def _facts(entry: Mapping[str, Any]) -> Markdown:
    recipe = mapping(mapping(entry, "plan"), "recipe")
    rows, adapter, optimiser = mapping(recipe, "rows"), mapping(recipe, "adapter"), mapping(recipe, "optimiser")
    held_out, merge = mapping(mapping(entry, "held_out"), "best"), mapping(entry, "merge")
    steps, best = whole(entry, "steps"), whole(entry, "best_step")
    found: list[tuple[str, str]] = [
        ("steps", "" if steps is None else f"{steps}; step {best} was kept, the best on held-out windows"),
        ("tokens", _count(entry, "tokens")),
        ("rows", _pairs(rows, ("placement", "count", "length"))),
        ("trained", _pairs(adapter, ("kind", "rank", "alpha"))),
        ("optimiser", _pairs({**optimiser, **_rates(mapping(entry, "plan"))}, ("kind", *_RATES, "schedule", "warmup"))),
        ("objective", _pairs(mapping(recipe, "objective"), ("kind", "restoration", "train_on"))),
        ("seed", _count(entry, "seed")),
        ("held out", _held_out(held_out)),
        ("merged", f"{whole(merge, 'tensors')} tensors" if whole(merge, "tensors") is not None else ""),
        ("ctxforge", text(entry, "ctxforge")),
    ]
    return table(("what", "how"), [row for row in found if row[1]])


def _held_out(best: Mapping[str, Any]) -> str:
    parts = []
    use, regression = real(best, "use"), real(best, "short_regression")
    if use is not None:
        between = _between(best.get("use_interval"))
        parts.append(f"{_GAIN}: {numbers.nats(use)} nats a token ({between})")
    if regression is not None:
        against = "the source" if best.get("relative_to") == "source" else "the start of the calibration"
        parts.append(f"short text against {against}: {numbers.nats(regression)} nats a token, positive is worse")
    return "; ".join(parts)


def _between(interval: Any) -> str:
    if not (isinstance(interval, list) and len(interval) == 2 and all(isinstance(v, float) for v in interval)):
        return "no interval"
    return f"95 % {numbers.nats(interval[0])} to {numbers.nats(interval[1])}"


def _data(entry: Mapping[str, Any]) -> Markdown:
    found = entry.get("data")
    sources = [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
    named = data_names(entry)
    rows = [
        (name, _count(source, "documents"), _count(source, "tokens"), _weight(source), text(source, "sha256"))
        for name, source in zip(named, sources, strict=True)
    ]
    return table(("data", "documents", "tokens", "weight", "sha256"), rows)


def _count(holder: Mapping[str, Any], key: str) -> str:
    found = whole(holder, key)
    return "" if found is None else str(found)


def _weight(holder: Mapping[str, Any]) -> str:
    found = real(holder, "weight")
    return "" if found is None else numbers.number(found)


def _rates(plan: Mapping[str, Any]) -> dict[str, str]:
    """The highest learning rates, which follow from the model's width."""
    found = {key: real(plan, key) for key in _RATES}
    return {key: numbers.number(value) for key, value in found.items() if value is not None}


def _pairs(holder: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    shown = {key: holder[key] for key in keys if isinstance(holder.get(key), str | int | float)}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())
