"""W + s B A, each element the representable number nearest to the exact sum, whatever adds it up.

A block is computed fast, together with a bound on its error. Where both ends of the interval round to the same number,
that is the result: rounding is monotonic. The few other elements (of random matrices about one in 5000 for BF16, one in
900 for F16) are computed again in float64, and those that even this leaves open, above all exact ties, in rational
arithmetic. So the result doesn't depend on block sizes, threads or the linear algebra library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from ctxforge.calibrate.adapters.rounding import Format, bits_of, narrow, nearest, numbers_of

if TYPE_CHECKING:
    from ctxforge.calibrate.adapters.rounding import Numbers

_SINGLE = 200_000
"""Multiplications of a product below which OpenBLAS (interface/gemm.c, 2^18) starts no threads of its own: blocks are
merged by several threads already, and theirs on top waited for each other ten times as long as they computed."""

_GATHERED = 8192  # elements recomputed at once, which bounds the memory


@dataclass(frozen=True)
class LowRankChange:
    """The change s L R of a matrix.

    Args:
        left: L, float32 [rows, r].
        right: R, float32 [r, columns].
        scale: s.
    """

    left: Numbers
    right: Numbers
    scale: float

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return int(self.right.shape[1])

    @cached_property
    def norm(self) -> float:
        """The Frobenius norm of the change: sqrt(trace((L'L)(RR'))), without forming it."""
        import numpy as np

        left, right = self.left.astype(np.float64), self.right.astype(np.float64)
        square = float(np.sum((left.T @ left) * (right @ right.T)))
        return abs(self.scale) * math.sqrt(max(square, 0.0))

    @cached_property
    def _longest_column(self) -> float:
        import numpy as np

        return float(np.sqrt(np.max(np.sum(self.right.astype(np.float64) ** 2, axis=0), initial=0.0)))

    @cached_property
    def _wide_right(self) -> Numbers:
        import numpy as np

        wide: Numbers = self.right.astype(np.float64)
        return wide

    def merged(self, first: int, old: Numbers, form: Format) -> Numbers:
        """The rows from `first` on with the change in them.

        Args:
            first: number of the first row.
            old: the bits of those rows, [rows, columns].
            form: the format of the tensor.

        Returns:
            Their new bits, of the same shape. Elements that aren't finite keep theirs, and so does an element whose
            change is exactly 0; a finite one may come out infinite, which is for the caller to refuse.
        """
        import numpy as np

        real, unit = (np.float64, 2.0**-53) if form.dtype == "F32" else (np.float32, 2.0**-24)
        weights = numbers_of(old, form)
        left = self.left[first : first + len(old)].astype(np.float64)
        scaled = left * self.scale
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            change = np.empty(old.shape, real)
            step = max(8, _SINGLE // max(1, scaled.size))
            for start in range(0, self.columns, step):
                change[:, start : start + step] = scaled @ self._wide_right[:, start : start + step]
            # Higham, Accuracy and Stability (2002), eq. 3.5 with Cauchy-Schwarz: |error| <= gamma_n |l| |r| for the
            # product and the roundings of s L; the rest is what the rounding to `real` can lose where it underflows.
            length = np.sqrt(np.sum(scaled * scaled, axis=1))
            bound = 1.01 * (left.shape[1] + 3) * 2.0**-53 * length * self._longest_column + 2.0**-149 * (length > 0)
            slack = np.abs(change)
            slack *= real(2 * unit)
            np.add(change, weights, out=change)
            sound = np.isfinite(change)
            spread = np.abs(change)
            spread *= real(4 * unit)
            np.add(slack, spread, out=slack)
            np.add(slack, bound.astype(real)[:, None], out=slack)
            low = bits_of(np.subtract(change, slack, out=spread), form)
            open_: Numbers = low != bits_of(np.add(change, slack, out=change), form)
        open_ = open_ | (old == form.negative_zero)
        if not sound.all():
            lost = ~np.isfinite(weights)
            open_ = (open_ | ~sound) & ~lost
            low[lost] = old[lost]
        rows, columns = np.divmod(np.flatnonzero(open_), self.columns)
        for start in range(0, len(rows), _GATHERED):
            some = slice(start, start + _GATHERED)
            at = rows[some], columns[some]
            low[at] = self._again(left[at[0]], at[1], old[at], form)
        return low

    def exact(self, places: Numbers, old: Numbers) -> Numbers:
        """Single elements before rounding, float64; `places` count through the matrix, `old` are their numbers."""
        rows, columns = places // self.columns, places % self.columns
        left = self.left[rows].astype("f8")
        found: Numbers = old.astype("f8") + self.scale * (left * self._wide_right[:, columns].T).sum(axis=1)
        return found

    def _again(self, left: Numbers, columns: Numbers, old: Numbers, form: Format) -> Numbers:
        """New bits of single elements, from float64 sums where these suffice.

        Args:
            left: their rows of L, float64 [n, r].
            columns: their columns.
            old: their bits.
        """
        import numpy as np

        right = self._wide_right[:, columns].T
        weights = numbers_of(old, form).astype(np.float64)
        products = left * right  # exact: 24 bits times 24
        unit = 2.0**-53
        with np.errstate(under="ignore"):
            total = weights + self.scale * products.sum(axis=1)
            slack = 1.01 * (left.shape[1] + 4) * unit * abs(self.scale) * np.abs(products).sum(axis=1)
            slack += 4 * unit * np.abs(total)
        low, high = (bits_of(narrow(total + sign * slack, form), form) for sign in (-1, 1))
        still = ~products.any(axis=1)
        low[still] = old[still]
        for index in np.nonzero((low != high) & ~still)[0]:
            low[index] = self._exactly(products[index], float(weights[index]), old[index], form)
        return low

    def _exactly(self, products: Numbers, weight: float, old: Numbers, form: Format) -> Numbers:
        """New bits of one element in rational arithmetic."""
        import numpy as np

        change = Fraction(self.scale) * sum((Fraction(float(one)) for one in products), Fraction(0))
        if change == 0:
            return old
        value = np.array([nearest(Fraction(weight) + change, form)])
        found: Numbers = bits_of(value.astype(np.float64 if form.dtype == "F32" else np.float32), form)
        one: Numbers = found[0]
        return one
