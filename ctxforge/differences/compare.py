"""The whole comparison: both sides read by their headers, then files, rotation and tensors."""

from __future__ import annotations

from pathlib import Path

from ctxforge.checkpoint import Progress
from ctxforge.differences.files import file_differences, header_differences
from ctxforge.differences.rotary import rotary_differences
from ctxforge.differences.side import Side
from ctxforge.differences.tensors import sharding, tensor_differences
from ctxforge.differences.types import Differences, TensorDifference


def differences(
    before: str | Path,
    after: str | Path,
    *,
    with_bytes: bool = False,
    trust_recorded: bool = False,
    progress: Progress | None = None,
) -> Differences:
    """How the checkpoint `after` (B) differs from `before` (A).

    JSON files are compared key by key, tensors by name, dtype, shape and bytes, all other files by their bytes. The
    layout of tensors in files is told, and is no difference. Local bytes are streamed; of a Hub repository, headers and
    listed hashes are compared, and small files downloaded.

    Args:
        before, after: folders, Hub ids with an optional revision (`org/name@revision`), or "bundled".
        with_bytes: download weight files whose hashes differ from the Hub, to compare their tensors.
        trust_recorded: take files for equal whose hashes in both `ctxforge.json` are, instead of reading them: a file
            that was edited after its conversion is then not noticed.
        progress: called with the tensor bytes compared, and those to compare.

    Raises:
        CtxforgeError: a side can't be read; a GGUF file.
    """
    one, other = (
        Side.of(str(source), with_bytes=with_bytes, trust_recorded=trust_recorded) for source in (before, after)
    )
    documents, files = file_differences(one, other)
    tensors = tensor_differences(one, other, progress)
    return Differences(
        sources=(one.name, other.name),
        revisions=(one.checkpoint.revision, other.checkpoint.revision),
        json=documents,
        rotary=rotary_differences(one.checkpoint, other.checkpoint),
        tensors=tensors.differences,
        tensor_counts=(len(one.checkpoint.tensors), len(other.checkpoint.tensors)),
        headers=header_differences(one, other),
        sharding=sharding(one, other),
        files=files,
        notes=tuple(_notes(one, other, tensors.differences)),
        bytes_read=tensors.bytes_read,
        bytes_skipped=tensors.bytes_skipped,
        every_tensor=frozenset({*one.checkpoint.tensors, *other.checkpoint.tensors}),
    )


def _notes(one: Side, other: Side, found: tuple[TensorDifference, ...]) -> list[str]:
    notes = [
        f"{side.name} has .bin weights: compared as files, not tensor by tensor"
        for side in (one, other)
        if side.checkpoint.weights != "safetensors"
    ]
    unknown = [difference for difference in found if difference.kind == "not compared"]
    if unknown and one.weights and other.weights:
        shards = {difference.after.file for difference in unknown if difference.after is not None}
        notes.append(
            f"{len(unknown)} tensors in {len(shards)} files were not compared: the files' hashes on the Hub differ, and"
            " their bytes were not moved (--bytes downloads them)"
        )
    return notes
