"""What `ctxforge check` writes beside its lines: JUnit, SARIF, Markdown, JSON, and what GitHub Actions shows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.cli.files import write_text
from ctxforge.cli.main import SCHEMA_VERSION
from ctxforge.cli.output import Output

if TYPE_CHECKING:
    from ctxforge.static_checks import Check, CheckReport

TITLE = "ctxforge check"


@dataclass(frozen=True)
class Outputs:
    """Where the user wants what; None for nothing.

    Attributes:
        junit: the checks as JUnit XML.
        sarif: failures as SARIF.
        markdown: a table of the checks.
        report: the document of `--json`.
    """

    junit: Path | None = None
    sarif: Path | None = None
    markdown: Path | None = None
    report: Path | None = None

    @property
    def files(self) -> tuple[Path | None, ...]:
        """Everything that will be written."""
        return self.junit, self.sarif, self.markdown, self.report


def document(reports: Sequence[CheckReport]) -> dict[str, Any]:
    """The reports as plain data; `status` is ok, failed, or error where a checkpoint can't be read."""
    found: dict[str, Any] = {"status": "ok" if all(report.passed for report in reports) else "failed"}
    found["checkpoints"] = [
        {
            "path": report.path,
            "revision": report.revision,
            "passed": report.passed,
            "checks": [_check(check) for check in report.checks],
        }
        for report in reports
    ]
    error = next((report.error for report in reports if report.error is not None), None)
    if error is not None:
        found["status"] = "error"
        found["error"] = {"cause": error.cause, "remedy": error.remedy, "exit_code": int(error.exit_code)}
    return found


def _check(check: Check) -> dict[str, Any]:
    found: dict[str, Any] = {"name": check.name, "verdict": check.verdict, "detail": check.detail}
    if check.faults:
        found["faults"] = [
            {"file": fault.file or None, "line": fault.line, "column": fault.column, "words": fault.words}
            for fault in check.faults
        ]
    return found


def write_outputs(ui: Output, reports: Sequence[CheckReport], found: dict[str, Any], outputs: Outputs) -> None:
    """Write what was asked for, and say where it is.

    Raises:
        ResourceError: a file can't be written.
    """
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    if not on_github and not any(outputs.files) and not os.environ.get("GITHUB_STEP_SUMMARY"):
        return
    from ctxforge import findings
    from ctxforge.static_checks.rules import RULES
    from ctxforge.static_checks.suite import suite

    suites = [suite(report) for report in reports]
    made: list[tuple[str, Path | None, Callable[[], str]]] = [
        ("JUnit", outputs.junit, lambda: findings.junit_xml(suites)),
        ("SARIF", outputs.sarif, lambda: findings.sarif(suites, RULES)),
        ("Markdown", outputs.markdown, lambda: findings.markdown(suites, TITLE)),
        ("report", outputs.report, lambda: _json(found)),
    ]
    for name, path, make in made:
        if path is not None:
            write_text(path, make())
            ui.note(f"{name}: {path}")
    findings.append_summary(findings.markdown(suites, TITLE))
    if on_github:
        for line in findings.annotate(suites, TITLE):
            sys.stderr.write(line + "\n")


def _json(found: dict[str, Any]) -> str:
    head = {"schema_version": SCHEMA_VERSION, "command": "check"}
    return json.dumps({**head, **found}, indent=2, ensure_ascii=False) + "\n"
