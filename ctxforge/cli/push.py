"""`ctxforge push`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctxforge.cli.output import Output, with_output
from ctxforge.cli.push_options import PUSH_OPTIONS, build_push, push_options, remark_plan, show_plan, show_published


@click.command(
    short_help="Publish a checkpoint folder on the Hub, in one commit.",
    epilog="Example: ctxforge push llama-64k me/Llama-2-7b-hf-yarn-64k",
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("repo", required=False)
@push_options
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What ctxforge verify --json printed, for the card. Default: verification.json in DIR.",
)
@click.option("--force", is_flag=True, help="Publish a folder that fails ctxforge check.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be moved, and change nothing.")
@with_output
def command(
    ui: Output, folder: Path, repo: str | None, report_path: Path | None, force: bool, dry_run: bool, **options: Any
) -> int:
    """Publish the checkpoint in DIR as REPO (owner/name), with a model card.

    One commit: REPO shows all of it, or what it showed before. Files that the source on the Hub has too are copied
    there. An interrupted push is repeated by the same command, which sends nothing twice. Without REPO the name is
    <you>/<model>-<method>-<length>. The address of the commit is printed.
    """
    from ctxforge import publish
    from ctxforge.errors import ExitCode
    from ctxforge.publish.from_folder import read_report_file

    given = {name: options.pop(name) for name in PUSH_OPTIONS}
    chosen = build_push(repo, given, force=force)
    report = None if report_path is None else read_report_file(report_path)
    if dry_run:
        plan = publish.plan_push(folder, chosen, report=report).plan
        show_plan(ui, plan)
        ui.document("ok", {"push": plan.document()})
        return ExitCode.OK
    done = publish.push(folder, chosen, report=report, tell=ui.note, planned=lambda plan: remark_plan(ui, plan))
    show_published(ui, done)
    ui.document("ok", done.document())
    return ExitCode.OK
