"""The page of one verification."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ctxforge.errors import InternalError
from ctxforge.lengths import format_length
from ctxforge.templates_dir import templates_dir
from ctxforge.verification.html import external_tables, numbers, protocol_tables, tables, task_tables
from ctxforge.verification.html.figures import PERPLEXITY, RETRIEVAL, ROTATION, figures, labelled
from ctxforge.verification.html.gates_view import gate_views, verdict_view
from ctxforge.verification.html.rotation import TITLE, rotary_tables
from ctxforge.verification.svg import NARROW, style, without_style

if TYPE_CHECKING:
    from jinja2 import Environment

    from ctxforge.verification.gates.reach import EffectiveLength
    from ctxforge.verification.gates.types import Judgement
    from ctxforge.verification.report import VerifyReport


def render_report(
    report: VerifyReport,
    *,
    judgement: Judgement | None = None,
    effective: EffectiveLength | None = None,
    plan: Mapping[str, Any] | None = None,
    title: str,
    command: str,
) -> str:
    """One HTML page with everything that a verification found: no script, no network, light and dark.

    The same input gives the same bytes; there is no date in it.

    Args:
        report: of `verify`.
        judgement: of the gates; None takes the report's own, and without that there is no verdict.
        effective: of `effective_length`; None takes the report's own.
        plan: the `plan` of the result's `ctxforge.json`.
        title: such as the checkpoint's name.
        command: the command line that makes this report again.
    """
    judgement, effective = judgement or report.judgement, effective or report.effective
    protocol, models = report.protocol, tables.models_of(report)
    trained = protocol.trained_length
    found = rotary_tables(plan)
    method = str(plan.get("method", "method")) if plan is not None else ""
    captions = {
        PERPLEXITY: "Perplexity by position",
        RETRIEVAL: "Retrieval by context length and depth",
        ROTATION: TITLE,
    }
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            command=command,
            figure_style=style(),
            verdict=verdict_view(judgement),
            gates=gate_views(judgement),
            left_out=() if judgement is None else judgement.left_out,
            facts=_facts(report, effective, plan),
            finite=report.result.finite,
            figures=responsive(figures(report, plan=plan, heading=False), _narrow(report, plan)),
            captions=captions,
            position=tables.perplexity_by_position(models, trained),
            by_length=tables.perplexity_by_length(models, trained),
            retrieval=tables.retrieval_by_length(models, trained),
            short_context=tables.short_context(report),
            method=method,
            warnings=strings(plan, "warnings"),
            expressed_as=strings(plan, "expressed_as"),
            tasks=task_tables.task_scores(models, trained),
            task_meanings=task_tables.task_meanings(models),
            task_outputs=task_tables.task_outputs(models, trained),
            protocols=protocol_tables.protocol_scores(models, trained),
            protocol_notes=protocol_tables.protocol_notes(models),
            far_context=protocol_tables.far_context(models),
            far_context_words=protocol_tables.far_context_words(models),
            far_context_traps=protocol_tables.FAR_CONTEXT_TRAPS,
            external=external_tables.external_scores(report.external),
            external_averages=external_tables.external_averages(report.external),
            external_not_run=external_tables.external_not_run(report.external),
            external_traps=external_tables.external_traps(report.external),
            external_words=external_tables.external_words(report.external),
            notes=report.notes,
            rotation=tables.rotation(found),
            by_pair=tables.lambda_by_pair(labelled(method, found)),
            protocol=tables.protocol(protocol, report.result),
            versions=tables.versions(protocol.versions),
            source=report.source is not None,
        )
    )


@cache
def environment() -> Environment:
    """The templates of `templates/report`; whatever is put into them is escaped.

    Raises:
        InternalError: this installation lacks them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = templates_dir() / "report"
    if not folder.is_dir():
        raise InternalError("this installation of ctxforge has no report templates", "install ctxforge again")
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def responsive(wide: Mapping[str, str], narrow: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Each figure in both layouts, without the style sheet that the page holds once."""
    return {name: (without_style(svg), without_style(narrow[name])) for name, svg in wide.items()}


def strings(plan: Mapping[str, Any] | None, key: str) -> list[str]:
    """A list of lines in the plan; empty where it holds none."""
    found = plan.get(key) if plan is not None else None
    return [str(entry) for entry in found] if isinstance(found, list | tuple) else []


def _narrow(report: VerifyReport, plan: Mapping[str, Any] | None) -> dict[str, str]:
    return figures(report, plan=plan, width=NARROW, heading=False)


def _facts(
    report: VerifyReport, effective: EffectiveLength | None, plan: Mapping[str, Any] | None
) -> list[tuple[str, str, str]]:
    """What stands beside the verdict: name, value, and a line about it."""
    trained, target = report.protocol.trained_length, report.protocol.target_length
    facts = [
        ("target length", format_length(target), f"{target / trained:.3g} × the trained {format_length(trained)}"),
    ]
    if effective is not None:
        reached = "none" if effective.length is None else format_length(effective.length)
        words = effective.words.removeprefix(reached).lstrip(":, ")
        facts.insert(0, ("effective length", reached, words))
    if plan is not None:
        given = plan.get("scale")
        facts.append(("method", str(plan.get("method", "?")), f"scale {given:g}" if isinstance(given, float) else ""))
    score = next((s for s in report.result.lengths if s.length == target), None)
    if score is not None:
        other = next((s for s in report.source.lengths if s.length == target), None) if report.source else None
        beside = f"the source: {numbers.perplexity(other.ppl)}" if other is not None else ""
        facts.append((f"perplexity at {format_length(target)}", numbers.perplexity(score.ppl), beside))
    share = tables.exact_at(report.result, target)
    if share is not None:
        words = f"interval {numbers.shares(share)}, {share.units} prompts"
        facts.append((f"retrieval at {format_length(target)}", numbers.percent(share.value), words))
    return facts
