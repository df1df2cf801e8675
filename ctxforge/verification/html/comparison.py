"""The page of several methods, ranked on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctxforge.errors import UsageError
from ctxforge.lengths import format_length
from ctxforge.verification.html import numbers, protocol_tables, tables, task_tables
from ctxforge.verification.html.comparison_figures import CAPTIONS, comparison_figures
from ctxforge.verification.html.page import environment, responsive
from ctxforge.verification.html.rotation import rotary_tables
from ctxforge.verification.svg import NARROW, WIDE, style

if TYPE_CHECKING:
    from ctxforge.verification.measures import Measures
    from ctxforge.verification.report import Protocol
    from ctxforge.verification.statistics import Interval

BEST, WORSE, BETTER = "best", "worse than the best", "better than the best"
UNTOLD, TOO_FEW, NO_SCORE = "not told apart from the best", "too few to tell", "no score"


@dataclass(frozen=True)
class ComparisonRow:
    """One method.

    Attributes:
        name: as in tables and plots.
        measures: what it scored.
        plan: as in `ctxforge.json`; None for the unmodified source.
        score: what the methods are ranked by, with its interval.
        difference: this score minus the best method's, paired by unit; None for the best itself.
        warnings: of its plan, one line each.
    """

    name: str
    measures: Measures
    plan: Mapping[str, Any] | None
    score: Interval
    difference: Interval | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankedView:
    """A row of the ranking."""

    rank: str
    name: str
    verdict: str
    css: str
    score: str
    interval: str
    difference: str
    difference_interval: str
    perplexity: str
    retrieval: str
    retrieval_interval: str
    short: str


def rank(rows: Sequence[ComparisonRow], *, higher_is_better: bool) -> list[ComparisonRow]:
    """Best score first; those without one last; equal scores in the order given."""

    def key(row: ComparisonRow) -> tuple[bool, float]:
        value = row.score.value
        return math.isnan(value), 0.0 if math.isnan(value) else -value if higher_is_better else value

    return sorted(rows, key=key)


def standing(row: ComparisonRow, *, first: bool, higher_is_better: bool) -> str:
    """What the interval of the difference to the best says, in words."""
    if math.isnan(row.score.value):
        return NO_SCORE
    if first:
        return BEST
    if row.difference is None or row.difference.bounds is None:
        return TOO_FEW
    low, high = row.difference.bounds
    if low <= 0 <= high:
        return UNTOLD
    return WORSE if (high < 0) == higher_is_better else BETTER


def render_comparison(
    rows: Sequence[ComparisonRow],
    *,
    trained_length: int,
    target_length: int,
    score: str,
    higher_is_better: bool,
    protocol: Protocol | None = None,
    title: str,
    command: str,
) -> str:
    """One HTML page that ranks methods: no script, no network, light and dark.

    Args:
        rows: the methods, in any order; lines and tables follow their rank.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        score: what `ComparisonRow.score` is, in words with its unit, such as "answer loss at 16k, nats a token".
        higher_is_better: whether the largest score is the best one.
        protocol: how the numbers were made.
        title: such as the source's name.
        command: the command line that makes this page again.

    Raises:
        UsageError: there is no row.
    """
    if not rows:
        raise UsageError("there is no method to compare.", "Name at least one method.")
    ranked = rank(rows, higher_is_better=higher_is_better)
    base = next((row for row in ranked if row.plan is None), None)
    models = [_renamed(row) for row in ranked]

    def drawn(width: float) -> dict[str, str]:
        return comparison_figures(
            ranked, trained_length=trained_length, target_length=target_length, score=score, width=width, heading=False
        )

    scores = [v for row in ranked for v in (row.score.value, *(row.score.bounds or ()))]
    write = numbers.alike(scores)
    views = [
        _view(row, i, base, target_length, write, higher_is_better=higher_is_better, best=ranked[0])
        for i, row in enumerate(ranked)
    ]
    named = [(row.name, table) for row in ranked for table in rotary_tables(row.plan) if table.changed]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            title=title,
            command=command,
            figure_style=style(),
            headline=_headline(ranked, views),
            score=score,
            better="higher is better" if higher_is_better else "lower is better",
            views=views,
            trained=format_length(trained_length),
            target=format_length(target_length),
            has_base=base is not None,
            figures=responsive(drawn(WIDE), drawn(NARROW)),
            captions=CAPTIONS,
            position=tables.perplexity_by_position(models, trained_length),
            retrieval=tables.retrieval_by_length(models, trained_length),
            tasks=task_tables.task_scores(models, trained_length),
            task_meanings=task_tables.task_meanings(models),
            task_outputs=task_tables.task_outputs(models, trained_length),
            protocols=protocol_tables.protocol_scores(models, trained_length),
            protocol_notes=protocol_tables.protocol_notes(models),
            far_context=protocol_tables.far_context(models),
            far_context_words=protocol_tables.far_context_words(models),
            far_context_traps=protocol_tables.FAR_CONTEXT_TRAPS,
            by_pair=tables.lambda_by_pair(named),
            warnings=[(row.name, warning) for row in ranked for warning in row.warnings],
            broken=[row.name for row in ranked if not row.measures.finite],
            protocol=None if protocol is None else tables.protocol(protocol, ranked[0].measures),
            versions=None if protocol is None else tables.versions(protocol.versions),
        )
    )


def _headline(ranked: Sequence[ComparisonRow], views: Sequence[RankedView]) -> str:
    if math.isnan(ranked[0].score.value):
        return "No method has a score."
    close = [view.name for view in views[1:] if view.verdict in (UNTOLD, TOO_FEW)]
    if not close:
        return f"{ranked[0].name} is the best of {len(ranked)}."
    return f"{ranked[0].name} has the best score of {len(ranked)}; not told apart from it: {', '.join(close)}."


def _view(
    row: ComparisonRow,
    index: int,
    base: ComparisonRow | None,
    target_length: int,
    write: Callable[[float], str],
    *,
    higher_is_better: bool,
    best: ComparisonRow,
) -> RankedView:
    verdict = standing(row, first=row is best, higher_is_better=higher_is_better)
    length = next((s for s in row.measures.lengths if s.length == target_length), None)
    share = tables.exact_at(row.measures, target_length)
    return RankedView(
        rank=str(index + 1) if verdict != NO_SCORE else numbers.NONE,
        name=row.name,
        verdict=verdict,
        css={BEST: "pass", WORSE: "fail", NO_SCORE: "fail"}.get(verdict, "inconclusive"),
        score=write(row.score.value),
        interval=numbers.bounds(row.score, write),
        difference=_difference(row, write)[0],
        difference_interval=_difference(row, write)[1],
        perplexity=numbers.NONE if length is None else numbers.perplexity(length.ppl),
        retrieval=numbers.NONE if share is None else numbers.percent(share.value),
        retrieval_interval="" if share is None else numbers.shares(share),
        short=_short(row, base),
    )


def _difference(row: ComparisonRow, write: Callable[[float], str]) -> tuple[str, str]:
    """The difference to the best, and its interval."""
    if row.difference is None or math.isnan(row.difference.value):
        return numbers.NONE, ""
    sign = "+" if row.difference.value > 0 else ""
    return sign + write(row.difference.value), numbers.bounds(row.difference, write)


def _short(row: ComparisonRow, base: ComparisonRow | None) -> str:
    """Mean loss inside L0 minus the unmodified source's, on the same windows."""
    ours = row.measures.short_windows
    theirs = base.measures.short_windows if base is not None else ()
    if row is base or not ours or len(ours) != len(theirs):
        return numbers.NONE
    return numbers.nats(math.fsum(a - b for a, b in zip(ours, theirs, strict=True)) / len(ours))


def _renamed(row: ComparisonRow) -> Measures:
    from dataclasses import replace

    return replace(row.measures, label=row.name)
