"""A recipe with every number of it known: what a run does, and what a resumed run must agree with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ctxforge.calibrate.recipes.types import CalibrationRecipe, RowRecipe
from ctxforge.errors import UsageError
from ctxforge.lengths import parse_length

_WINDOWED = ("pose", "cream")
_LONGEST_WINDOW = 4096
_ROWS = 8
_WIDTH = 4096
_LOW_RANK_RATE, _WHOLE_RATE = 3e-4, 2e-5
_WHOLE_BESIDE = 0.1
_SHORT_CONTEXT = 4096


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Some steps with one length: tokens of a row, and of the text that a row is cut from."""

    steps: int
    length: int
    text_length: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """What a run does.

    Attributes:
        recipe: what was asked for.
        seed: of everything that is drawn.
        trained_length, target_length: L0 and L' in tokens.
        stages: in order.
        short_length: tokens of a short row, at most.
        group: of S2-Attn, or None.
        low_rank_rate, whole_rate: highest learning rates.
        every: steps between measurements.
        context, refresh: of LongCE's short windows.
    """

    recipe: CalibrationRecipe
    seed: int
    trained_length: int
    target_length: int
    stages: tuple[StagePlan, ...]
    short_length: int
    group: int | None
    low_rank_rate: float
    whole_rate: float
    every: int
    context: int
    refresh: int

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(stage.length for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Tokens trained on, in all, if every row is full."""
        return sum(stage.steps * stage.rows * stage.length for stage in self.stages)

    def document(self) -> dict[str, Any]:
        """The plan as JSON data, for the provenance and to recognise a run by."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @property
    def digest(self) -> str:
        """SHA-256 of what decides about the numbers of a run, hex; how it is made to fit does not."""
        document = self.document()
        document["recipe"] = {k: v for k, v in document["recipe"].items() if k not in ("about", "memory")}
        document["tokens_at_once"] = self.recipe.memory.tokens_at_once
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def make_plan(
    recipe: CalibrationRecipe, *, trained_length: int, target_length: int, width: int, seed: int = 0
) -> CalibrationPlan:
    """The numbers that the recipe leaves open.

    Args:
        recipe: what was asked for.
        trained_length: L0.
        target_length: L'.
        width: hidden size, which the learning rates follow.
        seed: any whole number from 0.

    Raises:
        UsageError: lengths that don't fit each other, or a seed that can't be.
    """
    if seed < 0:
        raise UsageError(f"a seed of {seed} is not usable", "give a whole number from 0")
    rows = recipe.rows
    if recipe.objective.kind == "longce" and (rows.placement in _WINDOWED or rows.attention != "full"):
        raise UsageError(
            "LongCE compares a short context with the whole one, which rows with skips or in groups don't have",
            "set rows.placement=full-length and rows.attention=full, or objective.kind=ce",
        )
    length = _row_length(rows, trained_length, target_length)
    stages = _stages(recipe, length, trained_length)
    short = trained_length if rows.short_length is None else _length(rows.short_length, trained_length, target_length)
    relative = _WIDTH / width
    full = recipe.adapter.kind == "full"
    rate = recipe.optimiser.learning_rate or (_WHOLE_RATE if full else _LOW_RANK_RATE) * relative
    beside = rate if full else _WHOLE_BESIDE * rate
    asked = recipe.optimiser.whole_learning_rate
    group = None
    if rows.attention == "shifted-sparse":
        group = rows.group or max(2, length // 4)
    context = recipe.objective.context or max(1, min(_SHORT_CONTEXT, trained_length // 2))
    return CalibrationPlan(
        recipe=recipe,
        seed=seed,
        trained_length=trained_length,
        target_length=target_length,
        stages=stages,
        short_length=min(short, length),
        group=group,
        low_rank_rate=rate,
        whole_rate=beside if asked is None else asked,
        every=recipe.held_out.every or max(1, recipe.steps // 8),
        context=context,
        refresh=recipe.objective.refresh or max(1, context // 4),
    )


def _row_length(rows: RowRecipe, trained_length: int, target_length: int) -> int:
    windowed = rows.placement in _WINDOWED
    if rows.length is None:
        length = min(trained_length, _LONGEST_WINDOW) if windowed else target_length
    else:
        length = _length(rows.length, trained_length, target_length)
    if length > target_length:
        raise UsageError(
            f"rows of {length} tokens are longer than the target of {target_length}", "give shorter rows (rows.length)"
        )
    if length < 2 * rows.chunks:
        raise UsageError(f"rows of {length} tokens hold no {rows.chunks} chunks", "give longer rows (rows.length)")
    return length


def _length(given: str | int, trained_length: int, target_length: int) -> int:
    named = {"trained": trained_length, "target": target_length}
    if isinstance(given, str) and given in named:
        return named[given]
    return parse_length(given, relative_to=target_length)


def _stages(recipe: CalibrationRecipe, length: int, trained_length: int) -> tuple[StagePlan, ...]:
    rows = recipe.rows
    early = round(recipe.steps * rows.first_share) if trained_length < length else 0
    lengths = [(early, trained_length), (recipe.steps - early, length)]
    gaps = rows.placement == "cream" or (rows.placement == "pose" and rows.content == "sampled")
    reach = rows.reach if gaps else 1.0
    return tuple(
        StagePlan(steps=steps, length=size, text_length=int(size * reach), rows=_count(rows, size, length))
        for steps, size in lengths
        if steps > 0
    )


def _count(rows: RowRecipe, size: int, length: int) -> int:
    """Rows of a batch: a stage of shorter rows has as many more, so that every step has as many tokens."""
    asked = rows.count or min(_ROWS, max(1, _ROWS * _LONGEST_WINDOW // length))
    return max(1, asked * length // size)
