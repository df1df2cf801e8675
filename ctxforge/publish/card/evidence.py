"""What a verification found, as a template shows it: the report's own tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxforge.lengths import format_length
from ctxforge.publish.card.markdown import Markdown, table
from ctxforge.publish.card.record import Record
from ctxforge.verification.html import external_tables, numbers, protocol_tables, tables, task_tables
from ctxforge.verification.html.gates_view import gate_views, verdict_view
from ctxforge.verification.html.tables import Table

if TYPE_CHECKING:
    from ctxforge.verification.report import VerifyReport

_NOTHING = (
    "At its target it has shown no more than that it runs: perplexity, retrieval and short text were not measured."
)


@dataclass(frozen=True)
class TableView:
    """A table with what stands around it."""

    caption: str
    drawn: Markdown
    note: str = ""


@dataclass(frozen=True)
class Evidence:
    """A verification.

    Attributes:
        verdict, words: of the gates; "not judged" where there were none.
        headline: the figures at the target length, in words, or that there are none.
        finite: False where losses were not finite numbers.
        effective: how far the gates hold, in words; empty where that was not judged.
        trained, target: the lengths that were measured, in words.
        other_lengths: what the conversion was made for, where the report is of other lengths; else empty.
        gates: the gates.
        left_out: (gate, reason) of those that were not judged.
        tables: what was measured.
        details: the same by position, and what lm-eval and the protocols gave; shown folded.
        remarks: what has to be known to read them.
        protocol, versions: how it was made.
        notes: what was left out or changed.
        compared: whether the unmodified model was measured too.
    """

    verdict: str
    words: str
    headline: str
    finite: bool
    effective: str
    trained: str
    target: str
    other_lengths: str
    gates: Markdown
    left_out: tuple[tuple[str, str], ...]
    tables: tuple[TableView, ...]
    details: tuple[TableView, ...]
    remarks: tuple[str, ...]
    protocol: Markdown
    versions: Markdown
    notes: tuple[str, ...]
    compared: bool


def evidence(report: VerifyReport, record: Record) -> Evidence:
    """The report as a card shows it; its figures are those of the HTML page."""
    protocol, models, judgement = report.protocol, tables.models_of(report), report.judgement
    trained = protocol.trained_length
    verdict = verdict_view(judgement)
    far = protocol_tables.far_context_words(models)
    return Evidence(
        verdict=verdict.word,
        words=verdict.words,
        headline=_headline(report),
        finite=report.result.finite,
        effective="" if report.effective is None else report.effective.words,
        trained=format_length(trained),
        target=format_length(protocol.target_length),
        other_lengths=_other_lengths(report, record),
        gates=_gates(report),
        left_out=() if judgement is None else judgement.left_out,
        tables=_views(
            [
                tables.perplexity_by_length(models, trained),
                tables.short_context(report),
                tables.retrieval_by_length(models, trained),
                task_tables.task_scores(models, trained),
                external_tables.external_averages(report.external),
            ]
        ),
        details=_views(
            [
                tables.perplexity_by_position(models, trained),
                protocol_tables.far_context(models),
                protocol_tables.protocol_scores(models, trained),
                external_tables.external_scores(report.external),
            ]
        ),
        remarks=tuple(
            entry
            for entry in (
                *((far, *protocol_tables.FAR_CONTEXT_TRAPS) if far else ()),
                *_protocol_remarks(report),
                external_tables.external_words(report.external),
                *(f"not run: {entry}" for entry in external_tables.external_not_run(report.external)),
                *external_tables.external_traps(report.external),
            )
            if entry
        ),
        protocol=_drawn(tables.protocol(protocol, report.result)),
        versions=_drawn(tables.versions(protocol.versions)),
        notes=report.notes,
        compared=report.source is not None,
    )


def _headline(report: VerifyReport) -> str:
    """Perplexity and retrieval at the target, and what short text lost."""
    target, parts = report.protocol.target_length, []
    scores = [next((s for s in m.lengths if s.length == target), None) for m in tables.models_of(report)]
    if scores[-1] is not None:
        theirs = scores[0] if len(scores) == 2 else None
        beside = "" if theirs is None else f" ({numbers.perplexity(theirs.ppl)} unmodified)"
        parts.append(f"perplexity {numbers.perplexity(scores[-1].ppl)}{beside}")
    share = tables.exact_at(report.result, target)
    if share is not None:
        parts.append(f"{numbers.percent(share.value)} of {share.units} answers found ({numbers.shares(share)})")
    if report.short_context is not None:
        parts.append(f"{numbers.nats(report.short_context.mean)} nats a token on short text")
    return f"At {format_length(target)}: {', '.join(parts)}." if parts else _NOTHING


def _protocol_remarks(report: VerifyReport) -> list[str]:
    notes = protocol_tables.protocol_notes(tables.models_of(report))
    return [f"{name}: {line}" for name, ways, traps in notes for line in (*ways, *traps)]


def _other_lengths(report: VerifyReport, record: Record) -> str:
    measured = (report.protocol.trained_length, report.protocol.target_length)
    made = (record.original_length, record.target_length)
    if None in made or measured == made:
        return ""
    return f"{made[0]} and {made[1]} tokens"


def _gates(report: VerifyReport) -> Markdown:
    rows = [
        (
            gate.name,
            f"{gate.verdict.symbol} {gate.verdict.word}",
            gate.value,
            f"{gate.interval} ({gate.units})" if gate.units else gate.interval,
            gate.threshold,
            gate.explanation,
        )
        for gate in gate_views(report.judgement)
    ]
    return table(("gate", "verdict", "value", "95 % interval", "threshold", "what is held to it"), rows)


def _views(found: Sequence[Table]) -> tuple[TableView, ...]:
    return tuple(TableView(one.caption, _drawn(one), one.note) for one in found if one.rows)


def _drawn(found: Table) -> Markdown:
    return table(found.header, found.rows, numeric=found.numeric)
