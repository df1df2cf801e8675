"""`ctxforge check`."""

from __future__ import annotations

from typing import Any

import click

from ctxforge.cli.output import Output, with_output


@click.command(short_help="Check a checkpoint folder statically, for CI.", epilog="Example: ctxforge check llama-64k")
@click.argument("folders", nargs=-1, required=True)
@with_output
def command(ui: Output, folders: tuple[str, ...]) -> int:
    """Check FOLDERS without running them: exit code 0 when everything passes, 1 when a check fails.

    Does each config dialect compute the same frequencies; are lengths integers and consistent; does the tokenizer
    allow the length; do shards, index and recorded hashes agree.
    """
    from ctxforge import static_checks
    from ctxforge.errors import ExitCode

    reports = [static_checks.check(folder) for folder in folders]
    documents: list[dict[str, Any]] = []
    for report in reports:
        ui.heading(report.path)
        for item in report.checks:
            ui.text(f"  {item.verdict:<4}  {item.name}: {item.detail}")
        documents.append(
            {
                "path": report.path,
                "passed": report.passed,
                "checks": [
                    {"name": item.name, "verdict": item.verdict, "detail": item.detail} for item in report.checks
                ],
            }
        )
    passed = all(report.passed for report in reports)
    ui.document("ok" if passed else "failed", {"checkpoints": documents})
    return ExitCode.OK if passed else ExitCode.CHECK_FAILED
