"""A verification as entries of the Hub's model-index."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ctxforge.verification.gates.estimation import estimate
from ctxforge.verification.gates.measurement import difference, mean
from ctxforge.verification.html.tables import exact_at

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from ctxforge.verification.report import VerifyReport
    from ctxforge.verification.statistics import Interval

TASK = "text-generation"
TEXT, NEEDLES = "plain-text", "needle-in-a-haystack"


def evaluations(report: VerifyReport) -> list[EvalResult]:
    """Perplexity and retrieval at every length, and what short text lost, each with the length it was measured at.

    The text is named by its hash: two models compare only on the same one. Values that are not finite are left out.
    """
    return [*_perplexity(report), *_short(report), *_retrieval(report)]


def _perplexity(report: VerifyReport) -> list[EvalResult]:
    windows = report.protocol.windows
    return [
        _on_text(
            report,
            metric_type="perplexity",
            metric_name=f"perplexity of the first {score.length} tokens",
            metric_value=score.ppl,
            metric_args={"context_length": score.length, "predicted_tokens": score.tokens, "windows": windows},
        )
        for score in report.result.lengths
        if math.isfinite(score.ppl)
    ]


def _short(report: VerifyReport) -> list[EvalResult]:
    found, interval = report.short_context, short_interval(report)
    if found is None or interval is None or not math.isfinite(found.mean):
        return []
    arguments = {"context_length": found.length, "windows": len(found.differences)}
    return [
        _on_text(
            report,
            metric_type="loss_difference",
            metric_name=f"loss inside the first {found.length} tokens minus the unmodified model's, nats a token",
            metric_value=found.mean,
            metric_args={**arguments, **_bounds(interval)},
        )
    ]


def _retrieval(report: VerifyReport) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    made = []
    for length in sorted({cell.length for cell in report.result.retrieval}):
        share = exact_at(report.result, length)
        if share is None or not math.isfinite(share.value):
            continue
        made.append(
            EvalResult(
                task_type=TASK,
                dataset_type=NEEDLES,
                dataset_name="needles in the same text",
                dataset_args=_text(report),
                metric_type="exact_match",
                metric_name=f"answers found exactly in {length} tokens, all depths",
                metric_value=share.value,
                metric_args={"context_length": length, "prompts": share.units, **_bounds(share)},
            )
        )
    return made


def short_interval(report: VerifyReport) -> Interval | None:
    """What short text lost, as the gate computes it from the same windows; None where it was not measured."""
    found, source, ours = report.short_context, report.source, report.result.short_windows
    if found is None or not found.differences:
        return None
    if source is not None and len(source.short_windows) == len(ours) == len(found.differences):
        return estimate(difference(ours, source.short_windows, unit="document"))
    return estimate(mean(found.differences, unit="document"))


def _text(report: VerifyReport) -> dict[str, Any]:
    return {"sha256": report.protocol.text_sha256, "tokens": report.protocol.text_tokens}


def _on_text(report: VerifyReport, **metric: Any) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=TASK,
        dataset_type=TEXT,
        dataset_name="a text that the verification was given",
        dataset_args=_text(report),
        **metric,
    )


def _bounds(interval: Interval) -> dict[str, float]:
    """The 95 % interval; empty where there is none."""
    if interval.bounds is None or not all(map(math.isfinite, interval.bounds)):
        return {}
    low, high = interval.bounds
    return {"low_95": low, "high_95": high}
