"""An adapter's entry as something that turns blocks of a tensor's bits into the merged tensor's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from ctxforge.calibrate.adapters.files import WEIGHTS, Adapter, Entry
from ctxforge.calibrate.adapters.rounding import Format, bits_of, numbers_of
from ctxforge.calibrate.adapters.sums import LowRankChange
from ctxforge.checkpoint.files import open_regular, pread_exact, reading
from ctxforge.errors import CheckpointError

if TYPE_CHECKING:
    from ctxforge.calibrate.adapters.rounding import Numbers


class Change(Protocol):
    """What a tensor becomes, for a tensor seen as rows of `columns` elements."""

    @property
    def columns(self) -> int:
        """Elements of a row."""

    @property
    def norm(self) -> float:
        """Frobenius norm of the change, once every row was merged."""

    def merged(self, first: int, old: Numbers, form: Format) -> Numbers:
        """The new bits of the rows from `first` on, whose old bits are `old`, [rows, columns]."""

    def exact(self, places: Numbers, old: Numbers) -> Numbers:
        """What single elements become before rounding, float64.

        Args:
            places: which, counted through the tensor.
            old: their numbers.
        """


class WholeChange:
    """Every element replaced by the adapter's; a tensor of any shape is seen as one column."""

    columns = 1

    def __init__(self, adapter: Adapter, name: str) -> None:
        self._info = adapter.tensors[name]
        self._path = adapter.root / WEIGHTS
        self._squares: dict[int, float] = {}

    @property
    def norm(self) -> float:
        """Frobenius norm of the difference to the old elements that `merged` has seen."""
        # In the order of the rows, whatever order the threads finished in.
        return math.sqrt(sum(self._squares[first] for first in sorted(self._squares)))

    def merged(self, first: int, old: Numbers, form: Format) -> Numbers:
        """The adapter's numbers, rounded once.

        Raises:
            CheckpointError: one of them is a NaN or an infinity.
        """
        import numpy as np

        with open_regular(self._path, WEIGHTS) as file, reading(WEIGHTS):
            data = pread_exact(file, 4 * old.size, self._info.start + 4 * first, WEIGHTS)
        new = np.frombuffer(data, "<f4").reshape(old.shape)
        if not np.isfinite(new).all():
            raise CheckpointError(
                f"the adapter's {self._info.name} holds a NaN or an infinity", "go back to an earlier state"
            )
        with np.errstate(invalid="ignore"):
            difference = new.astype(np.float64) - numbers_of(old, form)
        self._squares[first] = float(np.sum(difference * difference, where=np.isfinite(difference)))
        return bits_of(new.astype(np.float64) if form.dtype == "F32" else new.copy(), form)

    def exact(self, places: Numbers, old: Numbers) -> Numbers:  # noqa: ARG002  the protocol's
        """The adapter's numbers at `places`, float64."""
        import numpy as np

        with reading(WEIGHTS):
            stored = np.memmap(self._path, "<f4", "r", self._info.start, (self._info.elements,))
        return np.array(stored[places], np.float64)


def open_change(adapter: Adapter, entry: Entry) -> Change:
    """The change of one entry; a low-rank one is in memory, a whole tensor is read block by block.

    Raises:
        CheckpointError: the adapter holds a NaN or an infinity, or its file is damaged.
    """
    if entry.kind == "whole":
        return WholeChange(adapter, entry.parameter)
    inner = adapter.numbers(f"{entry.parameter}.lora_A")
    outer = adapter.numbers(f"{entry.parameter}.lora_B")
    # A matrix stored [inputs, outputs] gets (B A)' = A' B'.
    left, right = (inner.T, outer.T) if entry.transposed else (outer, inner)
    import numpy as np

    return LowRankChange(np.ascontiguousarray(left), np.ascontiguousarray(right), entry.scale)
