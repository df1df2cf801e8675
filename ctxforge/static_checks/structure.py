"""Do shards, index and headers agree: of a folder, or of a Hub repository by its index and headers."""

from __future__ import annotations

from pathlib import Path

from ctxforge.checkpoint import Checkpoint, TensorInfo
from ctxforge.checkpoint.integrity import index_problems, verify_integrity
from ctxforge.checkpoint.layout import INDEX, index_files
from ctxforge.checkpoint.local import read_json
from ctxforge.static_checks.types import Check, Fault, failed

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def structure(checkpoint: Checkpoint, small: Path) -> Check:
    """Compare the index of a checkpoint that could be read with what its shards hold; no header is read again.

    Args:
        checkpoint: what `read_checkpoint` gave; it has refused missing, damaged and overlapping shards already.
        small: the folder that holds its index.
    """
    problems: list[str] = []
    if checkpoint.weights == "safetensors" and INDEX in checkpoint.file_sizes:
        index, _ = read_json(small, INDEX)
        headers: dict[str, list[TensorInfo]] = {name: [] for name in checkpoint.shards}
        for info in checkpoint.tensors.values():
            headers[info.file].append(info)
        problems = index_problems(index, index_files(index, INDEX, ".safetensors"), headers)
    if problems:
        return failed("structure", [Fault(problem, INDEX) for problem in problems])
    return Check("structure", "pass", "shards, index and headers agree")


def broken(root: Path, cause: str) -> Check:
    """Everything that is wrong with a folder that can't be read as a checkpoint, for `cause` first."""
    problems = dict.fromkeys((cause, *verify_integrity(root)))
    try:
        return failed("structure", [*dict.fromkeys(_fault(root, problem) for problem in problems)])
    except OSError:  # the folder can't be listed
        return failed("structure", [Fault(problem) for problem in problems])


def _fault(root: Path, problem: str) -> Fault:
    """The problem at the file that it names first; a Git LFS pointer in a file's place is called that."""
    named = [path for path in root.iterdir() if path.name in problem]
    if not named:
        return Fault(problem)
    path = min(named, key=lambda path: (problem.find(path.name), -len(path.name)))
    if _is_pointer(path):
        return Fault(f"{path.name} is a Git LFS pointer and not the file itself: git lfs pull", path.name)
    return Fault(problem, path.name)


def _is_pointer(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_LFS_POINTER)
    except OSError:
        return False
