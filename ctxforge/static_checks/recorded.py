"""The checkpoint against what its conversion recorded in `ctxforge.json`: the rotation, and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from ctxforge.checkpoint import Checkpoint, file_sha256, read_tensor_bytes
from ctxforge.checkpoint.layout import safe_name
from ctxforge.errors import CheckpointError
from ctxforge.provenance import FILE_NAME
from ctxforge.rope import RopeGeometry, read_rotations
from ctxforge.rope.lower import relative_difference
from ctxforge.static_checks.config_text import CONFIG, fault, rope_paths
from ctxforge.static_checks.types import Check, Fault, failed

Digest = Callable[[str], str | None]
"""The SHA-256 of a file by its name, in hex; None where it can't be known without moving the file."""


def recorded_rotation(checkpoint: Checkpoint, inner: Mapping[str, Any], geometry: RopeGeometry) -> Check:
    """The config against the lambda and a that the conversion recorded: catches edits made afterwards."""

    def compare(record: Mapping[str, Any]) -> tuple[list[Fault], str]:
        words = _compare_rotation(record, inner, geometry)
        paths = rope_paths(checkpoint.config)
        return ([] if words is None else [fault(checkpoint, CONFIG, words, *paths)]), ""

    return _guarded("recorded-rotation", checkpoint, compare)


def _compare_rotation(record: Mapping[str, Any], inner: Mapping[str, Any], geometry: RopeGeometry) -> str | None:
    tables = read_rotations(inner, geometry.model_type, "transformers 5")
    for entry in record["plan"]["tables"]:
        if entry["length_dependent"]:
            continue
        table = tables[entry["layer_type"]]
        planned = [
            entry["base"] ** (-2 * i / entry["rotated_dims"]) / divisor for i, divisor in enumerate(entry["divisors"])
        ]
        if len(planned) != len(table.frequencies):
            return "the number of rotated pairs changed"
        worst = max(relative_difference(a, b) for a, b in zip(table.frequencies, planned, strict=True))
        if worst > 1e-6:
            return f"the config's frequencies differ from the recorded ones by {worst:.2g}"
        temperature = entry["temperature"] / entry["folded_into_weights"] ** 0.5
        if abs(table.rotation.temperature / temperature - 1) > 1e-6:
            return f"the config's temperature is {table.rotation.temperature:.6g}, recorded {temperature:.6g}"
    return None


def hashes(checkpoint: Checkpoint, digest: Digest) -> Check:
    """The recorded hashes of files and of edited tensors against the checkpoint's.

    Args:
        checkpoint: the checkpoint; edited tensors are read and hashed where it is local.
        digest: the hash of one of its files.

    Raises:
        CtxforgeError: a file can't be read, or the Hub can't be reached.
    """

    def compare(record: Mapping[str, Any]) -> tuple[list[Fault], str]:
        found = [_file_fault(checkpoint, digest, name, wanted) for name, wanted in record["files"].items()]
        unknown = sum(one == "unknown" for one in found)
        faults = [one for one in found if isinstance(one, Fault)]
        edited = record["edited_tensors"].items()
        remarks = [f"{unknown} files not compared"] if unknown else []
        if checkpoint.root is None:
            remarks += [f"{len(edited)} edited tensors not read"] if edited else []
        else:
            faults += [one for name, wanted in edited if (one := _tensor_fault(checkpoint, name, wanted)) is not None]
        return faults, ", ".join(remarks)

    return _guarded("provenance", checkpoint, compare)


def local_digest(checkpoint: Checkpoint) -> Digest:
    """The hashes of a local checkpoint's files, computed from their bytes."""
    root = checkpoint.root
    assert root is not None
    return lambda name: file_sha256(root / name)


def _file_fault(checkpoint: Checkpoint, digest: Digest, name: str, wanted: str) -> Fault | str:
    """What is wrong with one recorded file; "same" or "unknown" where nothing is."""
    try:
        safe_name(name, FILE_NAME)
    except CheckpointError:
        return Fault(f"{FILE_NAME} names a file outside the folder", FILE_NAME)
    if name not in checkpoint.file_sizes and not _is_file(checkpoint, name):
        return Fault(f"{name} is missing", FILE_NAME)
    found = digest(name)
    if found is None:
        return "unknown"
    return "same" if found == wanted else Fault(f"{name} changed since the conversion", name)


def _is_file(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a local file that is not part of the checkpoint is there."""
    return checkpoint.root is not None and (checkpoint.root / name).is_file()


def _tensor_fault(checkpoint: Checkpoint, name: str, wanted: str) -> Fault | None:
    info = checkpoint.tensors.get(name)
    assert checkpoint.root is not None
    if info is not None and hashlib.sha256(read_tensor_bytes(checkpoint.root, info)).hexdigest() == wanted:
        return None
    return Fault(f"tensor {name} changed since the conversion", "" if info is None else info.file)


def _guarded(
    name: str, checkpoint: Checkpoint, compare: Callable[[Mapping[str, Any]], tuple[list[Fault], str]]
) -> Check:
    """Run a comparison with the provenance document, which may be absent or malformed."""
    record = checkpoint.json_files.get(FILE_NAME)
    if record is None:
        return Check(name, "skip", f"no {FILE_NAME}")
    try:
        faults, remark = compare(record)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError):
        faults, remark = [Fault(f"{FILE_NAME} is malformed", FILE_NAME)], ""
    if faults:
        return failed(name, faults)
    return Check(name, "pass", f"as recorded ({remark})" if remark else "as recorded")
