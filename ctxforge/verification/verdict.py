"""The verdict of a verification: gates on its measurements, and how far they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ctxforge.verification.evidence import measurements
from ctxforge.verification.gates.defaults import LENGTH_GATES, default_gates
from ctxforge.verification.gates.evaluate import judge
from ctxforge.verification.gates.measurement import Measurement, exact
from ctxforge.verification.gates.overrides import Override, apply_overrides
from ctxforge.verification.gates.reach import effective_length
from ctxforge.verification.gates.tiers import Tier
from ctxforge.verification.report import VerifyReport


def judged(
    report: VerifyReport,
    tier: Tier,
    *,
    config_failures: int | None = None,
    calibrated: bool = False,
    overrides: Mapping[str, Override] | None = None,
    strict: bool = False,
) -> VerifyReport:
    """`report` with its judgement and its effective length.

    Args:
        report: what was measured.
        tier: which gates count.
        config_failures: how many static checks failed; None when they were not run.
        calibrated: whether the weights were trained for the target length.
        overrides: the user's own thresholds.
        strict: let an inconclusive gate fail the verification.
    """
    trained, target = report.protocol.trained_length, report.protocol.target_length
    found, missing = measurements(report.result, report.source, trained, target)
    if config_failures is not None:
        found["config_failures"] = exact(float(config_failures))
    gates = apply_overrides(
        default_gates(dtype=report.result.dtype, calibrated=calibrated, required=tier.required, names=tier.gates),
        overrides or {},
    )
    verdict = judge(gates, found, missing=missing, strict=strict)
    at_lengths: dict[int, Mapping[str, Measurement]] = {}
    for length in sorted({answer.length for answer in report.result.answers if answer.length >= trained}):
        at_lengths[length] = measurements(report.result, report.source, trained, length)[0]
    # A gate that could not be judged at the target can't be what limits the length.
    left_out = {name for name, _reason in verdict.left_out}
    by_length = [gate for gate in gates if gate.name in LENGTH_GATES and gate.name not in left_out]
    effective = None
    if at_lengths and by_length and report.source is not None:
        effective = effective_length(by_length, at_lengths)
    return replace(report, judgement=verdict, effective=effective)
