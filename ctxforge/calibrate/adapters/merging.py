"""The finished checkpoint: the base's own bytes with an adapter in them, rounded once, streamed, whole or absent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ctxforge.calibrate.adapters.digest import combined, tensor_digests, tensor_sha256
from ctxforge.calibrate.adapters.files import RECORD, Adapter, read_adapter
from ctxforge.calibrate.adapters.record import MergedTensor, MergeRecord
from ctxforge.calibrate.adapters.rewriting import TensorMerge, plan_merge
from ctxforge.checkpoint import Checkpoint, Progress, check_output, fetch, human_bytes, read_checkpoint
from ctxforge.checkpoint.layout import safe_name
from ctxforge.checkpoint.materialise import materialise
from ctxforge.checkpoint.staging import commit, free_bytes, locked, staged, sync_tree, write_new
from ctxforge.errors import CheckpointError, ResourceError, UsageError
from ctxforge.sources import resolve_source

AUDITED = 1024
"""Elements of each changed tensor that are computed again from the finished file."""

_SLACK = 16 * 1024 * 1024  # folders, block rounding and the last small files

Finish = Callable[[MergeRecord], Mapping[str, bytes]]


def merge(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    link: bool = False,
    overwrite: bool = False,
    verify_base: bool = True,
    audited: int = AUDITED,
    finish: Finish | None = None,
    progress: Progress | None = None,
) -> MergeRecord:
    """Merge an adapter into its base.

    Every element of a changed tensor is the number of the checkpoint's dtype that is nearest to the exact
    W + scale * B A (or to the trained float32 value, for tensors trained whole): one rounding, from the original
    bytes. Everything else is carried over byte for byte, in the same files. The result is the same whatever the
    sharding, the machine and the number of threads. In memory are the factors of one tensor and a block of it.

    Args:
        base: the folder or Hub id that was trained on.
        adapter: the adapter's folder.
        out: the folder to make; its parent must exist.
        link: hardlink files without a change where they can't share blocks.
        overwrite: replace a checkpoint that is at `out`, at the very end.
        verify_base: compare the digest of all weights with the adapter's; without it, names and shapes only.
        audited: elements of each changed tensor that are read back and computed again.
        finish: gets the record and returns the last small files to write (the provenance).
        progress: called with the bytes done and the bytes in total.

    Raises:
        UsageError: not an adapter, another base than the adapter's, or an output that is refused.
        UnsupportedError: a quantised base, or one in F64.
        CheckpointError: a damaged file, a change that overflows the dtype, or a NaN in the adapter.
        ResourceError: no space, no permission, or another run holds the output.
    """
    out = Path(out).absolute()
    found = read_adapter(adapter)
    checkpoint = fetch(read_checkpoint(resolve_source(str(base))))
    _check_places(checkpoint, found, out, overwrite)
    jobs = plan_merge(checkpoint, found)
    before = _base_digests(checkpoint, found, jobs, verify_base)
    needed = sum(checkpoint.file_sizes.values()) + _SLACK
    with locked(out), staged(out, needed) as staging:
        check_output(checkpoint, out, overwrite=overwrite)
        linked = _carry(checkpoint, jobs, staging, needed, link, progress)
        record = _record(checkpoint, found, jobs, before, staging, out, audited)
        for name, data in (finish(record) if finish is not None else {}).items():
            (staging / safe_name(name, "A merge")).unlink(missing_ok=True)
            write_new(staging / name, data)
        sync_tree(staging, skip=linked)
        commit(staging, out)
    return record


def _check_places(checkpoint: Checkpoint, adapter: Adapter, out: Path, overwrite: bool) -> None:
    check_output(checkpoint, out, overwrite=overwrite)
    if adapter.root.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"the adapter {adapter.root} lies inside the output {out}", "choose another output folder")


def _base_digests(
    checkpoint: Checkpoint, adapter: Adapter, jobs: Mapping[str, TensorMerge], verify_base: bool
) -> dict[str, str]:
    """The digests of the tensors that will change, after the base was found to be the adapter's."""
    assert checkpoint.root is not None
    if not verify_base:
        return {name: tensor_sha256(checkpoint.root, job.info) for name, job in jobs.items()}
    digests = tensor_digests(checkpoint)
    if combined(checkpoint, digests) != adapter.digest:
        raise UsageError(
            f"the weights of {checkpoint.source} are not those that the adapter was trained on ({adapter.source})",
            f"give the base whose digest {RECORD} names, bit for bit the same weights",
        )
    return {name: digests[name] for name in jobs}


def _carry(
    checkpoint: Checkpoint,
    jobs: Mapping[str, TensorMerge],
    staging: Path,
    needed: int,
    link: bool,
    progress: Progress | None,
) -> frozenset[str]:
    """Bring over every file, the changed tensors merged; gives the names of the linked ones."""
    assert checkpoint.root is not None
    total = sum(checkpoint.file_sizes.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    def check_space() -> None:
        free = free_bytes(staging)
        left = needed - done
        if free is not None and free < left - _SLACK:
            raise ResourceError(
                f"Out of disk space in {staging.parent}: {human_bytes(left)} are needed, {human_bytes(free)} are free.",
                "Free some space, or write to another disk.",
            )

    linked = set()
    for name, size in checkpoint.file_sizes.items():
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        mine = sorted((job for job in jobs.values() if job.info.file == name), key=lambda job: job.info.start)
        how = materialise(
            checkpoint.root / name,
            target,
            name,
            size,
            link=link,
            advance=advance,
            before_copy=check_space,
            rewrites=[job.rewrite() for job in mine],
        )
        if how == "linked":
            linked.add(name)
    return frozenset(linked)


def _record(
    checkpoint: Checkpoint,
    adapter: Adapter,
    jobs: Mapping[str, TensorMerge],
    before: Mapping[str, str],
    staging: Path,
    out: Path,
    audited: int,
) -> MergeRecord:
    assert checkpoint.root is not None
    tensors = []
    for name, job in sorted(jobs.items()):
        count, largest = job.audit(checkpoint.root, staging, audited)
        if largest > 0.5 + 2.0**-20:
            raise CheckpointError(
                f"the merged {name} differs from its exact value by {largest:g} units in the last place",
                "the base or the disk changed while it was merged: let them settle, then run again",
            )
        tensors.append(
            MergedTensor(
                name=name,
                dtype=job.info.dtype,
                shape=job.info.shape,
                role=job.entry.role,
                kind=job.entry.kind,
                source_sha256=before[name],
                sha256=tensor_sha256(staging, job.info),
                elements=job.info.elements,
                changed=job.changed,
                norm=job.norm,
                norm_of_change=job.norm_of_change,
                norm_written=job.norm_written,
                largest_rounding=largest,
                audited=count,
            )
        )
    small = {
        name: hashlib.sha256((staging / name).read_bytes()).hexdigest()
        for name, size in checkpoint.file_sizes.items()
        if name not in checkpoint.shards and size <= 64 * 1024 * 1024
    }
    return MergeRecord(
        out=out,
        adapter_source=adapter.source,
        base_digest=adapter.digest,
        recipe=adapter.recipe.document(),
        tensors=tuple(tensors),
        untouched=len(checkpoint.tensors) - len(jobs),
        bytes_rewritten=sum(job.info.nbytes for job in jobs.values()),
        sha256=small,
    )
