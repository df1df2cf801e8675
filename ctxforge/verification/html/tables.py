"""The report's tables as text, the same for every page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctxforge.lengths import format_length
from ctxforge.verification.gates.estimation import estimate
from ctxforge.verification.gates.measurement import difference, mean
from ctxforge.verification.html import numbers
from ctxforge.verification.html.rotation import RotaryTable
from ctxforge.verification.plot import bucket_intervals
from ctxforge.verification.statistics import Interval, wilson

if TYPE_CHECKING:
    from ctxforge.verification.measures import Measures
    from ctxforge.verification.report import Protocol, VerifyReport


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first cell of each row heads it. `numeric` aligns the others to the right."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True
    note: str = ""


def models_of(report: VerifyReport) -> list[Measures]:
    """The source where it was measured, and the result."""
    return [report.result] if report.source is None else [report.source, report.result]


def perplexity_by_position(models: Sequence[Measures], trained_length: int) -> Table:
    """A row a bucket, a column a model and one for its interval."""
    measured = [model for model in models if model.buckets]
    intervals = [bucket_intervals(model) for model in measured]
    bounded = [any(i.bounds is not None for i in found) for found in intervals]
    header: list[str] = ["positions"]
    for model, shown in zip(measured, bounded, strict=True):
        header += [model.label, "95 %"] if shown else [model.label]
    rows = []
    for row, bucket in enumerate(measured[0].buckets if measured else ()):
        beyond = " (beyond L0)" if bucket.start >= trained_length else ""
        cells = [f"{format_length(bucket.start)}–{format_length(bucket.end)}{beyond}"]
        for model, found, shown in zip(measured, intervals, bounded, strict=True):
            cells.append(numbers.perplexity(model.buckets[row].ppl))
            if shown:
                cells.append(numbers.bounds(found[row], numbers.perplexity))
        rows.append(tuple(cells))
    windows = min((len(model.window_buckets) for model in measured), default=0)
    note = "" if any(bounded) or not rows else f"No intervals: {windows} windows, and 8 are needed."
    return Table("Perplexity by position", tuple(header), tuple(rows), note=note)


def perplexity_by_length(models: Sequence[Measures], trained_length: int) -> Table:
    """Perplexity of the first n tokens, a row a length."""
    measured = [model for model in models if model.lengths]
    rows = tuple(
        (numbers.length(row[0].length, trained_length), *(numbers.perplexity(score.ppl) for score in row))
        for row in zip(*(model.lengths for model in measured), strict=False)
    )
    return Table("Perplexity of the whole context", ("context", *(model.label for model in measured)), rows)


def exact_at(model: Measures, length: int) -> Interval | None:
    """Share of exact answers at a length, with Wilson's interval; None where nothing was asked."""
    cells = [cell for cell in model.retrieval if cell.length == length]
    return wilson(sum(cell.exact for cell in cells), sum(cell.count for cell in cells)) if cells else None


def retrieval_by_length(models: Sequence[Measures], trained_length: int) -> Table:
    """Exact answers and their loss, a row a length and model."""
    rows = []
    for length in sorted({cell.length for model in models for cell in model.retrieval}):
        for model in models:
            cells = [cell for cell in model.retrieval if cell.length == length]
            share = exact_at(model, length)
            if share is None:
                continue
            worst = max(cells, key=lambda cell: (math.isnan(cell.nll), cell.nll))
            loss = math.fsum(c.nll * c.count for c in cells) / max(1, sum(c.count for c in cells))
            rows.append(
                (
                    numbers.length(length, trained_length),
                    model.label,
                    f"{sum(cell.exact for cell in cells)}/{sum(cell.count for cell in cells)}",
                    numbers.shares(share),
                    numbers.number(loss, 3),
                    f"{100 * worst.depth_start:.0f}–{100 * worst.depth_end:.0f} %: {numbers.number(worst.nll, 3)}",
                )
            )
    header = ("context", "model", "exact", "95 % (Wilson)", "nats a token", "worst depth: nats")
    return Table("Retrieval by length", header, tuple(rows))


def short_context(report: VerifyReport) -> Table:
    """The paired difference against the source inside L0."""
    found, source = report.short_context, report.source
    header = ("nats a token, on the same windows", "value")
    if found is None or not found.differences:
        return Table("Loss inside the trained length", header, ())
    interval = _short_interval(report, found.differences)
    rows = [("windows", f"{len(found.differences)} of {format_length(found.length)} tokens")]
    if source is not None:
        rows += [(f"mean, {m.label}", _mean_nll(m.short_windows)) for m in (source, report.result)]
    rows += [
        ("difference", numbers.nats(found.mean)),
        ("95 % interval of the difference", numbers.bounds(interval, numbers.nats)),
        ("window by window", f"{numbers.nats(min(found.differences))} to {numbers.nats(max(found.differences))}"),
    ]
    note = "" if interval.bounds else interval.method[:1].upper() + interval.method[1:] + "."
    return Table("Loss inside the trained length", header, tuple(rows), note=note)


def _short_interval(report: VerifyReport, differences: Sequence[float]) -> Interval:
    """Computed as the gate computes it, or two intervals of one number would stand on the page."""
    ours, source = report.result.short_windows, report.source
    if source is not None and len(source.short_windows) == len(ours) == len(differences):
        return estimate(difference(ours, source.short_windows, unit="document"))
    return estimate(mean(differences, unit="document"))


def rotation(tables: Sequence[RotaryTable]) -> Table:
    """The rotary tables of the plan, a column each."""
    if not tables:
        return Table("Rotary tables", (), ())

    def row(name: str, write: Callable[[RotaryTable], str]) -> tuple[str, ...]:
        return (name, *(write(table) for table in tables))

    rows = (
        row("layers", lambda t: str(t.layers)),
        row("base", lambda t: numbers.number(t.base, 6)),
        row("pairs stretched", lambda t: f"{sum(d != 1.0 for d in t.divisors)} of {len(t.divisors)}"),
        row("least λ", lambda t: numbers.number(min(d for _, d in t.turning))),
        row("largest λ", lambda t: numbers.number(max(d for _, d in t.turning))),
        row("pairs that do not rotate", lambda t: str(len(t.divisors) - len(t.turning))),
        row("temperature a", lambda t: numbers.number(t.temperature, 5)),
        row("changes with the length", lambda t: "yes" if t.length_dependent else "no"),
    )
    return Table("Rotary tables", ("", *(table.layer_type or "all rotary layers" for table in tables)), rows)


def lambda_by_pair(named: Sequence[tuple[str, RotaryTable]]) -> Table:
    """Lambda of every pair."""
    pairs = max((len(table.divisors) for _, table in named), default=0)
    rows = tuple(
        (str(pair), *(_divisor(table, pair) for _, table in named))  # one column a table
        for pair in range(pairs)
    )
    return Table("λ by pair; the original's is 1", ("pair", *(label for label, _ in named)), rows)


def protocol(found: Protocol, measures: Measures) -> Table:
    """How the numbers were made."""
    read = f"{found.text_tokens} tokens read" + ("" if found.text_complete else " of a longer text")
    rows = (
        ("text", f"sha256 {found.text_sha256}, {read}"),
        ("windows", f"{found.windows} of {found.target_length} tokens, prefix ids {list(found.prefix_ids)}"),
        ("average", found.average),
        ("passes", measures.passes + (f"; retrieval by {measures.retrieval_way}" if measures.retrieval_way else "")),
        ("needles", f"{found.needles} depths, {found.seeds} haystacks; {found.needle_form}"),
        ("arithmetic", f"{found.dtype} on {found.device}, {_processes(found)}, head {measures.head}"),
        ("attention", measures.attention),
    )
    return Table("Protocol", ("what", "how"), rows, numeric=False)


def _processes(found: Protocol) -> str:
    # A report that was stored before processes were shared out does not say.
    together = f"{found.processes} processes of " if (found.processes or 1) > 1 else ""
    return f"{together}{found.threads} CPU thread{'s' if found.threads != 1 else ''}"


def versions(found: Mapping[str, Any]) -> Table:
    """Versions of what computed them."""
    return Table("Versions", ("program", "version"), tuple((str(k), str(v)) for k, v in found.items()), numeric=False)


def _mean_nll(values: Sequence[float]) -> str:
    return f"{math.fsum(values) / len(values):.4f}" if values else numbers.NONE


def _divisor(table: RotaryTable, pair: int) -> str:
    known = dict(table.turning)
    if pair in known:
        return numbers.number(known[pair], 4)
    return "does not rotate" if pair < len(table.divisors) else numbers.NONE
