"""The rotation of a plan, read from the `plan` of `ctxforge.json`: lambda by pair, against the original."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctxforge.rope.types import UNROTATED
from ctxforge.verification.chart import REFERENCE, Axis, Mark, Series, chart_svg, linear_ticks, tick_label
from ctxforge.verification.svg import NARROW, WIDE

TITLE = "Wavelength multiplier λ by rotary pair"


@dataclass(frozen=True)
class RotaryTable:
    """One rotary table of a plan; see `ctxforge.provenance.plan_document`."""

    layer_type: str | None
    layers: int
    rotated_dims: int
    base: float
    temperature: float
    length_dependent: bool
    changed: bool
    divisors: tuple[float, ...]

    @property
    def turning(self) -> tuple[tuple[int, float], ...]:
        """Pairs that rotate, with their lambda."""
        return tuple((i, d) for i, d in enumerate(self.divisors) if 0 < d < UNROTATED / 10)


def rotary_tables(plan: Mapping[str, Any] | None) -> list[RotaryTable]:
    """The plan's tables; those that hold no divisors (other position schemes, malformed documents) are left out."""
    entries = plan.get("tables") if plan is not None else None
    found = []
    for entry in entries if isinstance(entries, list | tuple) else ():
        try:
            table = RotaryTable(
                layer_type=None if entry["layer_type"] is None else str(entry["layer_type"]),
                layers=len(entry["layers"]),
                rotated_dims=int(entry["rotated_dims"]),
                base=float(entry["base"]),
                temperature=float(entry["temperature"]),
                length_dependent=bool(entry["length_dependent"]),
                changed=bool(entry["changed"]),
                divisors=tuple(float(divisor) for divisor in entry["divisors"]),
            )
        except (KeyError, TypeError, ValueError):
            continue
        if table.turning:
            found.append(table)
    return found


def rotation_svg(
    named: Sequence[tuple[str, RotaryTable]],
    trained_length: int,
    *,
    slots: Sequence[int] | None = None,
    scale: float = 1.0,
    title: str = TITLE,
    width: float = WIDE,
    heading: bool = True,
    ends: bool = False,
) -> str:
    """A self-contained SVG: lambda of every pair, one line a table, over the plain frequencies at lambda = 1.

    A pair left of the dashed line turns at least once within the trained length, so training has shown it every
    angle; what lies right of it has seen a part of the circle only (YaRN, 2309.00071, section 3.2).

    Args:
        named: tables with their labels, at least one.
        trained_length: L0 in tokens.
        slots: colour numbers of the tables, so that a method keeps its colour from figure to figure.
        scale: s, always inside the axis.
        title: above the picture.
        width: in pixels; 360 for a phone.
        heading: whether the title is drawn.
        ends: name the lines beside their ends, where there is room.
    """
    pairs = max(len(table.divisors) for _, table in named)
    last = max(pairs - 1, 1)
    values = [divisor for _, table in named for _, divisor in table.turning]
    low, high = min(1.0, *values) / 1.15, max(scale, 1.0, *values) * 1.15
    plain = Series("plain RoPE, λ = 1", (0.0, float(last)), (1.0, 1.0), points=False, slot=REFERENCE)
    lines = [
        Series(
            label,
            tuple(float(i) for i, _ in table.turning),
            tuple(d for _, d in table.turning),
            points=pairs <= 40,
            slot=slot,
        )
        for (label, table), slot in zip(named, slots or range(len(named)), strict=True)
    ]
    powers = [2.0**i for i in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    ticks = [power for power in powers if low <= power <= high]
    marks = [Mark(turn, "one turn in L0")] if (turn := _one_turn(named[0][1], trained_length)) is not None else []
    return chart_svg(
        [plain, *lines],
        Axis(
            "pair index (fast to slow)", 0.0, float(last), tuple((i, str(i)) for i in linear_ticks(last, _most(width)))
        ),
        Axis("λ (log scale)", low, high, tuple((t, tick_label(t)) for t in ticks[:: 1 + (len(ticks) - 1) // 8]), True),
        title=title,
        description="; ".join(_words(label, table) for label, table in named),
        marks=marks,
        width=width,
        heading=heading,
        ends=ends,
    )


def _most(width: float) -> int:
    return 6 if width <= NARROW else 10


def _one_turn(table: RotaryTable, trained_length: int) -> float | None:
    """The fractional pair whose plain wavelength 2 pi b^(2i/d) is the trained length (2309.00071, App. A.2)."""
    if table.base <= 1 or trained_length <= 2 * math.pi:
        return None
    return table.rotated_dims * math.log(trained_length / (2 * math.pi)) / (2 * math.log(table.base))


def _words(label: str, table: RotaryTable) -> str:
    return f"{label}: " + ", ".join(f"pair {i} {divisor:.3g}" for i, divisor in table.turning)
