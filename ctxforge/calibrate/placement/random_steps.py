"""Giraffe's positions: fractional, with random steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctxforge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def randomised_positions(length: int, seed: int) -> NDArray[np.float64]:
    """Giraffe's randomised positions: running sums of steps from U(0, 2), shrunk where they would pass `length`.

    The expected step is 1, so distances are right on average and every fraction occurs. The published code shrinks
    but never stretches, starts at the first step and not at 0, and uses the positions as they are, unrounded
    (2308.10882; abacusai/Long-Context:python/models/interpolate.py `random_init_forward`).

    Args:
        length: tokens of the window, and the largest position.
        seed: the same seed gives the same positions.

    Returns:
        `length` positions in (0, length], increasing, float64.

    Raises:
        UsageError: a length below 1.
    """
    import numpy as np

    if length < 1:
        raise UsageError(f"a window of {length} tokens is not usable", "give a length of at least 1")
    # 1 - U lies in (0, 1], so that no step is 0 and positions increase.
    steps = 2 * (1 - np.random.default_rng(seed).random(length))
    sums = np.cumsum(steps)
    positions: NDArray[np.float64] = sums * (length / max(float(sums[-1]), length))
    return positions
