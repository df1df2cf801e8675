"""Which distances a set of rows lets the model train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.placement.layout import Layout
from ctxforge.errors import UsageError


@dataclass(frozen=True, eq=False)
class Coverage:
    """What a set of rows shows of the distances 1 to L' - 1.

    Attributes:
        pairs: how many (query, key) pairs of visible tokens stand each distance apart, over all rows, int64 [L'];
            entry 0 counts tokens.
        rows: in how many rows each distance occurs, int64 [L'].
        count: number of rows.
        reach: the largest position plus 1.
    """

    pairs: NDArray[np.int64]
    rows: NDArray[np.int64]
    count: int
    reach: int

    @property
    def covered(self) -> float:
        """Share of the distances 1 to L' - 1 that occur in some row."""
        return float((self.rows[1:] > 0).mean()) if len(self.rows) > 1 else 1.0

    def per_row(self) -> NDArray[np.float64]:
        """Probability that a row shows each distance, [L']: figure 5 of PoSE's paper (2309.10400)."""
        return self.rows / self.count

    def beyond(self, trained_length: int) -> float:
        """Share of all pairs of two tokens that stand at least `trained_length` apart."""
        total = int(self.pairs[1:].sum())
        return float(self.pairs[max(trained_length, 1) :].sum() / total) if total else 0.0


def coverage(rows: Sequence[Layout], target: int) -> Coverage:
    """Count the distances between tokens that see each other. Time grows as rows times L' log L'.

    Args:
        rows: at least one, with whole positions.
        target: L'.

    Raises:
        UsageError: no rows, fractional positions, or positions of L' or more.
    """
    if not rows or any(row.positions.dtype.kind == "f" or row.reach > target for row in rows):
        raise UsageError(
            f"coverage of {len(rows)} rows up to {target}", "give rows with whole positions below the target"
        )
    pairs = np.zeros(target, dtype=np.int64)
    seen = np.zeros(target, dtype=np.int64)
    for row in rows:
        counts = np.zeros(target, dtype=np.int64)
        for document in range(int(row.documents[-1]) + 1):
            taken = np.zeros(target)
            taken[row.positions[row.documents == document]] = 1
            # Autocorrelation: how many positions p have p and p + distance taken.
            spectrum = np.fft.rfft(taken, 2 * target)
            counts += np.rint(np.fft.irfft(np.abs(spectrum) ** 2, 2 * target)[:target]).astype(np.int64)
        pairs += counts
        seen += counts > 0
    return Coverage(pairs, seen, len(rows), int(max(row.reach for row in rows)))
