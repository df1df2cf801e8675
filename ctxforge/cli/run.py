"""`ctxforge run`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.options import bytes_text
from ctxforge.cli.output import Output, with_output

if TYPE_CHECKING:
    from ctxforge.batch import BatchOptions, BatchResult, JobResult, Prepared


@click.command(
    short_help="Run the jobs of a batch file.",
    epilog="Example: ctxforge run recipes.yaml --jobs 2 --keep-going",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="GLOB", help="Jobs whose names match; may be repeated.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for outputs, in place of the file's.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and the bytes; write nothing.")
@click.option("--keep-going", is_flag=True, help="Go on after a job has failed.")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="How many at the same time.  [default: 1, local]")
@click.option("--resume", is_flag=True, help="Go on with what an earlier run of the file left.")
@click.option("--fresh", is_flag=True, help="Forget what an earlier run left; its outputs stay.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray", "slurm"]),
    default="local",
    show_default=True,
    help="Where jobs run: processes here, a Ray cluster, or Slurm.",
)
@click.option("--yes", is_flag=True, help="Agree to what would be asked, such as a thousand jobs.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    allow_from_autoenv=False,
    help="Let jobs that say so run the modeling code inside checkpoints. Read it first.",
)
@with_output
def command(ui: Output, file: Path, dry_run: bool, **options: Any) -> int:
    """Run the jobs of FILE: conversions one by one, or every model with every method at every length.

    All jobs are planned, from headers only, before any is run. Interrupted or killed, the same command with --resume
    goes on: what is finished and unchanged is not done again. The exit code is the worst of the jobs'.
    """
    # As `extend` does: edits are elementwise, and OpenBLAS's threads would cost more than they give.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ctxforge import batch
    from ctxforge.errors import UsageError

    if options["resume"] and options["fresh"]:
        raise UsageError("--resume and --fresh contradict each other", "give one of them")
    chosen = batch.BatchOptions(**options)
    chosen = _asked(ui, file, chosen)
    with ui.steps("jobs") as told:
        prepared = batch.prepare(file, chosen, told)
    _warn(ui, prepared)
    if dry_run:
        return _show_plans(ui, prepared, chosen)
    with ui.steps("bytes") as told:
        found = batch.run(prepared, chosen, told=told, said=lambda result, *count: _say(ui, result, *count))
    return _show_results(ui, found)


def _asked(ui: Output, file: Path, options: BatchOptions) -> BatchOptions:
    """The options, with the user's own yes to a file that makes very many jobs."""
    import sys
    from dataclasses import replace

    from ctxforge.batch.expanding import MANY, count_jobs
    from ctxforge.batch.including import read_batch

    if options.yes or ui.as_json or not sys.stdin.isatty():
        return options
    total = count_jobs(read_batch(file))
    if total > MANY and click.confirm(f"{file} makes {total} jobs. Plan them all?", err=True):
        return replace(options, yes=True)
    return options


def _warn(ui: Output, prepared: Prepared) -> None:
    """What plans warn of, each warning once however many jobs have it."""
    names: dict[str, list[str]] = {}
    for planned in prepared.jobs:
        for line in planned.warnings:
            names.setdefault(line, []).append(planned.name)
    for line, jobs in names.items():
        ui.warn(f"{jobs[0]}{f' and {len(jobs) - 1} more' if len(jobs) > 1 else ''}: {line}")
    for refused in prepared.refused:
        ui.warn(f"{refused.error.cause} ({refused.error.remedy})")


def _shown(out: Path | str) -> str:
    """A path as short as it can be said from here."""
    path = Path(out)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _say(ui: Output, result: JobResult, done: int, total: int) -> None:
    told = result.failure.cause if result.failure is not None else f"{result.verdict} {result.url}".strip()
    ui.note(f"[{done}/{total}] {result.name}: {result.status} in {result.seconds:.1f} s  {told}")
    if result.failure is not None:
        ui.note(f"  {result.failure.remedy}")


def _show_plans(ui: Output, prepared: Prepared, options: BatchOptions) -> int:
    from ctxforge import batch
    from ctxforge.batch.journal import replay
    from ctxforge.batch.results import described, worst

    there = options.resume and prepared.journal.is_file()
    records = replay(prepared.journal.read_bytes()) if there else {}
    due = batch.due_jobs(prepared, records, resume=options.resume)
    rows, documents = [], []
    for one in due:
        planned, stages = one.planned, one.decision.stages
        todo = " ".join(stages) or "nothing: done before"
        lengths = f"{planned.original_length} -> {planned.target_length}"
        rows.append(
            (
                planned.name,
                planned.method,
                lengths,
                bytes_text(planned.bytes_to_download),
                bytes_text(planned.bytes_to_write),
                bytes_text(planned.bytes_to_upload),
                todo,
                _shown(planned.out) if planned.written else "-",
            )
        )
        documents.append(
            {
                "job": planned.name,
                "method": planned.method,
                "original_length": planned.original_length,
                "target_length": planned.target_length,
                "bytes": {
                    "to_download": planned.bytes_to_download,
                    "to_read": planned.bytes_to_read,
                    "to_write": planned.bytes_to_write,
                    "to_upload": planned.bytes_to_upload,
                },
                "stages": list(stages),
                "reason": one.decision.reason or None,
                "out": str(planned.out) if planned.written else None,
                "warnings": list(planned.warnings),
            }
        )
    ui.table(("job", "method", "tokens", "to download", "to write", "to upload", "to do", "out"), rows)
    failures = [(refused.name, described(refused.error)) for refused in prepared.refused]
    code = worst(failure.exit_code for _, failure in failures)
    refusals = [{"job": name, "error": vars(failure)} for name, failure in failures]
    ui.document("ok" if code == 0 else "failed", {"jobs": documents, "refused": refusals, "exit_code": code})
    return code


def _show_results(ui: Output, found: BatchResult) -> int:
    rows = [
        (
            result.name,
            result.status,
            f"{result.seconds:.1f}",
            bytes_text(result.bytes_written),
            result.verdict or "-",
            "-" if result.out is None else _shown(result.out),
        )
        for result in found.results
    ]
    ui.table(("job", "status", "seconds", "written", "verdict", "out"), rows)
    for result in found.results:
        if result.failure is not None:
            ui.text(f"  {result.name}: {result.failure.cause}")
    statuses = [result.status for result in found.results]
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    ui.text(", ".join(f"{count} {status}" for status, count in counts.items()))
    if found.interrupted:
        ui.note("interrupted; the same command with --resume goes on")
    status = "interrupted" if found.interrupted else ("ok" if found.exit_code == 0 else "failed")
    ui.document(
        status,
        {
            "jobs": [result.document() for result in found.results],
            "counts": counts,
            "exit_code": found.exit_code,
            "journal": str(found.journal),
        },
    )
    return found.exit_code
