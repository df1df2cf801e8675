"""A check's report as a suite of findings, with files named as the user would."""

from __future__ import annotations

from ctxforge.findings import Case, Outcome, Place, Suite
from ctxforge.findings.github import relative
from ctxforge.static_checks.rules import RULE_OF
from ctxforge.static_checks.types import Check, CheckReport, Fault, Verdict
from ctxforge.version import __version__

_OUTCOMES: dict[Verdict, Outcome] = {"pass": "passed", "fail": "failed", "skip": "skipped"}


def suite(report: CheckReport) -> Suite:
    """The report for `ctxforge.findings`; paths are relative to the workspace where they lie inside it."""
    properties = {"ctxforge": __version__}
    if report.revision is not None:
        properties["revision"] = report.revision
    return Suite(report.path, tuple(_case(report, check) for check in report.checks), properties)


def _case(report: CheckReport, check: Check) -> Case:
    rule = RULE_OF[check.name]
    places = tuple(_place(report, fault) for fault in check.faults)
    return Case(
        check.name, _OUTCOMES[check.verdict], check.detail, rule.help if check.verdict == "fail" else "", places=places
    )


def _place(report: CheckReport, fault: Fault) -> Place:
    file = "/".join(part for part in (report.base, fault.file) if part)
    if not report.base:
        file = ""
    return Place(relative(file), fault.line, fault.column, fault.words)
