"""The gates that ctxforge declares beforehand, with their thresholds.

Gates are on aggregates (a mean over documents, a mean over the grid, the worst third of the depth), never on single
cells: among fifty cells one is red by chance.

Thresholds are proposals, to be held against a ladder of models that are known to be good or broken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ctxforge.verification.gates.types import Gate

NATS = "nats a token"
OF_SOURCE = "of the source's score"
LOGITS = "in logits"
_SHORT_AFTER_CALIBRATION = 0.02
_USE_AFTER_CALIBRATION = -0.01
# float16 keeps three more bits than bfloat16, but sums in attention take most of them.
_CACHE_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}

GATES: tuple[Gate, ...] = (
    Gate(
        "config",
        "config_failures",
        "at most",
        0,
        "exact",
        "failed checks",
        "The checkpoint's files, configuration, tokenizer and recorded rotation agree (`ctxforge check`).",
    ),
    Gate(
        "finite",
        "nonfinite_losses",
        "at most",
        0,
        "exact",
        "losses that are not finite",
        "No loss is NaN or infinite, up to the last position of the target length.",
    ),
    Gate(
        "cache",
        "cache_difference",
        "at most",
        _CACHE_TOLERANCE["float32"],
        "exact",
        LOGITS,
        "Largest difference between one forward and chunks with a KV cache, across the trained length.",
    ),
    Gate(
        "short_logits",
        "short_logits_difference",
        "at most",
        1e-3,
        "exact",
        LOGITS,
        "Largest difference to the source inside the trained length, where the method promises none.",
    ),
    Gate(
        "short_nll",
        "short_nll",
        "at most",
        0.05,
        "interval",
        NATS,
        "What the conversion costs inside the trained length: result minus source on the same documents.",
        gross=0.3,
    ),
    Gate(
        "long_nll",
        "long_nll",
        "at most",
        0.10,
        "interval",
        NATS,
        "Loss in the last positions before the target minus loss just below the trained length, same documents.",
        gross=1.0,
    ),
    Gate(
        "use",
        "delta_use",
        "at least",
        -0.05,
        "interval",
        NATS,
        "Gain of the whole context over cutting it off: the source on its last trained length, minus the result.",
        gross=-0.3,
    ),
    Gate(
        "retrieval",
        "retrieval",
        "at least",
        0.85,
        "interval",
        OF_SOURCE,
        "Answers found at the target length, relative to the source's own at the trained length.",
        gross=0.25,
        gross_units=4,
    ),
    Gate(
        "retrieval_depth",
        "retrieval_depth",
        "at least",
        0.70,
        "interval",
        OF_SOURCE,
        "The same for the worst third of the depth.",
        gross=0.10,
        gross_units=4,
    ),
    Gate(
        "retrieval_nll",
        "retrieval_nll",
        "at most",
        0.5,
        "interval",
        NATS,
        "Answer loss at the target length minus the source's own at the trained length, same seeds and depths.",
        gross=2.0,
    ),
    Gate(
        "retrieval_depth_nll",
        "retrieval_depth_nll",
        "at most",
        1.0,
        "interval",
        NATS,
        "The same for the worst third of the depth.",
        gross=3.0,
    ),
)
# Measured again at every length, these say how far the conversion reaches.
LENGTH_GATES = ("long_nll", "use", "retrieval", "retrieval_depth", "retrieval_nll", "retrieval_depth_nll")


def default_gates(
    *,
    dtype: str = "float32",
    calibrated: bool = False,
    required: Iterable[str] = (),
    names: Iterable[str] | None = None,
) -> tuple[Gate, ...]:
    """The default gates with the thresholds of this run.

    Args:
        dtype: "float32", "bfloat16" or "float16", which decides what a cache may change.
        calibrated: whether the weights were trained for the target length: the short-context gate is then stricter.
        required: names of gates that are inconclusive when their quantity was not measured.
        names: only these gates; None for all.
    """
    must, wanted = set(required), None if names is None else set(names)
    adapted = {
        "cache": _CACHE_TOLERANCE.get(dtype, _CACHE_TOLERANCE["float32"]),
        **({"short_nll": _SHORT_AFTER_CALIBRATION, "use": _USE_AFTER_CALIBRATION} if calibrated else {}),
    }
    return tuple(
        replace(gate, threshold=adapted.get(gate.name, gate.threshold), required=gate.name in must)
        for gate in GATES
        if wanted is None or gate.name in wanted or gate.name in must
    )
