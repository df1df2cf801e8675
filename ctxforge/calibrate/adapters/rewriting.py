"""One tensor of a merge: rewritten block by block inside a copy of its shard, then audited in the finished file."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ctxforge.calibrate.adapters.changes import Change, open_change
from ctxforge.calibrate.adapters.digest import workers
from ctxforge.calibrate.adapters.files import RECORD, Adapter, Entry
from ctxforge.calibrate.adapters.rounding import find_format, numbers_of, ulp_of
from ctxforge.checkpoint import Checkpoint, TensorInfo
from ctxforge.checkpoint.files import pread_exact, reading
from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.checkpoint.materialise import Rewrite, pwrite_all
from ctxforge.errors import CheckpointError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from ctxforge.calibrate.adapters.rounding import Numbers

BLOCK = 64 * 1024
"""Elements merged at once, and at least one row: so few that the copies in float32 stay in the processor's cache."""


class TensorMerge:
    """One tensor's merge, with what was counted while it ran.

    Attributes:
        info: the tensor in the base.
        entry: what is merged into it.
        changed: elements whose bits changed.
        norm, norm_of_change, norm_written: see `MergedTensor`.
    """

    def __init__(self, info: TensorInfo, adapter: Adapter, entry: Entry) -> None:
        self.info = info
        self.entry = entry
        self.changed = 0
        self.norm_of_change = 0.0
        self._adapter = adapter
        self._form = find_format(info.dtype, info.name)
        self._square = 0.0
        self._written_square = 0.0

    @property
    def norm(self) -> float:
        """Norm of the tensor before."""
        return math.sqrt(self._square)

    @property
    def norm_written(self) -> float:
        """Norm of the difference that was written."""
        return math.sqrt(self._written_square)

    def rewrite(self) -> Rewrite:
        """The range of the shard that this merge writes."""
        return Rewrite(self.info.start, self.info.end, self._write)

    def _write(self, reader: int, writer: int, shift: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        change = open_change(self._adapter, self.entry)
        rows = self.info.elements // change.columns if self.info.elements else 0
        step = max(1, BLOCK // max(1, change.columns))

        def block(first: int) -> tuple[int, float, float]:
            return self._block(change, first, min(step, rows - first), reader, writer, shift)

        pool = ThreadPoolExecutor(max_workers=workers())
        try:
            # Blocks are written wherever they are done, and counted in their order: sums of floats depend on it.
            for changed, square, written in pool.map(block, range(0, rows, step)):
                self.changed += changed
                self._square += square
                self._written_square += written
        finally:
            pool.shutdown(cancel_futures=True)
        self.norm_of_change = change.norm

    def _block(
        self, change: Change, first: int, count: int, reader: int, writer: int, shift: int
    ) -> tuple[int, float, float]:
        import numpy as np

        row_bytes = change.columns * self._form.item
        at = self.info.start + first * row_bytes
        with reading(self.info.file):
            data = pread_exact(reader, count * row_bytes, at, self.info.file)
        old = np.frombuffer(data, self._form.storage).reshape(count, change.columns)
        new = change.merged(first, old, self._form)
        counted = self._count(old, new)
        pwrite_all(writer, new.data.cast("B"), at + shift)
        return counted

    def _count(self, old: Numbers, new: Numbers) -> tuple[int, float, float]:
        """Changed elements, square of the old norm and of the written change; a finite number must stay finite."""
        import numpy as np

        before, after = numbers_of(old, self._form).ravel(), numbers_of(new, self._form).ravel()
        with np.errstate(all="ignore"):
            difference = after - before
            squares = float(before @ before), float(difference @ difference)
            if not all(map(math.isfinite, squares)):
                if (np.isfinite(before) & ~np.isfinite(after)).any():
                    raise CheckpointError(
                        f"merging into {ascii_name(self.info.name)} overflows {self.info.dtype}",
                        "convert the base to BF16 or F32 first, or train with a smaller learning rate",
                    )
                sound = np.isfinite(before)
                wide = before[sound].astype(np.float64), difference[sound].astype(np.float64)
                squares = float(wide[0] @ wide[0]), float(wide[1] @ wide[1])
        return int(np.count_nonzero(old != new)), *squares

    def audit(self, base: Path, finished: Path, count: int) -> tuple[int, float]:
        """Read some elements back and compare them with the float64 value of what they should be.

        Args:
            base, finished: the two folders.
            count: how many elements; the first and last among them, the others drawn by the tensor's name.

        Returns:
            How many were compared, and the largest difference in units in the last place of what was written.
        """
        import numpy as np

        total = self.info.elements
        if not total or not count:
            return 0, 0.0
        drawn = np.random.default_rng(zlib.crc32(self.info.name.encode())).integers(0, total, max(0, count - 2))
        places = np.unique(np.concatenate([drawn, [0, total - 1]]))
        old, new = (numbers_of(self._elements(folder, places), self._form) for folder in (base, finished))
        sound = np.isfinite(old)
        places, old, new = places[sound], old[sound], new[sound].astype(np.float64)
        if not len(places):
            return 0, 0.0
        exact = open_change(self._adapter, self.entry).exact(places, old)
        return len(places), float(np.max(np.abs(new - exact) / ulp_of(new, self._form)))

    def _elements(self, folder: Path, places: Numbers) -> Numbers:
        import numpy as np

        with reading(self.info.file):
            stored = np.memmap(folder / self.info.file, self._form.storage, "r", self.info.start, (self.info.elements,))
        return np.array(stored[places])


def plan_merge(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, TensorMerge]:
    """The merges by name of the tensor.

    Raises:
        UnsupportedError: a quantised base, or a dtype that can't be merged into.
        UsageError: the base lacks a tensor, or has it in another shape.
    """
    if checkpoint.config.get("quantization_config"):
        raise UnsupportedError(
            f"{checkpoint.source} is quantised: merging would round the sum again to its grid, which was not trained",
            "train and merge on the unquantised checkpoint, then quantise the result",
        )
    jobs: dict[str, TensorMerge] = {}
    for entry in adapter.entries:
        for name in entry.tensors:
            info = checkpoint.tensors.get(name)
            if info is None or info.shape != entry.shape:
                what = "has no tensor" if info is None else "has another shape of"
                raise UsageError(
                    f"{checkpoint.source} {what} {ascii_name(name)}, which the adapter changes",
                    f"give the base that {RECORD} names",
                )
            jobs[name] = TensorMerge(info, adapter, entry)
    return jobs
