"""Gates: thresholds with three verdicts, on quantities that were declared before they were measured.

Importing this package imports no numpy: tiers and a recipe's gates can be read without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxforge.verification.gates.defaults import GATES, LENGTH_GATES, default_gates
    from ctxforge.verification.gates.estimation import estimate
    from ctxforge.verification.gates.evaluate import judge, judge_one
    from ctxforge.verification.gates.measurement import Measurement, Sample, difference, exact, mean, ratio
    from ctxforge.verification.gates.overrides import Override, apply_overrides, parse_gates, read_gates
    from ctxforge.verification.gates.reach import EffectiveLength, effective_length
    from ctxforge.verification.gates.tiers import TIERS, Tier, tier
    from ctxforge.verification.gates.types import Gate, GateResult, Judgement, Verdict, VerifyExit

_HOME = {
    "EffectiveLength": "reach",
    "GATES": "defaults",
    "Gate": "types",
    "GateResult": "types",
    "Judgement": "types",
    "LENGTH_GATES": "defaults",
    "Measurement": "measurement",
    "Override": "overrides",
    "Sample": "measurement",
    "TIERS": "tiers",
    "Tier": "tiers",
    "Verdict": "types",
    "VerifyExit": "types",
    "apply_overrides": "overrides",
    "default_gates": "defaults",
    "difference": "measurement",
    "effective_length": "reach",
    "estimate": "estimation",
    "exact": "measurement",
    "judge": "evaluate",
    "judge_one": "evaluate",
    "mean": "measurement",
    "parse_gates": "overrides",
    "ratio": "measurement",
    "read_gates": "overrides",
    "tier": "tiers",
}

__all__ = [
    "GATES",
    "LENGTH_GATES",
    "TIERS",
    "EffectiveLength",
    "Gate",
    "GateResult",
    "Judgement",
    "Measurement",
    "Override",
    "Sample",
    "Tier",
    "Verdict",
    "VerifyExit",
    "apply_overrides",
    "default_gates",
    "difference",
    "effective_length",
    "estimate",
    "exact",
    "judge",
    "judge_one",
    "mean",
    "parse_gates",
    "ratio",
    "read_gates",
    "tier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
