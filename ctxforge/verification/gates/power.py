"""Whether right-or-wrong answers can decide a gate at all, which the source's own score tells beforehand."""

from __future__ import annotations

from ctxforge.verification import statistics
from ctxforge.verification.gates.estimation import columns
from ctxforge.verification.gates.measurement import Measurement
from ctxforge.verification.gates.types import Gate


def too_weak(gate: Gate, measurement: Measurement) -> str:
    """Why a ratio of right answers could not pass `gate` even if the result answered exactly as well as the source.

    With a source that finds 14 of 20 itself, a result as good as it has a ratio of 1 with an interval of 0.65 to 1.5:
    whatever the result, "at least 85 %" can't be shown. Empty when it could pass, and for other measurements.
    """
    if not measurement.outcomes or measurement.relation != "ratio" or gate.direction != "at least":
        return ""
    values, weights = columns(measurement, measurement.labels)
    scores, prompts = statistics.weighted_means(values, weights)[1::2], weights.sum(0)[1::2]
    for score, count in zip(scores, prompts, strict=True):
        if not score > 0:
            return "the source finds nothing itself"
        if statistics.ratio_limits(float(score), count, float(score), count)[0] < gate.threshold:
            return (
                f"the source's own {score:.0%} of {count:.0f} prompts is too little to show {gate.threshold:.0%} of it"
            )
    return ""
