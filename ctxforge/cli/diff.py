"""`ctxforge diff`."""

from __future__ import annotations

import os

import click

from ctxforge.cli.output import Output, with_output


@click.command(
    short_help="Show how two checkpoints differ.",
    epilog="Example: ctxforge diff bundled bundled-4x --exit-code",
)
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when they differ, and with 3 when that can't be known.")
@click.option("--full", is_flag=True, help="List every key and tensor, instead of groups and the first of many keys.")
@click.option("--bytes", "with_bytes", is_flag=True, help="Download weight files whose hashes on the Hub differ.")
@click.option(
    "--trust-recorded",
    is_flag=True,
    help="Don't read files for which both ctxforge.json record the same hash (edits since then go unnoticed).",
)
@with_output
def command(
    ui: Output, before: str, after: str, exit_code: bool, full: bool, with_bytes: bool, trust_recorded: bool
) -> int:
    """Compare checkpoints A and B by their bytes, without loading models: config key by key, tensors, other files.

    A and B are folders, Hub ids with an optional revision (org/name@revision) or `bundled`. What a changed config means
    for the rotation is computed. Changed tensors are measured: the share of changed elements, the largest difference,
    and the largest relative to the larger of both numbers. Of the Hub, headers and listed hashes are compared, and
    weights are not moved without --bytes. How tensors are laid out in files, formatting and padding are told, and
    don't count as differences.
    """
    # Comparisons are elementwise: starting OpenBLAS's threads would cost more than half of numpy's import, for nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ctxforge.cli.diff_document import document
    from ctxforge.cli.diff_tables import show
    from ctxforge.differences import differences
    from ctxforge.errors import ExitCode

    with ui.progress("comparing") as progress:
        found = differences(before, after, with_bytes=with_bytes, trust_recorded=trust_recorded, progress=progress)
    show(ui, found, full=full)
    ui.document("different" if found.differ else "same" if found.complete else "unknown", document(found))
    if not exit_code:
        return ExitCode.OK
    if found.differ:
        return ExitCode.CHECK_FAILED
    return ExitCode.OK if found.complete else ExitCode.UNSUPPORTED
