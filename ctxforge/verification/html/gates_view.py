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
    units: str
    threshold: str
    explanation: str


def verdict_view(judgement: Judgement | None) -> VerdictView:
    """The headline."""
    if judgement is None:
        return VerdictView("not judged", "·", "none", "Measured without gates.")
    return VerdictView(*_of(judgement.verdict), _words(judgement))


def gate_views(judgement: Judgement | None) -> list[GateView]:
    """The gates in their order."""
    return [_gate(result) for result in judgement.results] if judgement is not None else []


def _gate(result: GateResult) -> GateView:
    gate, interval = result.gate, result.interval
    write = numbers.number if gate.basis == "exact" else numbers.estimate
    value = "not measured" if interval is None else f"{write(interval.value)} {gate.quantity}"
    units = ""
    if interval is None or gate.basis == "exact":
        between = numbers.NONE if interval is None else "exact"
    else:
        between, units = numbers.bounds(interval), f"{interval.units} unit{'s' if interval.units != 1 else ''}"
    threshold = f"{gate.direction} {numbers.number(gate.threshold)}"
    reason = ""
    if interval is None or gate.basis != "exact":
        # What stands behind the verdict: from "too few" on where that is it, else after the last colon.
        before, few, after = result.words.partition("too few")
        reason = few + after if few else before.rpartition(": ")[2]
    # The reason of a pass is in its numbers already.
    shown = f"{gate.explanation} {reason[:1].upper()}{reason[1:]}." if _tells(result) and reason else gate.explanation
    shown = shown.replace("`", "")
    return GateView(gate.name, VerdictView(*_of(result.verdict), result.words), value, between, units, threshold, shown)


def _words(judgement: Judgement) -> str:
    """The line below the verdict: how many gates decided it, and which."""
    results, verdict = judgement.results, judgement.verdict
    if not results:
        return "No gate was judged."
    named = [result.gate.name for result in results if result.verdict == verdict]
    if verdict == Verdict.PASS:
        return f"All {len(results)} gates hold." if len(results) > 1 else "The only gate holds."
    listed = f"{len(named)} of {len(results)} gates {{}}: {', '.join(named)}."
    if verdict == Verdict.FAIL:
        return listed.format("fail" if len(named) > 1 else "fails")
    strict = " Counted as a failure." if judgement.strict else ""
    few = any(result.verdict == verdict and "too few" in result.words for result in results)
    more = " Measure more windows or prompts to decide (--windows, --seeds)." if few else ""
    return listed.format("can't be decided") + more + strict


def _tells(result: GateResult) -> bool:
    return result.verdict != Verdict.PASS


def _of(verdict: Verdict) -> tuple[str, str, str]:
    return str(verdict), _SYMBOLS[verdict], str(verdict)
