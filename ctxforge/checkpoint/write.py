"""Write a converted checkpoint: reuse every byte that doesn't change, edit the rest in place, appear all at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.files import descriptor_sha256, file_sha256, human_bytes, open_regular, reading
from ctxforge.checkpoint.header import read_header
from ctxforge.checkpoint.layout import CONFIG, INDEX, safe_name
from ctxforge.checkpoint.materialise import Rewrite, materialise
from ctxforge.checkpoint.patch import TensorPatch, plan_patches
from ctxforge.checkpoint.relayout import file_rewrites, growth, moves, reindexed
from ctxforge.checkpoint.staging import commit, free_bytes, locked, staged, sync_tree, write_new
from ctxforge.checkpoint.types import Checkpoint, Edits, Progress, WriteEstimate, WriteReport
from ctxforge.errors import InternalError, ResourceError, UsageError

SMALL_FILE = 64 * 1024 * 1024
"""Sidecars up to this size are hashed always; larger ones, like weights, only when a checksum is asked for."""

_SLACK = 16 * 1024 * 1024  # folders, block rounding and the last small files


@dataclass(frozen=True)
class _Work:
    """What has to be done to each file, worked out before anything is touched.

    `sizes` are those that the carried files will have; exact once the source is local.
    """

    carried: tuple[str, ...]
    patches: Mapping[str, tuple[TensorPatch, ...]]
    rewrites: Mapping[str, list[Rewrite]]
    files: Mapping[str, bytes]
    removed: tuple[str, ...]
    sizes: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes that the carried files will have together."""
        return sum(self.sizes.values())


def _work(checkpoint: Checkpoint, edits: Edits) -> _Work:
    sizes = checkpoint.file_sizes
    shards = set(checkpoint.shards)
    for name in (*edits.files, *edits.removed):
        safe_name(name, "An edit")
        if name in shards:
            raise InternalError(f"An edit would replace the weight file {name}.", "Please report this.")
    patches = plan_patches(edits.tensors, checkpoint.tensors)
    files = dict(edits.files)
    rewrites: dict[str, list[Rewrite]] = {}
    grown = {name: growth(found) for name, found in patches.items()}
    if checkpoint.root is not None:
        rewrites = {name: file_rewrites(checkpoint.root / name, name, found) for name, found in patches.items()}
        grown = {name: sum(rewrite.growth for rewrite in found) for name, found in rewrites.items()}
        if INDEX in sizes and any(moves(found) for found in patches.values()):
            every = [patch for found in patches.values() for patch in found]
            files[INDEX] = reindexed(checkpoint.root, checkpoint.tensors, every)
    gone = set(edits.removed) | set(files)
    carried = tuple(name for name in sizes if name not in gone)
    removed = tuple(name for name in sizes if name in set(edits.removed) - set(files))
    ignored = tuple(info.name for info in checkpoint.ignored)
    becoming = {name: sizes[name] + grown.get(name, 0) for name in carried}
    return _Work(carried, patches, rewrites, files, removed + ignored, becoming)


def estimate_write(checkpoint: Checkpoint, edits: Edits, out: Path) -> WriteEstimate:
    """What `write_checkpoint` would read, write and download; touches nothing.

    For weights that `fetch` has still to convert (`.bin`, GGUF), the sizes are those of the files before conversion.

    Raises:
        UsageError: an edit doesn't fit the checkpoint.
        UnsupportedError: an edit of a quantised tensor, or one that no shard can hold.
    """
    work = _work(checkpoint, edits)
    edited = sum(patch.edited_bytes for found in work.patches.values() for patch in found)
    hashed = sum(patch.result.nbytes for found in work.patches.values() for patch in found)
    download = 0
    if checkpoint.root is None:
        from ctxforge.checkpoint.hub import missing_bytes

        download = missing_bytes(checkpoint)
    return WriteEstimate(
        bytes_to_download=download,
        bytes_to_read=sum(checkpoint.file_sizes[name] for name in work.carried) + hashed,
        bytes_to_write=work.total + sum(map(len, work.files.values())),
        tensor_bytes_edited=edited,
        patched=tuple(work.patches),
        copied=tuple(name for name in work.carried if name not in work.patches),
        written=tuple(work.files),
        removed=work.removed,
        bytes_free=free_bytes(out.parent),
    )


def check_output(checkpoint: Checkpoint, out: Path, *, overwrite: bool = False) -> None:
    """Refuse an output folder that can't be or shouldn't be written.

    Args:
        checkpoint: the source.
        out: the folder to be made.
        overwrite: replace a checkpoint that is there.

    Raises:
        UsageError: it exists, is the source, lies inside it or holds it, or its parent doesn't exist.
        ResourceError: the parent isn't writable.
    """
    out = Path(out)
    with reading(str(out)):
        place = Path(os.path.realpath(out.parent)) / out.name
    if out.name in ("", ".", ".."):
        raise UsageError(f"{out} is not a name for a new folder.", "Give the output a name of its own.")
    if out.is_symlink():
        raise UsageError(f"The output {out} is a link.", "Give the folder itself, or a name that is free.")
    # A GGUF file's folder is not a checkpoint of its own: an output beside the file is fine.
    if checkpoint.root is not None and checkpoint.weights != "gguf":
        _check_apart(Path(os.path.realpath(checkpoint.root)), place, out)
    if not out.parent.is_dir():
        raise UsageError(
            f"The folder {out.parent} for the output does not exist.", f"Make it first: mkdir -p {out.parent}"
        )
    if out.exists():
        _check_replaceable(out, overwrite)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ResourceError(f"{out.parent} is not writable.", "Choose an output folder you may write to.")


def _check_apart(source: Path, place: Path, out: Path) -> None:
    if place == source:
        raise UsageError(
            f"The output {out} is the source itself.", "Choose another folder: the source is never changed."
        )
    if place.is_relative_to(source):
        raise UsageError(f"The output {out} lies inside the source.", "Choose a folder outside the source.")
    if source.is_relative_to(place):
        raise UsageError(f"The output {out} contains the source.", "Choose another folder.")


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not out.is_dir():
        raise UsageError(f"The output {out} exists and is not a folder.", "Choose another name.")
    if os.path.ismount(out):
        raise UsageError(
            f"The output {out} is a mount point, which cannot be replaced in one step.", f"Use {out / 'model'} instead."
        )
    with reading(str(out)):
        names = [path.name for path in out.iterdir()]
    if not names:
        return
    if not overwrite:
        raise UsageError(
            f"The output {out} exists and is not empty.", "Choose another folder, or replace it with --overwrite."
        )
    if CONFIG not in names:
        raise UsageError(
            f"The output {out} is not a checkpoint (no {CONFIG}), so it is not overwritten.", "Choose another folder."
        )


@dataclass
class _Tally:
    """Counts while files are made."""

    total: int
    progress: Progress | None
    done: int = 0
    read: int = 0
    written: int = 0
    tensor_written: int = 0
    how: dict[str, list[str]] = field(default_factory=lambda: {"cloned": [], "linked": [], "copied": []})
    sha256: dict[str, str] = field(default_factory=dict)
    tensor_sha256: dict[str, str] = field(default_factory=dict)

    def advance(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def write_checkpoint(
    checkpoint: Checkpoint,
    edits: Edits,
    out: Path,
    *,
    link: bool = False,
    overwrite: bool = False,
    checksum: bool = False,
    finish: Callable[[WriteReport], Mapping[str, bytes]] | None = None,
    progress: Progress | None = None,
) -> WriteReport:
    """Write `checkpoint` with `edits` to the folder `out`, which appears complete or not at all.

    The source is only ever opened for reading. Untouched files share the source's blocks where the file system can
    (reflink), else are copied by the kernel; edited tensors are replaced inside a copy of their shard, whose header and
    offsets, like the index's totals, follow where a tensor's size changes. Everything is synced before the one rename.

    Args:
        checkpoint: a local safetensors checkpoint (see `fetch`).
        edits: what changes.
        out: the folder to make; its parent must exist.
        link: hardlink untouched files where they can't share blocks; then both folders hold the same files.
        overwrite: replace a checkpoint that is at `out`, at the very end.
        checksum: hash the weight files too.
        finish: gets the report and returns the last small files to write (the provenance).
        progress: called with the bytes done and the bytes in total.

    Raises:
        UsageError: the output or an edit is refused.
        UnsupportedError: an edit of a quantised tensor, or one that no shard can hold.
        CheckpointError: the source changed meanwhile, or an edit overflows.
        ResourceError: out of space, not writable, unreadable, or another run holds the output.
    """
    out = Path(out).absolute()
    if checkpoint.root is None or checkpoint.weights != "safetensors":
        raise InternalError(f"{checkpoint.source} was not fetched before writing.", "Please report this.")
    check_output(checkpoint, out, overwrite=overwrite)
    work = _work(checkpoint, edits)
    tally = _Tally(work.total, progress)
    needed = work.total + sum(map(len, work.files.values())) + _SLACK
    with locked(out), staged(out, needed) as staging:
        # Again under the lock: another run may have finished this output in the meantime.
        check_output(checkpoint, out, overwrite=overwrite)
        _carry(checkpoint, checkpoint.root, work, staging, tally, link=link, needed=needed)
        _hash(staging, work, checkpoint, tally, checksum=checksum)
        _add(staging, work.files, tally)
        report = _report(out, work, tally)
        if finish is not None:
            last = finish(report)
            for name in last:
                safe_name(name, "An edit")
            _add(staging, last, tally)
            report = _report(out, replace(work, files={**work.files, **last}), tally)
        sync_tree(staging, skip=frozenset(tally.how["linked"]))
        commit(staging, out)
    return report


def _carry(
    checkpoint: Checkpoint, root: Path, work: _Work, staging: Path, tally: _Tally, *, link: bool, needed: int
) -> None:
    """Bring over the source's files, patch the shards that have edits; check the space before a real copy."""
    sizes = checkpoint.file_sizes
    shards = set(checkpoint.shards)
    hashing = _Hashing()
    # The weights first: they show whether blocks are shared or linked, hence whether the space must be there.
    for name in sorted(work.carried, key=lambda name: (name not in shards, name)):
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        patches = work.patches.get(name, ())
        how = materialise(
            root / name,
            target,
            name,
            sizes[name],
            link=link,
            advance=tally.advance,
            before_copy=lambda: _check_space(staging, tally, needed),
            rewrites=work.rewrites.get(name, ()),
        )
        tally.how[how].append(name)
        edited = sum(patch.edited_bytes for patch in patches)
        written = work.sizes[name] if how == "copied" else edited
        tally.read += sizes[name] if how == "copied" else edited
        tally.written += written
        tally.tensor_written += written if name in shards else 0
        if patches:
            hashing.start(target, name, patches)
    tally.tensor_sha256, hashed = hashing.finish()
    tally.read += hashed


def _check_space(staging: Path, tally: _Tally, needed: int) -> None:
    """Fail before the disk is full rather than after; what is done already is taken off `needed`."""
    free = free_bytes(staging)
    left = needed - tally.done
    if free is not None and free < left - _SLACK:
        raise ResourceError(
            f"Out of disk space in {staging.parent}: {human_bytes(left)} are needed, {human_bytes(free)} are free.",
            "Free some space, or write to another disk.",
        )


class _Hashing:
    """Hashes edited tensors in a thread of its own, while the next shard is copied."""

    def __init__(self) -> None:
        self._thread: Any = None
        self._found: list[Any] = []

    def start(self, target: Path, name: str, patches: tuple[TensorPatch, ...]) -> None:
        """Hash the tensors of `patches` in the finished file `target`."""
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor

            self._thread = ThreadPoolExecutor(max_workers=1)
        self._found.append(self._thread.submit(hash_tensors, target, name, patches))

    def finish(self) -> tuple[dict[str, str], int]:
        """The digests by tensor name, and the bytes that were read for them."""
        digests: dict[str, str] = {}
        count = 0
        for found in self._found:
            some, read = found.result()
            digests |= some
            count += read
        if self._thread is not None:
            self._thread.shutdown()
        return digests, count


def hash_tensors(target: Path, name: str, patches: tuple[TensorPatch, ...]) -> tuple[dict[str, str], int]:
    """The digests of the patched tensors in the finished file `target`, by name, and the bytes read for them."""
    edited = {patch.info.name for patch in patches}
    infos = [info for info in read_header(target, name).tensors if info.name in edited]
    with open_regular(target, name) as file, reading(name):
        digests = {info.name: descriptor_sha256(file, info.start, info.end) for info in infos}
    return digests, sum(info.nbytes for info in infos)


def _hash(staging: Path, work: _Work, checkpoint: Checkpoint, tally: _Tally, *, checksum: bool) -> None:
    sizes = work.sizes
    shards = set(checkpoint.shards)
    for name in work.carried:
        if checksum or (name not in shards and sizes[name] <= SMALL_FILE):
            tally.sha256[name] = file_sha256(staging / name)
            tally.read += sizes[name]


def _add(staging: Path, files: Mapping[str, bytes], tally: _Tally) -> None:
    for name, data in files.items():
        (staging / name).unlink(missing_ok=True)
        write_new(staging / name, data)
        tally.written += len(data)
        tally.sha256[name] = hashlib.sha256(data).hexdigest()


def _report(out: Path, work: _Work, tally: _Tally) -> WriteReport:
    patched = set(work.patches)
    return WriteReport(
        out=out,
        bytes_read=tally.read,
        bytes_written=tally.written,
        tensor_bytes_written=tally.tensor_written,
        cloned=tuple(name for name in tally.how["cloned"] if name not in patched),
        copied=tuple(name for name in tally.how["copied"] if name not in patched),
        linked=tuple(tally.how["linked"]),
        patched=tuple(work.patches),
        written=tuple(work.files),
        sha256=dict(sorted(tally.sha256.items())),
        tensor_sha256=dict(tally.tensor_sha256),
    )
