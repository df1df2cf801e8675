"""Gates and verdicts as a page shows them: a word and a symbol each, so that colour is never needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxforge.verification.gates.types import Verdict
from ctxforge.verification.html import numbers

if TYPE_CHECKING:
    from ctxforge.verification.gates.types import GateResult, Judgement

_SYMBOLS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INCONCLUSIVE: "?"}


@dataclass(frozen=True)
class VerdictView:
    """A verdict's word, symbol and CSS class, with the line below it."""

    word: str
    symbol: str
    css: str
    words: str


@dataclass(frozen=True)
class GateView:
    """A row of the gates table."""

    name: str
    verdict: VerdictView
    value: str
    interval: str
    threshold: str
    explanation: str


def verdict_view(judgement: Judgement | None) -> VerdictView:
    """The headline."""
    if judgement is None:
        return VerdictView("not judged", "·", "none", "Measured without gates.")
    words = judgement.headline.partition(": ")[2]
    words = words[:1].upper() + words[1:] + "."
    return VerdictView(*_of(judgement.verdict), words)


def gate_views(judgement: Judgement | None) -> list[GateView]:
    """The gates in their order."""
    return [_gate(result) for result in judgement.results] if judgement is not None else []


def _gate(result: GateResult) -> GateView:
    gate, interval = result.gate, result.interval
    write = numbers.number if gate.basis == "exact" else numbers.estimate
    value = "not measured" if interval is None else f"{write(interval.value)} {gate.quantity}"
    if interval is None or gate.basis == "exact":
        between = numbers.NONE if interval is None else "exact"
    else:
        between = numbers.bounds(interval) + f" ({interval.units} units)"
    threshold = f"{gate.direction} {numbers.number(gate.threshold)}"
    reason = result.words.rpartition(": ")[2] if interval is None or gate.basis != "exact" else ""
    # The reason of a pass is in its numbers already.
    shown = f"{gate.explanation} {reason[:1].upper()}{reason[1:]}." if _tells(result) and reason else gate.explanation
    shown = shown.replace("`", "")
    return GateView(gate.name, VerdictView(*_of(result.verdict), result.words), value, between, threshold, shown)


def _tells(result: GateResult) -> bool:
    return result.verdict != Verdict.PASS


def _of(verdict: Verdict) -> tuple[str, str, str]:
    return str(verdict), _SYMBOLS[verdict], str(verdict)
