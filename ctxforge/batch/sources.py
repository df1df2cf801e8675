"""The sources of a batch: each read once, pinned to one revision, fetched once, and told apart by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from ctxforge.checkpoint import Checkpoint, fetch, file_sha256, read_checkpoint
from ctxforge.checkpoint.files import open_regular, reading
from ctxforge.checkpoint.write import SMALL_FILE
from ctxforge.recipe import ConversionRecipe
from ctxforge.sources import resolve_source

_KEPT = 8
_SAMPLES, _SAMPLE = 8, 16 * 1024


@dataclass(frozen=True)
class Source:
    """A source as it was found when the batch was planned.

    Attributes:
        checkpoint: config and headers.
        fingerprint: the commit of a Hub source, a digest of a local one.
    """

    checkpoint: Checkpoint
    fingerprint: str


class Sources:
    """Reads sources for the jobs of a batch. Keeps the last few only: a batch may have a thousand of them."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str | None], Source] = OrderedDict()
        self._pinned: dict[tuple[str, str | None], str] = {}

    def open(self, recipe: ConversionRecipe) -> Source:
        """The source of a recipe; a branch of the Hub is the commit that it was when first asked for.

        Raises:
            CtxforgeError: see `read_checkpoint`.
        """
        name = (recipe.source, recipe.revision)
        if name in self._found:
            self._found.move_to_end(name)
            return self._found[name]
        checkpoint = open_pinned(recipe, self._pinned.get(name))
        found = Source(checkpoint, fingerprint(checkpoint))
        if checkpoint.revision is not None:
            self._pinned[name] = checkpoint.revision
        self._found[name] = found
        if len(self._found) > _KEPT:
            self._found.popitem(last=False)
        return found

    def ready(self, recipe: ConversionRecipe) -> Checkpoint:
        """The source on this machine as safetensors, downloaded or imported where it isn't yet.

        Raises:
            CtxforgeError: see `fetch`.
        """
        name = (recipe.source, recipe.revision)
        found = self.open(recipe)
        checkpoint = found.checkpoint
        if checkpoint.root is None or checkpoint.weights != "safetensors":
            checkpoint = fetch(checkpoint)
            self._found[name] = Source(checkpoint, found.fingerprint)
        return checkpoint


def open_pinned(recipe: ConversionRecipe, revision: str | None) -> Checkpoint:
    """Read a recipe's source, at the commit `revision` where that is known.

    Raises:
        CtxforgeError: see `read_checkpoint`.
    """
    source = resolve_source(recipe.source)
    if revision is None:
        return read_checkpoint(source, revision=recipe.revision)
    return read_checkpoint(source.partition("@")[0], revision=revision)


def fingerprint(checkpoint: Checkpoint) -> str:
    """What tells this state of a source from any other.

    Of a Hub source the commit. Of a local one a digest of its small files' contents and, for files too large to read
    for this, of size, time of change, the first bytes (the header) and samples between.

    Raises:
        CheckpointError: a file has gone.
        ResourceError: a file can't be read.
    """
    if checkpoint.root is None or checkpoint.revision is not None:
        return f"commit {checkpoint.revision}"
    weights = set(checkpoint.shards)
    parts = []
    for name, size in checkpoint.file_sizes.items():
        path = checkpoint.root / name
        large = name in weights or size > SMALL_FILE
        parts.append([name, _sampled(path, name) if large else file_sha256(path)])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _sampled(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    with open_regular(path, name) as file, reading(name):
        status = os.fstat(file)
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        for i in range(_SAMPLES):
            digest.update(os.pread(file, _SAMPLE, i * status.st_size // _SAMPLES))
    return digest.hexdigest()
