"""Publish a conversion without writing it to a folder: what the Hub has already is never downloaded."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ctxforge import provenance
from ctxforge.checkpoint.layout import INDEX, safe_name
from ctxforge.checkpoint.patch import TensorPatch, plan_patches
from ctxforge.checkpoint.relayout import file_rewrites, growth, moves, reindexed
from ctxforge.errors import HubError
from ctxforge.publish.connection import Connection
from ctxforge.publish.download import small_file
from ctxforge.publish.files import Contents, Data, OnDisk, OnHub, Rewritten, Wanted, from_disk
from ctxforge.publish.publication import README, Publication, card_text, public_record
from ctxforge.publish.repository import Repository, read_repository

if TYPE_CHECKING:
    from ctxforge.pipeline import Conversion

_NOT_PUBLISHED = frozenset({README, provenance.FILE_NAME, ".gitignore"})


def from_conversion(connection: Connection, conversion: Conversion) -> Publication:
    """The files that `extend` would write, each from where it costs least.

    Args:
        connection: the Hub.
        conversion: planned on a Hub source by its headers alone, or on a local safetensors source.

    Raises:
        HubError: the source can't be read, or it isn't what it was when it was planned.
    """
    checkpoint = conversion.checkpoint
    source = _source(connection, conversion)
    patches = plan_patches(conversion.edits.tensors, checkpoint.tensors)
    made = dict(conversion.edits.files)
    moved = [patch for found in patches.values() if moves(found) for patch in found]
    if moved and INDEX in checkpoint.file_sizes:
        every = [patch for found in patches.values() for patch in found]
        made[INDEX] = reindexed(_index_folder(connection, conversion, source), checkpoint.tensors, every)
    left = {*made, *conversion.edits.removed, *_NOT_PUBLISHED}
    for name in checkpoint.file_sizes:
        safe_name(name, conversion.recipe.source)
    wanted = [
        Wanted(name, _contents(conversion, source, name, size, patches.get(name, ())))
        for name, size in checkpoint.file_sizes.items()
        if name not in left
    ]
    wanted += [Wanted(name, Data(data)) for name, data in made.items() if name not in _NOT_PUBLISHED]
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in made.items()}
    record = json.loads(provenance.record(conversion, digests, {}))
    return Publication(
        name=conversion.recipe.source,
        wanted=tuple(sorted(wanted, key=lambda one: one.path)),
        source=source,
        source_card=_card(connection, conversion, source),
        own_card=None,
        record=public_record(record),
        config=conversion.emitted_config,
    )


def _source(connection: Connection, conversion: Conversion) -> Repository | None:
    """The source's repository, where it is one, compared with what was planned on."""
    checkpoint = conversion.checkpoint
    if checkpoint.revision is None:
        return None
    repo = checkpoint.source.partition("@")[0]
    found = read_repository(connection, repo, checkpoint.revision)
    if found is None or found.sha != checkpoint.revision:
        raise HubError(f"The commit {checkpoint.revision} of {repo} is gone.", "Run the command again.")
    for name, size in checkpoint.file_sizes.items():
        held = found.files.get(name)
        if checkpoint.root is None and (held is None or held.size != size):
            raise HubError(
                f"The Hub contradicts itself: {name} of {repo} had {size} bytes, and has"
                f" {'gone' if held is None else held.size} now, at one commit.",
                "Try again later; nothing was published.",
            )
    return found


def _contents(
    conversion: Conversion, source: Repository | None, name: str, size: int, patches: tuple[TensorPatch, ...]
) -> Contents:
    root = conversion.checkpoint.root
    if root is None:
        assert source is not None
        hub = OnHub(source.files[name])
        if conversion.checkpoint.weights != "safetensors" and name in conversion.checkpoint.weight_files:
            return Rewritten(hub, (), size, "it is converted to safetensors")  # only ever planned with
        return Rewritten(hub, patches, size + growth(patches)) if patches else hub
    disk = OnDisk(Path(os.path.realpath(root / name)), size)
    if not patches:
        return disk if name in conversion.checkpoint.weight_files else from_disk(disk.path, size)
    grown = sum(rewrite.growth for rewrite in file_rewrites(disk.path, name, patches))
    return Rewritten(disk, patches, size + grown)


def _index_folder(connection: Connection, conversion: Conversion, source: Repository | None) -> Path:
    root = conversion.checkpoint.root
    if root is not None:
        return root
    assert source is not None
    return small_file(connection, source, source.files[INDEX]).parent


def _card(connection: Connection, conversion: Conversion, source: Repository | None) -> str | None:
    root = conversion.checkpoint.root
    if root is not None and (root / README).is_file():
        return card_text(root / README)
    if root is None and source is not None and README in source.files:
        return card_text(small_file(connection, source, source.files[README]))
    return None
