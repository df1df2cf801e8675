"""The first stage of a job: the output, converted anew, copied from a twin, or found finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge import pipeline, provenance
from ctxforge.batch.objects import calibration_options, calibration_recipe, conversion_recipe
from ctxforge.batch.outputs import identity, is_finished, snapshot
from ctxforge.batch.sources import open_pinned
from ctxforge.batch.texts import guard_texts
from ctxforge.checkpoint import Checkpoint, Edits, WriteReport, read_checkpoint, write_checkpoint
from ctxforge.checkpoint.staging import writing
from ctxforge.errors import HubError
from ctxforge.recipe import ConversionRecipe, OutputOptions

if TYPE_CHECKING:
    from ctxforge.batch.task import Task

Told = Callable[[str, int, int], None]
_READ_ONLY = 0o444


def convert(task: Task, told: Told, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Make the task's output.

    Args:
        task: what to do.
        told: called with (what, done, of how many).
        checkpoint: the source, where it was read already.

    Returns:
        What the journal keeps: `how` (written, twin, found or calibrated), bytes, and a snapshot of the output.

    Raises:
        CtxforgeError: see `pipeline.extend`, and a branch of the Hub that moved since the job was planned.
    """
    out, recipe = Path(task.out), conversion_recipe(task.spec)
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    now = identity(out)
    if now is not None and now != task.before and is_finished(out, recipe):
        return {"how": "found", "bytes_written": 0, "snapshot": snapshot(out)}
    output = OutputOptions(
        out=out,
        link=task.spec.link or task.shared is not None,
        overwrite=task.replace,
        checksum=task.spec.checksum,
    )
    if task.twin is not None:
        found = _copy_twin(task, recipe, output, checkpoint)
    elif task.spec.calibrate is not None:
        found = _calibrated(task, recipe, output, told)
    else:
        found = _written(task, recipe, output, told, checkpoint)
    return {**found, "snapshot": snapshot(out)}


def _source(task: Task, recipe: ConversionRecipe, checkpoint: Checkpoint | None) -> Checkpoint:
    found = checkpoint or open_pinned(recipe, task.revision)
    return found if task.shared is None else replace(found, root=Path(task.shared))


def _written(
    task: Task, recipe: ConversionRecipe, output: OutputOptions, told: Told, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    done = pipeline.extend(
        recipe,
        output,
        lambda done, total: told(f"{task.name}: writing", done, total),
        _source(task, recipe, checkpoint),
    )
    if task.shared is not None:
        _protect(done.report)
    report = done.report
    return {
        "how": "written",
        "bytes_written": report.bytes_written,
        "linked": len(report.linked),
        "cloned": len(report.cloned),
        "copied": len(report.copied),
        "patched": len(report.patched),
    }


def _copy_twin(
    task: Task, recipe: ConversionRecipe, output: OutputOptions, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """The output of a job that did the same, with this job's own provenance."""
    assert task.twin is not None
    twin = read_checkpoint(task.twin)
    document = dict(twin.json_files[provenance.FILE_NAME])
    planned = None
    if task.spec.calibrate is None:
        planned = pipeline.plan(recipe, checkpoint or open_pinned(recipe, task.revision))

    def finish(report: WriteReport) -> Mapping[str, bytes]:
        if planned is None:  # the key of a fine-tune holds the whole recipe: the provenance is the same
            return {provenance.FILE_NAME: twin.json_texts[provenance.FILE_NAME].encode()}
        return {provenance.FILE_NAME: provenance.record(planned, report.sha256, document["edited_tensors"])}

    report = write_checkpoint(
        twin,
        Edits(removed=(provenance.FILE_NAME,)),
        output.out,
        link=task.spec.share or output.link,
        overwrite=output.overwrite,
        checksum=output.checksum,
        finish=finish,
    )
    _protect(report)
    return {"how": "twin", "of": task.twin, "bytes_written": report.bytes_written, "linked": len(report.linked)}


def _calibrated(task: Task, recipe: ConversionRecipe, output: OutputOptions, told: Told) -> dict[str, Any]:
    from ctxforge.calibration import extend_and_calibrate

    assert task.spec.calibrate is not None
    options = calibration_options(task.spec.calibrate, guard_texts(task.spec))
    chosen = calibration_recipe(task.spec.calibrate)
    _, found = extend_and_calibrate(
        recipe,
        replace(output, link=task.spec.link),
        chosen,
        options,
        lambda *now: told(f"{task.name}: {now[0]}", *now[1:]),
    )
    assert found is not None  # one process
    used = (read_checkpoint(output.out).json_files[provenance.FILE_NAME].get("source") or {}).get("revision")
    if task.revision is not None and used != task.revision:
        raise HubError(
            f"{recipe.source} was {task.revision} when the job was planned, and is {used} now",
            "run again with --resume: it is planned anew; name a commit as `revision` to hold it still",
        )
    return {"how": "calibrated", "bytes_written": _size(output.out), "calibration": found.document()}


def _protect(report: WriteReport) -> None:
    """Files that several outputs share are made read-only: a change in one would be a change in all."""
    for name in report.linked:
        path = report.out / name
        path.chmod(_READ_ONLY)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
