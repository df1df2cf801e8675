"""The stage that publishes a job's result: its folder, or where nothing asks for one, the conversion itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge import pipeline
from ctxforge.batch.objects import conversion_recipe
from ctxforge.batch.sources import open_pinned
from ctxforge.batch.specs import JobSpec
from ctxforge.errors import ResourceError

if TYPE_CHECKING:
    from ctxforge.batch.task import Task
    from ctxforge.pipeline import Conversion
    from ctxforge.publish import PushOptions, PushPlan

Told = Callable[[str, int, int], None]


def needs_folder(spec: JobSpec) -> bool:
    """Whether a job writes its result on this machine; one that only publishes does not."""
    asked = spec.out is not None or spec.link or spec.overwrite or spec.checksum
    return spec.push is None or asked or spec.calibrate is not None or spec.verify is not None


def push_options(spec: JobSpec, *, yes: bool) -> PushOptions:
    """How a job publishes."""
    from ctxforge.publish import PushOptions

    assert spec.push is not None
    return PushOptions(**dataclasses.asdict(spec.push), yes=yes)


def plan_push(conversion: Conversion, spec: JobSpec, *, yes: bool) -> PushPlan:
    """What publishing would do, everything checked that can be; nothing is changed anywhere.

    Raises:
        CtxforgeError: see `ctxforge.publish.plan_publish`.
    """
    from ctxforge.publish import plan_publish

    return plan_publish(conversion, push_options(spec, yes=yes)).plan


def publish(task: Task, told: Told) -> dict[str, Any]:
    """Publish the task's result in one commit.

    Returns:
        What the journal keeps: repository, commit and address.

    Raises:
        CtxforgeError: see `ctxforge.publish.push`.
    """
    from ctxforge import publish as publishing

    options = push_options(task.spec, yes=task.yes)

    told(f"{task.name}: publishing", 0, 1)
    if task.written:
        done = publishing.push(Path(task.out), options, report=_report(task))
    else:
        recipe = conversion_recipe(task.spec)
        conversion = pipeline.plan_to_publish(recipe, open_pinned(recipe, task.revision))
        done = publishing.publish(conversion, options)
    return {
        "repo": done.repo,
        "commit": done.commit,
        "url": done.url,
        "pull_request": done.pull_request,
        "changed": done.changed,
        "uploaded": done.plan.to_upload,
    }


def _report(task: Task) -> dict[str, Any] | None:
    """What the verification of the same job measured, for the card."""
    if task.spec.verify is None or task.reports is None:
        return None
    path = Path(task.reports) / f"{task.name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ResourceError(
            f"the report of the verification, {path}, can't be read", "run without --resume's memory: --fresh"
        ) from None
    return found
