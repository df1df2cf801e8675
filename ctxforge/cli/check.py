"""`ctxforge check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.output import Output, with_output

if TYPE_CHECKING:
    from ctxforge.static_checks import CheckReport


@click.command(
    short_help="Check checkpoints statically, for CI.",
    epilog="Example: ctxforge check llama-64k --junit check.xml --sarif check.sarif",
)
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--files", "as_files", is_flag=True, help="CHECKPOINTS are changed files: check the folders they lie in.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the checks as JUnit XML.")
@click.option("--sarif", type=click.Path(path_type=Path), help="Write failures as SARIF 2.1.0, for code scanning.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a table of the checks.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the document of --json into a file.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 even when a check fails: for reporting alone.")
@with_output
def command(
    ui: Output,
    checkpoints: tuple[str, ...],
    as_files: bool,
    exit_zero: bool,
    **files: Path | None,
) -> int:
    """Check CHECKPOINTS without running them: exit code 0 when everything passes, 1 when a check fails.

    Does each config dialect compute the same frequencies; are lengths integers and consistent; does the tokenizer
    allow the length; do shards, index and recorded hashes agree. A checkpoint is a folder or a Hub id with an optional
    revision (org/name@revision), of which only small files and tensor headers are read. One that can't be read at all
    exits with the code of its error, after the others were checked. Under GitHub Actions failures are annotated, and
    the step summary gets a table.
    """
    from ctxforge.cli.check_outputs import Outputs, document, write_outputs
    from ctxforge.cli.files import check_writable
    from ctxforge.errors import CheckpointError, ExitCode

    outputs = Outputs(**files)
    check_writable(*outputs.files)
    if as_files:
        from ctxforge.static_checks.changed import folders_of

        checkpoints = folders_of(checkpoints)
        if not checkpoints:
            ui.note("no checkpoint folder holds any of these files")
    reports = [_check(name) for name in checkpoints]
    for report in reports:
        _show(ui, report)
    found = document(reports)
    write_outputs(ui, reports, found, outputs)
    ui.document(found.pop("status"), found)
    errors = [report.error for report in reports if report.error is not None]
    if exit_zero:
        # A broken checkpoint is a finding; a misspelt path or an unreachable Hub is not.
        errors = [error for error in errors if not isinstance(error, CheckpointError)]
    if errors:
        return errors[0].exit_code
    return ExitCode.OK if exit_zero or all(report.passed for report in reports) else ExitCode.CHECK_FAILED


def _check(name: str) -> CheckReport:
    from ctxforge import static_checks
    from ctxforge.errors import CtxforgeError

    try:
        return static_checks.check(name)
    except CtxforgeError as error:
        return static_checks.unreadable(name, error)


def _show(ui: Output, report: CheckReport) -> None:
    """The checks on stdout; what can't be read as two lines on stderr, as every error."""
    if report.error is not None:
        click.echo(f"Error: {report.error.cause}", err=True)
        click.echo(f"Hint: {report.error.remedy}", err=True)
    revision: Any = f" at {report.revision}" if report.revision else ""
    ui.heading(f"{report.path}{revision}")
    for item in report.checks:
        ui.text(f"  {item.verdict:<4}  {item.name}: {item.detail}")
        for fault in item.faults:
            if fault.line is not None:
                ui.text(f"        {report.base}/{fault.file}:{fault.line}")
