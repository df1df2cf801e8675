"""Structural checks of a checkpoint folder that name every problem, for `ctxforge check`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.header import read_header
from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.checkpoint.layout import CONFIG, INDEX, JSON_SIDECARS, SHARD_PATTERN, SINGLE, find_weights, index_files
from ctxforge.checkpoint.local import list_folder, read_json
from ctxforge.checkpoint.types import TensorInfo
from ctxforge.errors import CtxforgeError

_MAX_NAMES = 3  # tensors named in one line


def verify_integrity(root: Path) -> list[str]:
    """What is structurally wrong with the checkpoint folder `root`: one line for each problem, none when it is sound.

    Looks at names, JSON and tensor headers: missing, extra, truncated or overlapping shards, an index that contradicts
    them, malformed sidecars. Reads no weights, and raises nothing for a broken checkpoint.
    """
    root = Path(root)
    problems: list[str] = []
    try:
        names = list_folder(root)
        for name in (CONFIG, *JSON_SIDECARS):
            if name in names:
                _collect(problems, root, name)
        layout = find_weights(names, str(root))
    except CtxforgeError as error:
        return [*problems, error.cause]
    if layout.weights != "safetensors":
        return problems
    if layout.index is None:
        _, found = _headers(root, layout.files)
        return [*problems, *found]
    try:
        index, _ = read_json(root, layout.index)
        mapping = index_files(index, layout.index, ".safetensors")
    except CtxforgeError as error:
        return [*problems, error.cause]
    shards = sorted(set(mapping.values()))
    problems += [f"The shard {name} named in {INDEX} is missing." for name in shards if name not in names]
    problems += [
        f"{name} is named like a shard or is a second set of weights, and {INDEX} does not name it."
        for name in sorted(set(names) - set(shards))
        if SHARD_PATTERN.fullmatch(name) or name == SINGLE
    ]
    headers, found = _headers(root, [name for name in shards if name in names])
    return [*problems, *found, *index_problems(index, mapping, headers)]


def _collect(problems: list[str], root: Path, name: str) -> None:
    try:
        read_json(root, name, bounded_ints=name == CONFIG)
    except CtxforgeError as error:
        problems.append(error.cause)


def _headers(root: Path, files: list[str] | tuple[str, ...]) -> tuple[dict[str, tuple[TensorInfo, ...]], list[str]]:
    """The headers that can be read, and what is wrong with the others or between them."""
    headers: dict[str, tuple[TensorInfo, ...]] = {}
    found: list[str] = []
    owner: dict[str, str] = {}
    for file in files:
        try:
            headers[file] = read_header(root / file, file).tensors
        except CtxforgeError as error:
            found.append(error.cause)
            continue
        twice = [info.name for info in headers[file] if owner.setdefault(info.name, file) != file]
        if twice:
            found.append(f"{file} repeats tensors of other shards: {_some(twice)}.")
    return headers, found


def index_problems(
    index: Mapping[str, Any], mapping: Mapping[str, str], headers: Mapping[str, Collection[TensorInfo]]
) -> list[str]:
    """What an index says against what the shards hold; shards that couldn't be read are left out.

    Args:
        index: the parsed index.
        mapping: its map of tensor to file, checked.
        headers: the tensors of each shard.
    """
    problems = []
    held = {file: {info.name for info in infos} for file, infos in headers.items()}
    placed: dict[str, set[str]] = {file: set() for file in held}
    for tensor, place in mapping.items():
        if place in placed:
            placed[place].add(tensor)
    for file in sorted(held):
        wanted = placed[file]
        if wanted - held[file]:
            problems.append(f"{file} lacks tensors that {INDEX} places there: {_some(wanted - held[file])}.")
        if held[file] - wanted:
            problems.append(f"{file} holds tensors that {INDEX} does not name: {_some(held[file] - wanted)}.")
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    actual = sum(info.nbytes for infos in headers.values() for info in infos)
    complete = set(headers) == set(mapping.values())
    if complete and total is not None and total != actual:
        problems.append(f"{INDEX} gives a total_size of {ascii_name(str(total))}, but the tensors have {actual} bytes.")
    return problems


def _some(names: list[str] | set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return ", ".join(ascii_name(name) for name in listed[:_MAX_NAMES]) + more
