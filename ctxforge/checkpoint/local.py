"""Read a checkpoint from a local folder: names, small JSON files and tensor headers, never the weights."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.files import read_small, reading
from ctxforge.checkpoint.header import read_header
from ctxforge.checkpoint.jsonio import MAX_JSON_BYTES, ascii_name, parse_json_object
from ctxforge.checkpoint.layout import (
    CONFIG,
    JSON_SIDECARS,
    Layout,
    check_shards,
    find_weights,
    index_files,
    skipped_folder,
    stays_behind,
)
from ctxforge.checkpoint.types import Checkpoint, FileInfo, TensorInfo
from ctxforge.errors import CheckpointError


def list_folder(root: Path) -> dict[str, int]:
    """All regular files below `root` with their sizes, by POSIX path; folders that never matter are not entered.

    Links to files are followed where they stay inside the folder or lead into the blobs of the Hugging Face cache that
    the folder is a snapshot of.

    Raises:
        CheckpointError: a link loop, a broken link, a link that leads outside, a linked folder, or a pipe or device.
        ResourceError: a folder that can't be listed.
    """
    real_root = Path(os.path.realpath(root))
    allowed = [real_root, *_blob_folder(real_root)]
    found: dict[str, int] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        with reading(folder or str(root)):
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if not skipped_folder(entry.name):
                    folders.append(name)
            elif entry.is_symlink() and skipped_folder(entry.name):
                continue
            elif not stays_behind(name) or "/" not in name:
                size = _regular_size(Path(entry.path), name, allowed, entry.is_symlink())
                if size is not None:
                    found[name] = size
    return dict(sorted(found.items()))


def _blob_folder(real_root: Path) -> list[Path]:
    """The blobs that a snapshot in the Hugging Face cache (`<repo>/snapshots/<sha>/`) links to."""
    for folder in real_root.parents:
        if folder.name == "snapshots":
            return [folder.parent / "blobs"]
    return []


def _regular_size(path: Path, name: str, allowed: list[Path], linked: bool) -> int | None:
    """Size of the regular file behind `path`; None for something of no interest that isn't one."""
    optional = stays_behind(name)
    try:
        with reading(name):
            status = path.stat()
    except CheckpointError:
        if optional:
            return None
        raise
    if linked:
        target = Path(os.path.realpath(path))
        if not any(target.is_relative_to(folder) for folder in allowed):
            raise CheckpointError(
                f"{name} is a link that leads out of the checkpoint folder.",
                "Replace the link by the file, or give the folder that holds the files themselves.",
            )
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{name} is a link to a folder.", "Replace the link by the folder itself.")
    if not stat.S_ISREG(status.st_mode):
        if optional:
            return None
        raise CheckpointError(f"{name} is neither a file nor a folder.", "Remove it from the checkpoint folder.")
    return status.st_size


def read_json(root: Path, name: str, *, bounded_ints: bool = True) -> tuple[dict[str, Any], str]:
    """Parse the JSON object in `root / name`; gives the object and its text (see `parse_json_object`)."""
    data = read_small(root / name, name, MAX_JSON_BYTES)
    return parse_json_object(data, name, bounded_ints=bounded_ints)


def resolve_layout(root: Path, names: Mapping[str, int], source: str) -> tuple[Layout, dict[str, str]]:
    """The weights of a folder, its index read and compared with the files, and the index's map of tensor to file."""
    layout = find_weights(names, source)
    if layout.index is None:
        return layout, {}
    index, _ = read_json(root, layout.index)
    mapping = index_files(index, layout.index, ".safetensors" if layout.weights == "safetensors" else ".bin")
    shards = tuple(sorted(set(mapping.values())))
    check_shards(shards, names, layout.index)
    return Layout(layout.weights, shards, layout.index), mapping


def read_local(root: Path, *, source: str | None = None, revision: str | None = None) -> Checkpoint:
    """Read the checkpoint in the folder `root`.

    Args:
        root: the folder.
        source: how to name it in messages and in the result; the folder's path by default.
        revision: the commit sha, where the folder is a snapshot of a Hub repository.

    Raises:
        CheckpointError: missing, malformed or inconsistent files.
        ResourceError: unreadable files.
        UsageError: the folder is an adapter, or holds several GGUF files.
    """
    source = source or str(root)
    names = list_folder(root)
    layout, mapping = resolve_layout(root, names, source)
    if layout.weights == "gguf":
        from ctxforge.checkpoint.gguf import read_gguf

        return read_gguf(root / layout.files[0], source=source)
    tensors: dict[str, TensorInfo] = {}
    if layout.weights == "safetensors":
        tensors = collect_tensors({name: read_header(root / name, name).tensors for name in layout.files}, mapping)
    return assemble(source, root, revision, layout, tensors, names, root)


def assemble(
    source: str,
    root: Path | None,
    revision: str | None,
    layout: Layout,
    tensors: Mapping[str, TensorInfo],
    sizes: Mapping[str, int],
    small: Path,
) -> Checkpoint:
    """Put a Checkpoint together: read its JSON files in `small`, divide the rest into what is carried and what stays.

    Args:
        source, root, revision, tensors: as in Checkpoint.
        layout: the weights.
        sizes: all files with their sizes.
        small: the folder that holds config.json and the sidecars.
    """
    config, text = read_json(small, CONFIG)
    sidecars = {name: read_json(small, name, bounded_ints=False) for name in JSON_SIDECARS if name in sizes}
    weights = {*layout.files, *([layout.index] if layout.index else [])}
    carried = {name: size for name, size in sizes.items() if name in weights or not stays_behind(name)}
    return Checkpoint(
        source=source,
        root=root,
        revision=revision,
        weights=layout.weights,
        config=config,
        config_text=text,
        tensors=tensors,
        files=tuple(FileInfo(name, size) for name, size in carried.items()),
        json_files={name: value for name, (value, _) in sidecars.items()},
        ignored=tuple(FileInfo(name, size) for name, size in sizes.items() if name not in carried),
        weight_files=layout.files,
        json_texts={name: found for name, (_, found) in sidecars.items()},
    )


def collect_tensors(headers: Mapping[str, tuple[TensorInfo, ...]], mapping: Mapping[str, str]) -> dict[str, TensorInfo]:
    """All tensors of all files, compared with the index's map (empty where there is no index).

    Raises:
        CheckpointError: a tensor in two files, or one that isn't in the file that the index names.
    """
    tensors: dict[str, TensorInfo] = {}
    for infos in headers.values():
        for info in infos:
            other = tensors.setdefault(info.name, info)
            if other is not info:
                raise CheckpointError(
                    f"The tensor {ascii_name(info.name)} is in {other.file} and in {info.file}.",
                    "Remove the file that is left over from another save.",
                )
    for name, file in mapping.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(
                f"The index says that {file} holds the tensor {ascii_name(name)}, but it does not.",
                "Download the index and the shards again, all from the same revision.",
            )
    return tensors
