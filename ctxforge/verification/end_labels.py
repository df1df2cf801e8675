"""Names of lines beside their ends, so that nobody has to match colours with a legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ctxforge.verification.svg import text, text_width

GAP = 18.0
_LEADER, _SAMPLE, _LONGEST, _MOST = 16.0, 24.0, 190.0, 14


@dataclass(frozen=True)
class End:
    """Where a line ends, and what it is called. `sample` draws a piece of it 24 pixels long, from (x, y) on."""

    x: float
    y: float
    label: str
    sample: Callable[[float, float], str]


def end_width(labels: Sequence[str]) -> float | None:
    """Pixels that the labels need beside a chart; None where they are too many or too long, and a legend is better."""
    longest = max((text_width(label) for label in labels), default=0.0)
    if not labels or len(labels) > _MOST or longest > _LONGEST:
        return None
    return _LEADER + _SAMPLE + 7 + longest


def end_labels(ends: Sequence[End], edge: float, top: float, floor: float) -> list[str]:
    """The labels right of `edge`, each as near to its line's end as the others allow, tied to it by a thin line."""
    parts = []
    for end, y in zip(ends, spread([end.y for end in ends], GAP, top, floor), strict=True):
        bend = max(edge, end.x + 5) + 4
        parts.append(
            f'<path d="M{end.x + 5:.1f} {end.y:.1f}L{bend:.1f} {end.y:.1f}L{edge + _LEADER - 2:.1f} {y:.1f}" '
            'class="leader"/>'
        )
        parts.append(end.sample(edge + _LEADER, y))
        parts.append(text(edge + _LEADER + _SAMPLE + 7, y + 4.5, end.label))
    return parts


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart between `low` and `high` whose squared distances to the wanted ones are least.

    Sorted and with i * gap taken off, the places must not descend: isotonic regression by pooling neighbours. Where
    `high - low` can't hold them all, they run over `high`.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        total, count = wanted[i] - rank * gap, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            earlier = pools.pop()
            total, count = total + earlier[0], count + earlier[1]
        pools.append((total, count))
    last = max(low, high - (len(order) - 1) * gap)
    level = [min(max(total / count, low), last) for total, count in pools for _ in range(count)]
    placed = [0.0] * len(order)
    for rank, i in enumerate(order):
        placed[i] = level[rank] + rank * gap
    return placed
