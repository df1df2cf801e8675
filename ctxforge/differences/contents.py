"""Comparing the bytes of tensors: streamed in pieces, several files at once, nothing read whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ctxforge.checkpoint import DTYPE_BITS, Progress, TensorInfo
from ctxforge.checkpoint.files import open_regular, reading
from ctxforge.differences.types import Amounts
from ctxforge.errors import CheckpointError

PIECE = 4 * 1024 * 1024
"""Bytes compared at once; a multiple of every element's size."""

_STRETCH = 16 * PIECE
"""Bytes of one tensor that a thread takes at once."""

_MOST_THREADS = 4

_MOST_FILES = 128
"""Files open at once: a process may have few, and a large model has hundreds of shards."""


@dataclass(frozen=True)
class Pair:
    """A tensor of one name, dtype and shape on both sides, and the local files that hold it."""

    before: TensorInfo
    after: TensorInfo
    paths: tuple[Path, Path]


def compare_tensors(pairs: Sequence[Pair], progress: Progress | None = None) -> list[Amounts | None]:
    """For each pair, by how much its elements differ; None where every byte is equal.

    Memory stays at two pieces a thread, whatever the tensors' sizes.

    Args:
        pairs: the tensors.
        progress: called with the bytes compared of one side, and those to compare.

    Raises:
        CheckpointError: a file ends early.
        ResourceError: a file can't be read.
    """
    total = sum(pair.before.nbytes for pair in pairs)
    threads = max(1, min(_MOST_THREADS, os.cpu_count() or 1, total // PIECE))
    worker = _Worker(total, progress)
    found: list[Amounts | None] = [None] * len(pairs)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for batch in _batches(pairs):
                with worker.opened(path for i in batch for path in pairs[i].paths):
                    stretches = [(i, start) for i in batch for start in range(0, pairs[i].before.nbytes, _STRETCH)]
                    results = pool.map(lambda work: worker.stretch(pairs[work[0]], work[1]), stretches)
                    for (i, _start), part in zip(stretches, results, strict=True):
                        before = found[i]
                        found[i] = part if before is None else before + part
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [amounts if amounts is not None and amounts.changed else None for amounts in found]


def _batches(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Indices of the pairs in the order of their files, so that a disk reads ahead, few files of them at a time."""
    batch: list[int] = []
    paths: set[Path] = set()
    for i in sorted(range(len(pairs)), key=lambda i: (pairs[i].before.file, pairs[i].before.start)):
        if batch and len(paths.union(pairs[i].paths)) > _MOST_FILES:
            yield batch
            batch, paths = [], set()
        batch.append(i)
        paths.update(pairs[i].paths)
    if batch:
        yield batch


class _Worker:
    """What the threads share: open files, and a buffer for each side in each thread."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.files: dict[Path, int] = {}
        self.total = total
        self.progress = progress
        self.done = 0
        self.lock = threading.Lock()
        self.local = threading.local()

    @contextmanager
    def opened(self, paths: Iterable[Path]) -> Iterator[None]:
        """The files that are read inside."""
        with ExitStack() as stack:
            self.files = {path: stack.enter_context(open_regular(path, str(path))) for path in dict.fromkeys(paths)}
            yield

    def stretch(self, pair: Pair, first: int) -> Amounts:
        """Compare the bytes from `first` on, up to a stretch."""
        if not hasattr(self.local, "buffers"):
            self.local.buffers = bytearray(PIECE), bytearray(PIECE)
        one, other = self.local.buffers
        stop = min(first + _STRETCH, pair.before.nbytes)
        found = Amounts.none_of(0, pair.before.dtype)
        for start in range(first, stop, PIECE):
            length = min(PIECE, stop - start)
            self._read(pair, 0, start, length, one)
            self._read(pair, 1, start, length, other)
            found += self._compare(one, other, length, pair.before.dtype)
            with self.lock:
                self.done += length
                if self.progress is not None:
                    self.progress(self.done, self.total)
        return found

    def _read(self, pair: Pair, side: int, start: int, length: int, buffer: bytearray) -> None:
        info, path = (pair.before, pair.after)[side], pair.paths[side]
        view = memoryview(buffer)[:length]
        offset = info.start + start
        with reading(str(path)):
            while view:
                count = os.preadv(self.files[path], [view], offset)
                if count == 0:
                    raise CheckpointError(f"{path} ends early.", "It changed meanwhile; run the same command again.")
                view, offset = view[count:], offset + count

    @staticmethod
    def _compare(one: bytearray, other: bytearray, length: int, dtype: str) -> Amounts:
        whole = length == PIECE
        # Whole bytearrays compare by memcmp, views element by element.
        before, after = (one, other) if whole else (bytes(one[:length]), bytes(other[:length]))
        if before == after:
            return Amounts.none_of(length // max(DTYPE_BITS[dtype] // 8, 1), dtype)
        from ctxforge.differences.numbers import amounts

        return amounts(bytes(before), bytes(after), dtype)
