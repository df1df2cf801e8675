"""Tensors by name: which are there on one side only, which have another shape, dtype or other bytes."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.checkpoint import Progress, TensorInfo
from ctxforge.differences.contents import Pair, compare_tensors
from ctxforge.differences.side import Side, same_file
from ctxforge.differences.types import Sharding, TensorDifference


@dataclass(frozen=True)
class TensorComparison:
    """The tensors that differ, by name, and the bytes that were read and skipped of each side."""

    differences: tuple[TensorDifference, ...]
    bytes_read: int
    bytes_skipped: int


def sharding(one: Side, other: Side) -> Sharding:
    """How the tensors of both lie in files."""
    before, after = one.checkpoint.tensors, other.checkpoint.tensors
    both = [(before[name], after[name]) for name in before if name in after]
    moved = sum(a.file != b.file for a, b in both)
    shifted = sum(a.file == b.file and a.start != b.start for a, b in both)
    return Sharding((len(one.weights), len(other.weights)), moved, shifted)


def tensor_differences(one: Side, other: Side, progress: Progress | None = None) -> TensorComparison:
    """Compare all tensors of two checkpoints.

    Bytes are read only where they are on this machine, or may be downloaded, and where the files that hold them aren't
    known to be the same.

    Raises:
        CheckpointError, ResourceError: a file can't be read to its end.
        HubError: a download failed.
    """
    before, after = one.checkpoint.tensors, other.checkpoint.tensors
    if not one.weights or not other.weights:
        unknown = [TensorDifference(name, "not compared", info) for name, info in before.items()]
        unknown += [TensorDifference(name, "not compared", after=info) for name, info in after.items()]
        return TensorComparison(tuple(unknown), 0, 0)
    found = [TensorDifference(name, "removed", before=info) for name, info in before.items() if name not in after]
    found += [TensorDifference(name, "added", after=info) for name, info in after.items() if name not in before]
    pairs: list[Pair] = []
    skipped = 0
    same: dict[tuple[str, str], bool | None] = {}
    for name, info in before.items():
        twin = after.get(name)
        if twin is None:
            continue
        if info.shape != twin.shape:
            found.append(TensorDifference(name, "shape", info, twin))
        elif info.dtype != twin.dtype:
            found.append(TensorDifference(name, "dtype", info, twin))
        elif info.nbytes == 0 or _known_equal(one, info, other, twin, same):
            skipped += info.nbytes
        else:
            paths = one.reach(info.file), other.reach(twin.file)
            if paths[0] is None or paths[1] is None:
                found.append(TensorDifference(name, "not compared", info, twin))
            else:
                pairs.append(Pair(info, twin, (paths[0], paths[1])))
    compared = compare_tensors(pairs, progress)
    found += [
        TensorDifference(pair.before.name, "bytes", pair.before, pair.after, amounts)
        for pair, amounts in zip(pairs, compared, strict=True)
        if amounts is not None
    ]
    found.sort(key=lambda difference: _natural(difference.name))
    return TensorComparison(tuple(found), sum(pair.before.nbytes for pair in pairs), skipped)


def _known_equal(
    one: Side, info: TensorInfo, other: Side, twin: TensorInfo, same: dict[tuple[str, str], bool | None]
) -> bool:
    """Whether two tensors lie at one place of files with the same bytes, as far as that is cheaper than comparing."""
    if info.start != twin.start:
        return False
    files = info.file, twin.file
    if files not in same:
        cheap = one.local(files[0]) is None or other.local(files[1]) is None
        same[files] = same_file(one, files[0], other, files[1]) if cheap else _one_file(one, files[0], other, files[1])
    return same[files] is True


def _one_file(one: Side, file: str, other: Side, other_file: str) -> bool:
    """Of two local files: whether they are one, or their recorded hashes, where those are trusted, are equal."""
    if one.inode(file) == other.inode(other_file):
        return True
    known = one.known_sha256(file)
    return known is not None and known == other.known_sha256(other_file)


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts layer 10 after layer 9."""
    return tuple((0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part) for part in name.split("."))
