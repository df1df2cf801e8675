"""GitHub Actions: the step summary in Markdown, and annotations as workflow commands."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ctxforge.errors import ResourceError
from ctxforge.verification.gates.reach import EffectiveLength
from ctxforge.verification.gates.types import GateResult, Judgement, Verdict
from ctxforge.verification.outputs.junit import fails
from ctxforge.verification.outputs.plain import line

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>()#|~&@$!:]")
_LARGEST_SUMMARY = 1024 * 1024


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


def append_summary(markdown: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """Append to the file that GitHub names in $GITHUB_STEP_SUMMARY; returns it, or None outside of a workflow.

    Raises:
        ResourceError: the file can't be written, or would exceed what GitHub takes of a step (1 MiB).
    """
    named = (os.environ if environment is None else environment).get(SUMMARY_VARIABLE)
    if not named:
        return None
    path, content = Path(named), "\n" + markdown
    try:
        present = path.stat().st_size if path.exists() else 0
        if present + len(content.encode()) > _LARGEST_SUMMARY:
            raise ResourceError(f"the step summary {path} is full", "GitHub takes 1 MiB a step; verify in a step alone")
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(content)
    except OSError as error:
        raise ResourceError(
            f"${SUMMARY_VARIABLE} {path} can't be written: {error.strerror}", "unset it, or give a path that can be"
        ) from None
    return path


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


def command(level: str, title: str, message: str) -> str:
    """`::level title=...::message` with GitHub's escapes (actions/toolkit packages/core/src/command.ts)."""
    return f"::{level} title={_property(line(title))}::{_data(line(message))}"


def escape(text: str) -> str:
    """`text` on one line as literal Markdown, in a table cell too: characters that mean something become entities."""
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", line(text))


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


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
