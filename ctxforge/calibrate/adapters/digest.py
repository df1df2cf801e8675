"""A digest of a checkpoint's weights that says whether an adapter belongs to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from ctxforge.checkpoint import Checkpoint, TensorInfo
from ctxforge.checkpoint.files import descriptor_sha256, open_regular, reading


def weights_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over name, dtype, shape and data of every tensor in order of name, hex.

    It doesn't depend on how the tensors are spread over files. Every weight is read once, by a few threads.

    Args:
        checkpoint: a local safetensors checkpoint (see `ctxforge.checkpoint.fetch`).

    Raises:
        CheckpointError: a file is missing or too short.
        ResourceError: it can't be read.
    """
    return combined(checkpoint, tensor_digests(checkpoint))


def combined(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    """`weights_digest` from the digests of the single tensors."""
    whole = hashlib.sha256()
    for name in sorted(digests):
        info = checkpoint.tensors[name]
        whole.update(f"{name}\0{info.dtype}\0{list(info.shape)}\0{digests[name]}\n".encode())
    return whole.hexdigest()


def tensor_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """The SHA-256 of every tensor's data by name, hex.

    Raises:
        CheckpointError: a file is missing or too short.
        ResourceError: it can't be read.
    """
    from concurrent.futures import ThreadPoolExecutor

    root = checkpoint.root
    assert root is not None, "fetched before"
    assert checkpoint.weights == "safetensors", "fetched before"
    infos = tuple(checkpoint.tensors.values())
    with ThreadPoolExecutor(max_workers=workers()) as pool:
        return dict(zip(checkpoint.tensors, pool.map(lambda info: tensor_sha256(root, info), infos), strict=True))


def workers() -> int:
    """How many threads hash or merge: the processors that this process may use, at most 4."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(4, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)


def tensor_sha256(root: Path, info: TensorInfo) -> str:
    """The SHA-256 of one tensor's data in the folder `root`, hex."""
    with open_regular(root / info.file, info.file) as file, reading(info.file):
        return descriptor_sha256(file, info.start, info.end)
