"""CLEX's equation for the frequencies, integrated outside its model so that one scale of it can be frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ctxforge.errors import UsageError
from ctxforge.rope.spectrum import plain_frequencies

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ACTIVATIONS = ("silu", "tanh")


def clex_frequencies(
    up: Sequence[Sequence[float]] | NDArray[Any],
    down: Sequence[Sequence[float]] | NDArray[Any],
    base: float,
    t: float,
    *,
    activation: str = "silu",
    step: float = 0.01,
    embedding_base: float = 10000.0,
) -> tuple[float, ...]:
    """exp(z(t)), radians per token, for the method `clex`'s parameter `frequencies`.

    dz/dt = act((z + e(t)) U) D + e'(t) from z(1) = ln f, with e(t) the log-frequencies of NTK-aware scaling by 2t - 1
    (2310.16450, section 3.2; DAMO-NLP-SG/CLEX:CLEX/clex_layer.py). Integrated as there, by the fourth-order rule of
    three eighths on steps of `step`, in float64 where the published code uses float32.

    Args:
        up: U, `proj_func.ode_up_proj` of the checkpoint, shape (d/2, width).
        down: D, `proj_func.ode_down_proj`, shape (width, d/2).
        base: b of the plain frequencies.
        t: the scale to freeze at, at least 1; the published code takes ceil(length / L0).
        activation: `silu` or `tanh`, the checkpoint's `act`.
        step: the checkpoint's `time_dt`.
        embedding_base: b of e(t); the published code keeps 10000 whatever the model's base.

    Raises:
        UsageError: shapes that don't fit, a scale below 1, or an unknown activation.
    """
    import numpy as np

    u, d = np.asarray(up, dtype=np.float64), np.asarray(down, dtype=np.float64)
    if u.ndim != 2 or d.shape != u.shape[::-1]:
        raise UsageError(
            f"the projections have shapes {u.shape} and {d.shape}", "pass (d/2, width) and (width, d/2), untransposed"
        )
    if not (math.isfinite(t) and t >= 1 and 0 < step <= 1):
        raise UsageError(f"t={t:g} with step={step:g} is not usable", "give a scale from 1 on, and a step up to 1")
    if activation not in _ACTIVATIONS:
        raise UsageError(f"unknown activation {activation!r}", f"choose one of: {', '.join(_ACTIVATIONS)}")
    pairs = u.shape[0]
    index = 2.0 * np.arange(pairs)
    embedding = np.log(np.array(plain_frequencies(2 * pairs, embedding_base)))
    exponent = index / max(2 * pairs - 2, 1)

    def slope(time: float, z: NDArray[np.float64]) -> NDArray[np.float64]:
        growth = 2 * time - 1
        hidden = (z + embedding - exponent * math.log(growth)) @ u
        active = np.tanh(hidden) if activation == "tanh" else hidden / (1 + np.exp(-np.clip(hidden, -700, 700)))
        change: NDArray[np.float64] = active @ d - 2 * exponent / growth
        return change

    z = np.log(np.array(plain_frequencies(2 * pairs, base)))
    count = max(1, math.ceil((t - 1) / step - 1e-9))
    for i in range(count):
        start = 1 + i * step
        h = (t - start) if i == count - 1 else step
        k1 = slope(start, z)
        k2 = slope(start + h / 3, z + h * k1 / 3)
        k3 = slope(start + 2 * h / 3, z + h * (k2 - k1 / 3))
        k4 = slope(start + h, z + h * (k1 - k2 + k3))
        z = z + h * (k1 + 3 * (k2 + k3) + k4) / 8
    return tuple(float(frequency) for frequency in np.exp(z))
