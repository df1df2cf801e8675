"""Files other than tensors: JSON key by key, headers of weight files, the rest by their bytes."""

from __future__ import annotations

import json
from typing import Any

from ctxforge.checkpoint.files import open_regular, pread_exact, read_small, reading
from ctxforge.checkpoint.header import read_header
from ctxforge.checkpoint.jsonio import MAX_JSON_BYTES, unique_object
from ctxforge.checkpoint.layout import CONFIG, INDEX
from ctxforge.differences.json_changes import json_changes
from ctxforge.differences.side import Side, same_file
from ctxforge.differences.types import FileDifference, HeaderDifference, JsonDifference


def file_differences(one: Side, other: Side) -> tuple[tuple[JsonDifference, ...], tuple[FileDifference, ...]]:
    """All files but the weights and their index, which say how tensors are laid out.

    Raises:
        CtxforgeError: a file can't be read, or a download failed.
    """
    layout = {*one.weights, *other.weights, INDEX}
    before = {name: size for name, size in one.checkpoint.file_sizes.items() if name not in layout}
    after = {name: size for name, size in other.checkpoint.file_sizes.items() if name not in layout}
    documents: list[JsonDifference] = []
    files: list[FileDifference] = []
    for name in sorted({*before, *after}, key=lambda name: (name != CONFIG, name)):
        sizes = before.get(name), after.get(name)
        if sizes[0] is None or sizes[1] is None:
            files.append(FileDifference(name, "added" if sizes[0] is None else "removed", sizes))
            continue
        same = same_file(one, name, other, name)
        if same is True:
            continue
        found = _json(one, other, name) if same is False and name.endswith(".json") else None
        if found is not None:
            documents.append(found)
        else:
            files.append(FileDifference(name, "changed" if same is False else "not compared", sizes))
    return tuple(documents), tuple(files)


def _json(one: Side, other: Side, name: str) -> JsonDifference | None:
    """The difference of a JSON file; None where either isn't JSON, or is too large."""
    before, after = _document(one, name), _document(other, name)
    if before is None or after is None:
        return None
    try:
        return JsonDifference(name, json_changes(before[0], after[0]))
    except RecursionError:
        return None


def _document(side: Side, name: str) -> tuple[Any] | None:
    path = side.reach(name)
    if path is None or side.size(name) > MAX_JSON_BYTES:
        return None
    try:
        text = read_small(path, name, MAX_JSON_BYTES).decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique_object)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a character can't be shown
        return (value,)
    except (ValueError, RecursionError):  # a key twice and half a character are ValueErrors too
        return None


def header_differences(one: Side, other: Side) -> tuple[HeaderDifference, ...]:
    """Weight files of one name, both on this machine, whose headers differ beyond the place of tensors.

    Raises:
        CheckpointError, ResourceError: a file can't be read.
    """
    found = []
    for name in sorted({*one.weights} & {*other.weights}):
        paths = one.local(name), other.local(name)
        if paths[0] is None or paths[1] is None or one.inode(name) == other.inode(name):
            continue
        texts = _header_text(paths[0], name), _header_text(paths[1], name)
        if texts[0] == texts[1]:
            continue
        before, after = read_header(paths[0], name), read_header(paths[1], name)
        metadata = json_changes(dict(before.metadata), dict(after.metadata))
        laid_out = [[(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors] for header in (before, after)]
        spelling = laid_out[0] == laid_out[1] and _without_metadata(texts[0]) != _without_metadata(texts[1])
        if metadata or spelling:
            found.append(HeaderDifference(name, metadata, spelling))
    return tuple(found)


def _header_text(path: Any, name: str) -> bytes:
    with open_regular(path, name) as file, reading(name):
        length = int.from_bytes(pread_exact(file, 8, 0, name), "little")
        return pread_exact(file, length, 8, name)


def _without_metadata(text: bytes) -> str:
    """A header's text without the value of `__metadata__`, spelled as it is."""
    document = text.decode("utf-8")
    key = document.find('"__metadata__"')
    if key < 0:
        return document
    start = document.index("{", key)
    _value, stop = json.JSONDecoder().raw_decode(document, start)
    return document[:start] + document[stop:]
