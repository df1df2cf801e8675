"""GitHub Actions: the step summary in Markdown, and annotations as workflow commands."""

from __future__ import annotations

import math

from ctxforge.findings import append_summary, command, escape
from ctxforge.verification.gates.reach import EffectiveLength
from ctxforge.verification.gates.types import GateResult, Judgement, Verdict
from ctxforge.verification.outputs.junit import fails

__all__ = ["annotate", "append_summary", "command", "escape", "summary_markdown"]


def summary_markdown(
    judgement: Judgement, *, title: str = "ctxforge verify", effective: EffectiveLength | None = None
) -> str:
    """A heading with the verdict, the effective length, and a table of the gates."""
    rows = [
        f"### {escape(title)}: {escape(str(judgement.verdict))}",
        "",
        escape(judgement.headline),
        "",
    ]
    if effective is not None:
        rows += [f"Effective length: {escape(effective.words)}", ""]
    rows += [
        "| gate | verdict | value | 95 % interval | threshold | units | decided |",
        "|---|---|---|---|---|---|---|",
        *(_row(result) for result in judgement.results),
    ]
    if judgement.left_out:
        left = "; ".join(f"{name} ({reason})" for name, reason in judgement.left_out)
        rows += ["", f"Left out: {escape(left)}"]
    return "\n".join(rows) + "\n"


def annotate(judgement: Judgement, *, title: str = "ctxforge verify") -> list[str]:
    """Workflow commands, one line each: an error for a gate that fails the run, a warning for an inconclusive one, and
    a notice with the headline when neither is there.
    """
    found = []
    for result in judgement.results:
        if result.verdict != Verdict.PASS:
            level = "error" if fails(result, strict=judgement.strict) else "warning"
            words = f"{result.verdict}: {result.words}. {result.gate.explanation}"
            found.append(command(level, f"{title}: {result.gate.name}", words))
    return found or [command("notice", title, judgement.headline)]


def _row(result: GateResult) -> str:
    gate, interval = result.gate, result.interval
    value = bounds = units = ""
    if interval is not None:
        value = f"{interval.value:.4g} {gate.quantity}" if not math.isnan(interval.value) else "not a number"
        if gate.basis == "interval":
            units = str(interval.units)
            bounds = "too few" if interval.bounds is None else "{:.4g} to {:.4g}".format(*interval.bounds)
    mark = f"**{result.verdict}**" if result.verdict != Verdict.PASS else str(result.verdict)
    cells = (value, bounds, f"{gate.direction} {gate.threshold:.4g}", units, result.decided_by)
    return f"| {escape(gate.name)} | {mark} | " + " | ".join(escape(cell) for cell in cells) + " |"
