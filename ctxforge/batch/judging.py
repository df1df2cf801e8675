"""The stage that measures a job's output and judges it by gates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge import pipeline
from ctxforge.batch.objects import verify_arguments
from ctxforge.batch.texts import verify_text
from ctxforge.checkpoint.staging import writing

if TYPE_CHECKING:
    from ctxforge.batch.task import Task
    from ctxforge.verification import VerifyReport

Told = Callable[[str, int, int], None]


def judge(task: Task, told: Told) -> dict[str, Any]:
    """Measure the task's output, and write the reports that it asks for.

    Returns:
        What the journal keeps: verdict, exit code, headline, and each gate in words.

    Raises:
        CtxforgeError: see `pipeline.verify`.
    """
    spec = task.spec.verify
    assert spec is not None
    found = pipeline.verify(
        Path(task.out),
        text=verify_text(task.spec),
        source=spec.source or _source(task),
        progress=lambda what, done, total: told(f"{task.name}: {what}", done, total),
        **verify_arguments(spec),
    )
    judgement = found.judgement
    assert judgement is not None
    if task.reports is not None:
        _write_text(str(Path(task.reports) / f"{task.name}.json"), json.dumps(found.to_dict(), indent=2))
    _write(task, found)
    return {
        "verdict": str(judgement.verdict),
        "exit_code": int(judgement.exit_code),
        "headline": judgement.headline,
        "gates": {result.gate.name: f"{result.verdict}: {result.words}" for result in judgement.results},
    }


def _source(task: Task) -> str:
    """The job's source, at the commit that it was planned on."""
    if task.revision is None:
        return task.spec.source
    return f"{task.spec.source.partition('@')[0]}@{task.revision}"


def _write(task: Task, found: VerifyReport) -> None:
    spec = task.spec.verify
    assert spec is not None
    assert found.judgement is not None
    if spec.plot is not None:
        from ctxforge.verification import curves_of, plot_svg

        protocol = found.protocol
        drawn = plot_svg(curves_of(found), protocol.trained_length, target_length=protocol.target_length)
        _write_text(spec.plot, drawn)
    if spec.report is not None:
        _write_text(spec.report, _report(task, found, spec.report))
    if spec.junit is not None:
        from ctxforge.verification.outputs import junit_xml

        _write_text(spec.junit, junit_xml(found.judgement, name=f"ctxforge run: {task.name}"))


def _report(task: Task, found: VerifyReport, path: str) -> str:
    if not path.endswith(".html"):
        return json.dumps(found.to_dict(), indent=2)
    from ctxforge.provenance import FILE_NAME
    from ctxforge.verification.html import render_report

    recorded = json.loads((Path(task.out) / FILE_NAME).read_text(encoding="utf-8"))
    plan = recorded.get("plan")
    return render_report(found, plan=plan, title=task.name, command=f"ctxforge run --only {task.name}")


def _write_text(name: str, content: str) -> None:
    path = Path(name)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
