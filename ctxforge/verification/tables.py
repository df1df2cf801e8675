"""A report as plain tables: the command line colours them, and Markdown, HTML or a model card can be made of them."""

from __future__ import annotations

from ctxforge.lengths import format_length
from ctxforge.verification.measures import Measures
from ctxforge.verification.report import VerifyReport

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def render_table(report: VerifyReport) -> list[Table]:
    """The report's tables, each (title, header, rows) of strings, leaving out what was not measured."""
    models = [report.result] if report.source is None else [report.source, report.result]
    tables = [
        _perplexity_by_length([m for m in models if m.lengths], report),
        _perplexity_by_position([m for m in models if m.buckets], report),
        *(_retrieval(model) for model in models),
        _short_context(report),
        _tasks([m for m in models if m.tasks]),
        _far_context([m for m in models if m.far_context is not None]),
        _protocols([m for m in models if m.protocols]),
        _external(report),
        _protocol(report),
    ]
    return [table for table in tables if table[2]]


def _perplexity_by_length(models: list[Measures], report: VerifyReport) -> Table:
    trained = report.protocol.trained_length
    rows = []
    for row in zip(*(m.lengths for m in models), strict=True):
        length = row[0].length
        mark = " (trained)" if length == trained else ""
        rows.append((format_length(length) + mark, *(f"{score.ppl:.2f}" for score in row)))
    return "Perplexity of the first n tokens", ("n", *(m.label for m in models)), rows


def _perplexity_by_position(models: list[Measures], report: VerifyReport) -> Table:
    trained = report.protocol.trained_length
    rows = []
    for row in zip(*(m.buckets for m in models), strict=True):
        start, end = row[0].start, row[0].end
        where = f"{format_length(start)} – {format_length(end)}" + (" (beyond trained)" if start >= trained else "")
        rows.append((where, *(f"{score.ppl:.2f}" for score in row)))
    return "Perplexity by position", ("positions", *(m.label for m in models)), rows


def _retrieval(model: Measures) -> Table:
    rows: list[tuple[str, ...]] = []
    for length in dict.fromkeys(cell.length for cell in model.retrieval):
        cells = [cell for cell in model.retrieval if cell.length == length]
        worst = max(cells, key=lambda cell: cell.nll)
        rows.append(
            (
                format_length(length),
                f"{sum(c.exact for c in cells)}/{sum(c.count for c in cells)}",
                f"{sum(c.nll * c.count for c in cells) / sum(c.count for c in cells):.3f}",
                f"{worst.nll:.3f} at {worst.depth_start:.0%} – {worst.depth_end:.0%}",
            )
        )
    return f"Retrieval, {model.label}", ("context", "exact", "answer nats/token", "worst depth"), rows


def _short_context(report: VerifyReport) -> Table:
    found = report.short_context
    rows: list[tuple[str, ...]] = []
    if found is not None:
        values = ", ".join(f"{value:+.4f}" for value in found.differences)
        rows.append((format_length(found.length), str(len(found.differences)), f"{found.mean:+.4f}", values))
    return "Short context against the source", ("window", "windows", "mean nats/token", "each"), rows


def _tasks(models: list[Measures]) -> Table:
    asked = {(score.task, score.length) for model in models for score in model.tasks}
    order = list(dict.fromkeys(score.task for model in models for score in model.tasks))
    rows: list[tuple[str, ...]] = []
    for task, length in sorted(asked, key=lambda key: (order.index(key[0]), key[1])):
        found = [[s.exact for s in model.tasks if (s.task, s.length) == (task, length)] for model in models]
        cells = [f"{sum(hits)}/{len(hits)}" if hits else "–" for hits in found]
        rows.append((task, format_length(length), *cells))
    return "Tasks, exact answers", ("task", "context", *(m.label for m in models)), rows


def _far_context(models: list[Measures]) -> Table:
    rows: list[tuple[str, ...]] = []
    for model in models:
        found = model.far_context
        assert found is not None
        keys = f"{sum(found.key_counts)} of {found.tokens}"
        rows.append((model.label, f"{found.gain:+.4f}", f"{found.longppl:.2f}", keys))
    return "Far context", ("model", "gain, nats/token", "LongPPL", "key tokens"), rows


def _protocols(models: list[Measures]) -> Table:
    """Perplexity under every protocol; numbers of different ones do not compare, which the title says."""
    rows: list[tuple[str, ...]] = []
    for name, length in dict.fromkeys((p.protocol, p.length) for model in models for p in model.protocols):
        found = [[p.ppl for p in model.protocols if (p.protocol, p.length) == (name, length)] for model in models]
        rows.append((name, format_length(length), *(f"{ppl[0]:.2f}" if ppl else "–" for ppl in found)))
    return "Perplexity by protocol", ("protocol (do not compare)", "window", *(m.label for m in models)), rows


def _external(report: VerifyReport) -> Table:
    found = report.external
    rows: list[tuple[str, ...]] = []
    for score in () if found is None else found.scores:
        values = ("–" if i is None else f"{i.value:.3f}" for i in (score.source, score.result))
        gap = "–" if score.difference is None else f"{score.difference.value:+.3f}"
        length = "–" if score.length is None else format_length(score.length)
        rows.append((f"{score.task} {score.metric}", length, *values, gap))
    return "lm-eval", ("task, metric", "context", "source", "result", "difference"), rows


def _protocol(report: VerifyReport) -> Table:
    p, r = report.protocol, report.result
    rows: list[tuple[str, ...]] = [
        ("text", f"sha256 {p.text_sha256[:16]}…, {p.text_tokens} tokens read"),
        ("windows", f"{p.windows} of {p.target_length} tokens, prefix ids {list(p.prefix_ids)}"),
        ("average", p.average),
        ("passes", r.passes + (f"; retrieval by {r.retrieval_way}" if r.retrieval_way else "")),
        (
            "arithmetic",
            f"{p.dtype} on {p.device}, attention {r.attention}, head {r.head}, "
            + (f"{p.processes} processes of " if (p.processes or 1) > 1 else "")
            + f"{p.threads} threads",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in p.versions.items())),
    ]
    if not r.finite:
        rows.insert(0, ("warning", "the result has losses that are not finite numbers"))
    return "Protocol", ("what", "how"), rows
