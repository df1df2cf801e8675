"""What gates are applied to: a quantity with its values by unit, and how it becomes one number.

This is the seam between measuring and judging. Whoever measures fills `Measurement`s by name; gates know nothing of
models, and measurements nothing of thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ctxforge.errors import InternalError

Unit = Literal["document", "prompt", "none"]
Relation = Literal["value", "difference", "ratio"]
Worst = Literal["lowest", "highest"]


@dataclass(frozen=True)
class Sample:
    """Values of one model, one a unit.

    Attributes:
        values: one a unit, each already the unit's own mean (nats a token of a document, 0 or 1 of a prompt).
        weights: of the units in the mean, such as predicted tokens; 0 for a unit that was not measured. None weighs
            all the same.
    """

    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Measurement:
    """A quantity as it was measured. Made by `exact`, `mean`, `difference` and `ratio`.

    Attributes:
        unit: what was sampled, "document" or "prompt"; "none" for a number without sampling error.
        relation: "value": the mean of `result`; "difference": the mean of `result` minus the mean of `source`;
            "ratio": the first over the second.
        result: of the model that is judged.
        source: of what it is compared with, unit for unit the same documents or prompts; None for "value".
        labels: names of the units, by which measurements of other lengths find the same ones.
        groups: of each unit, such as its third of the depth. The quantity is then the worst group's.
        worst: which group is the worst.
        outcomes: whether the values are 0 or 1 (wrong or right).
    """

    unit: Unit
    relation: Relation
    result: Sample
    source: Sample | None = None
    labels: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    worst: Worst = "lowest"
    outcomes: bool = False

    def __post_init__(self) -> None:
        units = len(self.result.values)
        _require(units > 0, "a measurement without values")
        _require((self.source is None) == (self.relation == "value"), "a comparison without its other side")
        if not self.labels:
            object.__setattr__(self, "labels", tuple(str(i) for i in range(units)))
        for sample in self.samples:
            _require(len(sample.values) == units, "result and source with different numbers of units")
            if sample.weights is not None:
                _require(len(sample.weights) == units, "values and weights of different numbers")
                _require(all(math.isfinite(w) and w >= 0 for w in sample.weights), "a negative or endless weight")
            if self.outcomes:
                _require(all(value in (0.0, 1.0) for value in sample.values), "an outcome other than 0 and 1")
                _require(all(w in (0.0, 1.0) for w in sample.weights or ()), "outcomes of unequal weights")
        _require(len(self.labels) == units == len(set(self.labels)), "labels that do not name the units")
        _require(self.groups is None or len(self.groups) == units, "groups and values of different numbers")
        _require(self.unit != "none" or units == 1, "an exact number with several values")

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The sides: the result's, then the source's if there is one."""
        return (self.result,) if self.source is None else (self.result, self.source)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The groups in order of appearance; one nameless group when there are none."""
        return ("",) if self.groups is None else tuple(dict.fromkeys(self.groups))


def exact(value: float) -> Measurement:
    """A number without sampling error: a count of failed checks, a largest difference between logits."""
    return Measurement("none", "value", Sample((float(value),)))


def mean(
    values: Sequence[float],
    *,
    unit: Unit,
    weights: Sequence[float] | None = None,
    labels: Sequence[str] = (),
    groups: Sequence[str] | None = None,
    worst: Worst = "lowest",
    outcomes: bool = False,
) -> Measurement:
    """The mean over units, sum(w x) / sum(w); see `Measurement`."""
    sample = _sample(values, weights)
    return Measurement(unit, "value", sample, None, tuple(labels), _names(groups), worst, outcomes)


def difference(
    result: Sequence[float],
    source: Sequence[float],
    *,
    unit: Unit,
    weights: Sequence[float] | None = None,
    source_weights: Sequence[float] | None = None,
    labels: Sequence[str] = (),
    groups: Sequence[str] | None = None,
    worst: Worst = "highest",
) -> Measurement:
    """The mean of `result` minus the mean of `source`, paired by unit.

    Args:
        result: one value a unit.
        source: the value to compare with, of the same unit.
        unit: "document" or "prompt".
        weights: of `result`.
        source_weights: of `source`; None takes `weights`. They differ where the sides hold different numbers of
            tokens, such as two buckets of one document.
        labels: as in `Measurement`.
        groups: as in `Measurement`.
        worst: as in `Measurement`.
    """
    other = _sample(source, weights if source_weights is None else source_weights)
    return Measurement(unit, "difference", _sample(result, weights), other, tuple(labels), _names(groups), worst)


def ratio(
    result: Sequence[float],
    source: Sequence[float],
    *,
    unit: Unit,
    weights: Sequence[float] | None = None,
    source_weights: Sequence[float] | None = None,
    labels: Sequence[str] = (),
    groups: Sequence[str] | None = None,
    worst: Worst = "lowest",
    outcomes: bool = False,
) -> Measurement:
    """The mean of `result` over the mean of `source`, paired by unit (the same seed and depth); see `difference`."""
    other = _sample(source, weights if source_weights is None else source_weights)
    sample = _sample(result, weights)
    return Measurement(unit, "ratio", sample, other, tuple(labels), _names(groups), worst, outcomes)


def _sample(values: Sequence[float], weights: Sequence[float] | None) -> Sample:
    return Sample(tuple(map(float, values)), None if weights is None else tuple(map(float, weights)))


def _names(groups: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if groups is None else tuple(groups)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InternalError(f"{what}.", "Please report this.")
