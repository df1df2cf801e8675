"""The types that the checkpoint stage hands on: what was read, what to change, what was written.

Nothing here imports torch, numpy or huggingface_hub: a config-only conversion must stay small and start fast.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)`, both in bytes."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a safetensors file, as its header describes it.

    Args:
        name: the tensor's key.
        dtype: the safetensors dtype string, such as "BF16".
        shape: the dimensions, empty for a scalar.
        file: the file that holds it, relative to the checkpoint root.
        start: offset of its first byte in the file, the file's header included.
        end: offset one past its last byte, the file's header included.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Number of stored elements; a quantised tensor may pack several weights into one."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a checkpoint: `name` is its POSIX path relative to the root, `size` is in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of which only small files and tensor headers were read.

    Args:
        source: the folder, file or Hub id as the user named it.
        root: the local folder; None while only the headers of a Hub repository were read.
        revision: the resolved commit sha of a Hub source, None for a local one.
        weights: "safetensors", "bin" or "gguf": the format that the weights are in now (`fetch` makes it safetensors).
        config: config.json, key order kept. For a GGUF file, what transformers makes of its metadata.
        config_text: the exact text of config.json.
        tensors: the tensors by name, ordered by file and offset; empty unless `weights` is safetensors.
        files: the files that belong to the checkpoint: weights, and the sidecars that a converted checkpoint carries.
        json_files: the parsed sidecars of `JSON_SIDECARS` that are present.
        json_texts: their exact texts, for `dump_json_like`.
        ignored: files beside them that a converted checkpoint doesn't carry (weights in other formats, training state).
        weight_files: the names of the weight files, in order.
    """

    source: str
    root: Path | None
    revision: str | None
    weights: str
    config: Mapping[str, Any]
    config_text: str
    tensors: Mapping[str, TensorInfo]
    files: tuple[FileInfo, ...]
    json_files: Mapping[str, Mapping[str, Any]]
    ignored: tuple[FileInfo, ...] = ()
    weight_files: tuple[str, ...] = ()
    json_texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def shards(self) -> tuple[str, ...]:
        """The weight files, in order of name."""
        return self.weight_files

    @cached_property
    def parameters(self) -> int:
        """Number of stored elements over all tensors; 0 while the headers are unknown (`bin`, `gguf`)."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @cached_property
    def weight_bytes(self) -> int:
        """Size of the weights: of the tensors' data where the headers are known, else of the weight files."""
        if self.tensors:
            return sum(tensor.nbytes for tensor in self.tensors.values())
        return sum(info.size for info in self.files if info.name in self.weight_files)

    @cached_property
    def dtypes(self) -> dict[str, int]:
        """How many tensors have each dtype, most frequent first."""
        return dict(Counter(tensor.dtype for tensor in self.tensors.values()).most_common())

    @cached_property
    def file_sizes(self) -> dict[str, int]:
        """Size in bytes of each file of `files`, by name."""
        return {info.name: info.size for info in self.files}


@dataclass(frozen=True)
class ScaleRows:
    """Replace `w` by `factor * (w + offset) - offset` on some rows of a tensor.

    16-bit tensors are computed in float32 and rounded once, nearest even, so that `(w.float() * factor).to(w.dtype)`
    reproduces them bit for bit; F32 and F64, and any edit with an offset, are computed in float64.

    Args:
        tensor: name of an F64, F32, F16 or BF16 tensor.
        factor: the multiplier.
        rows: half-open ranges of dimension 0, disjoint; None for the whole tensor.
        offset: what the architecture adds to the stored weight (1.0 for Gemma's norms).
    """

    tensor: str
    factor: float
    rows: tuple[tuple[int, int], ...] | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class ResampleRows:
    """Stretch the rows of a tensor along dimension 0: a table of L0 learned positions becomes one of L'.

    New row p is read at u = p * L0 / L', linearly between the rows floor(u) and floor(u) + 1, and at the last row where
    u lies beyond it: the rule of Position Interpolation, m -> m * L0 / L' (2306.15595 eq. 3), on a table. For an
    integer scale s = L'/L0, every s-th row is a source row, bit for bit, the first one above all; the new rows are
    convex combinations of neighbours, so nothing leaves the range that the model was trained on; and stretching by an
    integer s1 and then by s2 is stretching by s1 * s2. The price is that the last s rows are equal. Aligning the
    corners, u = p * (L0 - 1) / (L' - 1), has no equal rows, but keeps no source row except the two ends, gives
    distances another scale than s, and doesn't compose; centring, u = (p + 1/2) * L0/L' - 1/2, doesn't even keep row 0,
    which models treat unlike any other.

    Rows that fall on a source row are copied. The others are computed in float64 and rounded to the tensor's dtype as
    torch rounds, nearest even (for BF16 by way of float32).

    Args:
        tensor: name of an F64, F32, F16 or BF16 tensor.
        rows: L', the number of rows that the stretched ones become.
        skip: rows at the start that are kept as they are and are not positions (2 for OPT).
        source_rows: L0, how many of the rows after `skip` are stretched, the rest being dropped; None for all.
    """

    tensor: str
    rows: int
    skip: int = 0
    source_rows: int | None = None


TensorEdit = ScaleRows | ResampleRows


@dataclass(frozen=True)
class Edits:
    """What a converted checkpoint has that its source hasn't.

    Args:
        files: small files to write or replace, by name relative to the root.
        tensors: edits of tensors; dtypes stay, and so do shapes except where rows are resampled.
        removed: files of the source that are not carried over.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    tensors: tuple[TensorEdit, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class WriteReport:
    """What `write_checkpoint` did.

    Args:
        out: the finished folder.
        bytes_read: bytes read from the source or read back for edits and hashes; clones and links count nothing.
        bytes_written: bytes handed to the file system; clones and links count nothing.
        tensor_bytes_written: the part of `bytes_written` that went into weight files.
        cloned: files that share their blocks with the source (reflink).
        copied: files copied byte for byte.
        linked: files that are hardlinks to the source's.
        patched: weight files with edited tensors.
        written: small files that came from the edits, and the index where the size of a tensor changed.
        sha256: hex digests of all small files by name; of the weight files too when a checksum was asked for.
        tensor_sha256: hex digests of the whole data of each edited tensor.
    """

    out: Path
    bytes_read: int
    bytes_written: int
    tensor_bytes_written: int
    cloned: tuple[str, ...]
    copied: tuple[str, ...]
    linked: tuple[str, ...]
    patched: tuple[str, ...]
    written: tuple[str, ...]
    sha256: Mapping[str, str]
    tensor_sha256: Mapping[str, str]


@dataclass(frozen=True)
class WriteEstimate:
    """What `write_checkpoint` would do, in bytes; nothing was touched to find out.

    The numbers are for a file system without reflinks; with them, copies of unchanged data cost nothing.

    Args:
        bytes_to_download: of a Hub source, what isn't in the cache yet.
        bytes_to_read: from the source.
        bytes_to_write: to the output.
        tensor_bytes_edited: size of the edited tensors.
        patched: weight files that hold edited tensors.
        copied: files carried over unchanged.
        written: small files that the edits bring, and the index where the size of a tensor changes.
        removed: files that are not carried over, ignored ones included.
        bytes_free: free bytes where the output goes, None when that folder doesn't exist.
    """

    bytes_to_download: int
    bytes_to_read: int
    bytes_to_write: int
    tensor_bytes_edited: int
    patched: tuple[str, ...]
    copied: tuple[str, ...]
    written: tuple[str, ...]
    removed: tuple[str, ...]
    bytes_free: int | None


__all__ = [
    "Checkpoint",
    "Edits",
    "FileInfo",
    "Progress",
    "ResampleRows",
    "ScaleRows",
    "TensorEdit",
    "TensorInfo",
    "WriteEstimate",
    "WriteReport",
]
