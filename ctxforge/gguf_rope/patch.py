"""Write a copy of a GGUF with the rotation of a checkpoint's config; every other tensor keeps its bytes."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ctxforge.checkpoint.files import BLOCK, open_regular, pread_exact
from ctxforge.checkpoint.local import read_json
from ctxforge.checkpoint.staging import FILE_MODE, sync, writing
from ctxforge.errors import CheckpointError, UsageError
from ctxforge.gguf_rope.edits import MEASURED, TENSOR, RopeEdits, rope_edits
from ctxforge.gguf_rope.header import TYPE_F32, Header, Record, parse_header

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Patched:
    """What was written: the file, its divisors and temperature, and the metadata keys that were removed."""

    out: Path
    divisors: tuple[float, ...]
    temperature: float
    removed: tuple[str, ...]


def patch_gguf(
    file: Path,
    like: Path,
    out: Path,
    *,
    overwrite: bool = False,
    graphs: tuple[str, ...] | None = MEASURED,
    progress: Progress | None = None,
) -> Patched:
    """Copy `file` to `out` so that llama.cpp rotates as the config of the folder `like` says.

    The divisors go into `rope_freqs.weight`, the temperature into `rope.scaling.attn_factor`; scaling keys that would
    apply on top are removed, and the context length is the config's. `out` appears whole or not at all.

    Args:
        file: a GGUF that llama.cpp's converter made of `like`, quantised or not.
        like: the checkpoint's folder.
        out: the file to write.
        overwrite: replace an existing `out`, at the very end.
        graphs: GGUF architectures to accept; None for any, to measure whether llama.cpp's graph reads the tensor.
        progress: called with (bytes done, bytes in all).

    Raises:
        UsageError: `out` exists, or is `file`.
        CheckpointError: a damaged file, or one of another model.
        UnsupportedError: llama.cpp has no place for this rotation.
        ResourceError: no space, no permission.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already", "give another --out, or --overwrite")
    config, _text = read_json(like, "config.json")
    with open_regular(file, str(file)) as source:
        size = os.fstat(source).st_size
        if size == 0:
            raise CheckpointError(f"{file} is empty", "convert the checkpoint again")
        with mmap.mmap(source, 0, prot=mmap.PROT_READ) as mapped:
            header = parse_header(mapped, file.name)
        if header.size > size:
            raise CheckpointError(f"{file} ends before its data", "convert the checkpoint again")
        edits = rope_edits(header, config, file.name, graphs)
        staging = out.parent / f".{out.name}.ctxforge-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            with writing(out.parent, size):
                _write(source, size, header, edits, staging, progress or (lambda _done, _total: None))
                sync(staging)
                if overwrite:
                    staging.replace(out)
                else:
                    # A link refuses to replace what appeared meanwhile; a rename would not.
                    os.link(staging, out)
                    staging.unlink()
                sync(out.parent)
        except FileExistsError:
            raise UsageError(f"{out} exists already", "give another --out, or --overwrite") from None
        finally:
            staging.unlink(missing_ok=True)
    return Patched(out, edits.divisors, edits.temperature, edits.removed)


def _write(source: int, size: int, header: Header, edits: RopeEdits, path: Path, progress: Progress) -> None:
    data = size - header.size
    records, at = header.records, None
    if edits.tensor is not None:
        records, at = _place(header, data, len(edits.tensor))
    whole = replace(header, entries=edits.entries, records=records)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(target, "wb") as file:
        start = file.write(whole.dump())
        for offset in range(0, data, BLOCK):
            file.write(pread_exact(source, min(BLOCK, data - offset), header.size + offset, path.name))
            progress(min(offset + BLOCK, data), data)
        if edits.tensor is not None:
            assert at is not None
            file.write(bytes(max(0, at - data)))
            file.seek(start + at)
            file.write(edits.tensor)
            file.seek(0, os.SEEK_END)
            file.write(bytes(-(file.tell() - start) % header.alignment))


def _place(header: Header, data: int, length: int) -> tuple[tuple[Record, ...], int]:
    """The records with the tensor among them, and its offset: where it stands already, else after the data."""
    shape = (length // 4,)
    for record in header.records:
        if record.name == TENSOR:
            if record.shape != shape or record.type != TYPE_F32 or record.offset + length > data:
                raise CheckpointError(
                    f"its {TENSOR} has shape {record.shape} and type {record.type}, not {shape} float32",
                    "name the folder that this file was converted from",
                )
            return header.records, record.offset
    at = data + -data % header.alignment
    return (*header.records, Record(TENSOR, shape, TYPE_F32, at)), at
