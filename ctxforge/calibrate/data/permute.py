"""Orders that depend on nothing but a seed: the same on every machine and with every version of numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draws(count: int, *seed: int) -> NDArray[np.uint64]:
    """`count` uniform 64-bit numbers of the stream that `seed` names, uint64.

    numpy promises that the raw stream of Philox and the hashing of seeds stay (NEP 19); it promises no such thing for
    `permutation` or `integers`.
    """
    found: NDArray[np.uint64] = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return found


def permutation(count: int, *seed: int) -> NDArray[np.int64]:
    """The numbers 0 to count - 1 in the order that `seed` names, int64."""
    return np.argsort(draws(count, *seed), kind="stable").astype(np.int64, copy=False)


def bounded(bounds: NDArray[np.int64], *seed: int) -> NDArray[np.int64]:
    """A whole number from 0 to below each bound, int64; uniform but for a bias of bound / 2^32."""
    top = draws(len(bounds), *seed) >> np.uint64(32)
    return ((top * bounds.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
