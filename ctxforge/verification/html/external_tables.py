"""Scores that lm-eval handed over, as tables with what was left out and what has to be known to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctxforge.lengths import format_length
from ctxforge.verification.html import numbers
from ctxforge.verification.html.tables import Table

if TYPE_CHECKING:
    from ctxforge.verification.external.result import ExternalReport, TaskScore
    from ctxforge.verification.statistics import Interval


def external_scores(found: ExternalReport | None) -> Table:
    """A row a task, length and metric: scores of result and source, their paired difference, documents left out."""
    scores = () if found is None else found.scores
    rows = tuple(
        (
            _name(score),
            numbers.NONE if score.length is None else format_length(score.length),
            _score(score.source),
            _score(score.result),
            _difference(score.difference),
            f"{score.paired} of {score.documents}" if score.source is not None else _run(score),
            _left_out(score),
        )
        for score in scores
    )
    header = (
        *("task, metric", "context", "source (95 %)", "result (95 %)", "difference (95 %)"),
        *("documents", "left out"),
    )
    note = "Left out: documents too long for the result, and for the source behind the bar." if rows else ""
    return Table("Scores by task", header, rows, note=note)


def external_averages(found: ExternalReport | None) -> Table:
    """Unweighted means over the tasks of a benchmark; incomplete ones say so."""
    rows = tuple(
        (
            mean.benchmark,
            numbers.NONE if mean.length is None else format_length(mean.length),
            numbers.NONE if mean.source is None else _write(mean.source),
            _write(mean.result),
            f"{mean.tasks} of {mean.of}" + ("" if mean.tasks == mean.of else ": not the published average"),
        )
        for mean in (() if found is None else found.averages)
    )
    return Table("Average over tasks", ("benchmark", "context", "source", "result", "tasks"), rows)


def external_not_run(found: ExternalReport | None) -> list[str]:
    """Tasks that were not run, with the reason."""
    lines = () if found is None else found.not_run
    return [f"{n.task}{'' if n.length is None else f' at {format_length(n.length)}'}: {n.reason}" for n in lines]


def external_traps(found: ExternalReport | None) -> list[str]:
    """What holds for the whole report, then each task's own, the tasks in front where it is not all of them."""
    if found is None:
        return []
    tasks = dict.fromkeys(score.task for score in found.scores)
    by_trap: dict[str, dict[str, None]] = {}
    for score in found.scores:
        for trap in score.traps:
            by_trap.setdefault(trap, {})[score.task] = None
    own = [t if len(names) == len(tasks) > 1 else f"{', '.join(names)}: {t}" for t, names in by_trap.items()]
    return [*found.traps, *own]


def external_words(found: ExternalReport | None) -> str:
    """Version and settings in a line; empty without a hand-over."""
    if found is None:
        return ""
    options = found.options
    words = [
        f"lm-eval {found.lm_eval}",
        f"{options.dtype} on {found.device}",
        "chat template" if options.chat_template else "no chat template",
        "shots as the tasks say" if options.fewshot is None else f"{options.fewshot} shots",
        f"at most {format_length(found.limit)} tokens for the result",
    ]
    if found.source_limit is not None:
        words.append(f"{format_length(found.source_limit)} for the source")
    if options.limit is not None:
        words.append(f"{options.limit} documents a task")
    return ", ".join(words) + "."


def _name(score: TaskScore) -> str:
    """Task, metric and filter, where they are not what they always are."""
    metric = "" if score.benchmark == "ruler" else f", {score.metric}"
    return score.task + metric + ("" if score.filter in ("", "none") else f", {score.filter}")


def _score(interval: Interval | None) -> str:
    if interval is None:
        return numbers.NONE
    between = numbers.bounds(interval, _write)
    return f"{_write(interval.value)} ({between if '-' in between else between.replace(' to ', '–')})"


def _write(value: float) -> str:
    """Three decimals: nearly every metric lies between 0 and 1."""
    return f"{value:.3f}" if abs(value) < 10 else numbers.estimate(value)


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return numbers.NONE
    sign = "+" if interval.value > 0 else ""
    return f"{sign}{_score(interval)}"


def _left_out(score: TaskScore) -> str:
    if score.source_left_out is None:
        return str(score.left_out)
    return f"{score.left_out} | {score.source_left_out}"


def _run(score: TaskScore) -> str:
    return f"{score.documents - score.left_out} of {score.documents}"
