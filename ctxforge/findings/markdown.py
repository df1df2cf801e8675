"""Findings as Markdown: a table a checkpoint, for step summaries, pull requests and chat."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ctxforge.findings.plain import line
from ctxforge.findings.types import Suite

_MARKS = re.compile(r"[\\`*_{}\[\]<>()#|~&@$!:]")


def escape(text: str) -> str:
    """`text` on one line as literal Markdown, in a table cell too: characters that mean something become entities."""
    return _MARKS.sub(lambda match: f"&#{ord(match[0])};", line(text))


def markdown(suites: Sequence[Suite], title: str) -> str:
    """A heading with the verdict and, for each checkpoint, a table of its cases; failed ones stand first."""
    failed = sum(suite.count("failed") for suite in suites)
    rows = [f"### {escape(title)}: {'fail' if failed else 'pass'}", ""]
    for suite in suites:
        counts = f"{suite.count('passed')} passed, {suite.count('failed')} failed, {suite.count('skipped')} skipped"
        rows += [f"**{escape(suite.name)}**: {counts}", "", "| check | verdict | found |", "|---|---|---|"]
        for case in sorted(suite.cases, key=lambda case: case.outcome != "failed"):
            verdict = "**failed**" if case.outcome == "failed" else case.outcome
            rows.append(f"| {escape(case.name)} | {verdict} | {escape(case.words)} |")
        rows.append("")
    return "\n".join(rows)
