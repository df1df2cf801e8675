"""Static checks of a checkpoint folder: what can be known without running it. Made for CI.

Each check has a name, a verdict and one line of detail. Nothing here opens a weight, but for hashes that a provenance
file recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctxforge.checkpoint import Checkpoint, file_sha256, read_checkpoint, read_tensor_bytes, verify_integrity
from ctxforge.errors import CheckpointError, CtxforgeError
from ctxforge.origins import understand_checkpoint
from ctxforge.positions.types import PositionGeometry
from ctxforge.provenance import FILE_NAME
from ctxforge.rope import RopeGeometry, dialect_differences, fields, read_rotations
from ctxforge.rope.geometry import text_config
from ctxforge.rope.lower import relative_difference
from ctxforge.rope.reader import ORIGINAL_KEY, legacy_note
from ctxforge.schemes import Geometry

Verdict = Literal["pass", "fail", "skip"]
_INTEGERS = ("max_position_embeddings", "original_max_position_embeddings", "num_hidden_layers", "sliding_window")
_NO_LIMIT = 10**18
_WITH_ORIGINAL = ("yarn", "longrope", "su")


@dataclass(frozen=True)
class Check:
    """One check's outcome."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """All checks of one folder, in order."""

    path: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when no check failed; skipped ones don't count."""
        return all(check.verdict != "fail" for check in self.checks)


def check(path: str | Path) -> CheckReport:
    """Run every static check on a checkpoint folder.

    Structure, RoPE understood, both dialects agreeing, integer types, max_position_embeddings against the scaling,
    tokenizer length, and the hashes and lambda that `ctxforge.json` recorded.

    Raises:
        CtxforgeError: the folder can't be read as a checkpoint at all (no config.json, malformed headers, ...).
    """
    checkpoint = read_checkpoint(str(path))
    if checkpoint.root is None or checkpoint.weights == "gguf":
        raise CheckpointError(f"{path} is not a checkpoint folder", "give a local folder in the transformers layout")
    geometry, understood = _positions(checkpoint)
    checks = [_structure(checkpoint.root), understood]
    if isinstance(geometry, PositionGeometry):
        checks.append(_tokenizer(checkpoint, geometry))
    elif geometry is not None:
        _model_type, inner = text_config(checkpoint.config)
        checks += [
            _dialects(inner, geometry),
            _integer_types(inner),
            _max_positions(inner, geometry),
            _tokenizer(checkpoint, geometry),
            _recorded_rotation(checkpoint, inner, geometry),
        ]
    checks.append(_hashes(checkpoint))
    return CheckReport(str(path), tuple(checks))


def _structure(root: Path) -> Check:
    problems = verify_integrity(root)
    return Check("structure", "fail" if problems else "pass", "; ".join(problems) or "shards, index and headers agree")


def _positions(checkpoint: Checkpoint) -> tuple[Geometry | None, Check]:
    try:
        geometry = understand_checkpoint(checkpoint)
    except CtxforgeError as error:
        return None, Check("rope", "fail", error.cause)
    name = geometry.scheme if isinstance(geometry, PositionGeometry) else "rope"
    length = geometry.trained_length if geometry.trained_length is not None else "unknown"
    return geometry, Check(name, "pass", f"{geometry.model_type}, works at {length} tokens: {geometry.evidence}")


def _dialects(inner: Mapping[str, Any], geometry: RopeGeometry) -> Check:
    older = legacy_note(inner, geometry.model_type)
    if older is not None:
        return Check("dialects", "pass", f"transformers 5 reads it; {older}")
    differences = dialect_differences(inner, geometry.model_type)
    if differences:
        return Check("dialects", "fail", "; ".join(differences))
    return Check("dialects", "pass", "transformers 5 and 4 keys compute the same frequencies and temperature")


def _integer_types(inner: Mapping[str, Any]) -> Check:
    holders: list[Mapping[str, Any]] = [inner]
    for key in ("rope_parameters", "rope_scaling"):
        found = inner.get(key)
        if isinstance(found, Mapping):
            holders += [found, *(value for value in found.values() if isinstance(value, Mapping))]
    wrong = [
        f"{key} is {holder[key]!r}"
        for holder in holders
        for key in _INTEGERS
        if key in holder and holder[key] is not None and (type(holder[key]) is not int)
    ]
    return Check("integer-types", "fail" if wrong else "pass", "; ".join(wrong) or "counts and lengths are integers")


def _max_positions(inner: Mapping[str, Any], geometry: RopeGeometry) -> Check:
    """yarn and longrope: every reader agrees only when max_position_embeddings = factor x original."""
    name = "max-positions"
    longest = geometry.max_position_embeddings
    for key in ("rope_scaling", "rope_parameters"):
        found = inner.get(key)
        if not isinstance(found, Mapping):
            continue
        entry = found.get("full_attention", found)
        if not isinstance(entry, Mapping) or entry.get("rope_type", entry.get("type")) not in _WITH_ORIGINAL:
            continue
        original = inner.get(ORIGINAL_KEY, entry.get(ORIGINAL_KEY))
        if entry.get("factor") is None or original is None:
            continue
        reach = fields.real(entry, "factor", None) * fields.real({ORIGINAL_KEY: original}, ORIGINAL_KEY, None)
        if round(reach) != longest:
            return Check(name, "fail", f"max_position_embeddings is {longest}, but factor x original is {reach:g}")
    return Check(name, "pass", f"{longest} agrees with the scaling")


def _tokenizer(checkpoint: Checkpoint, geometry: Geometry) -> Check:
    config = checkpoint.json_files.get("tokenizer_config.json")
    if config is None:
        return Check("tokenizer", "skip", "no tokenizer_config.json")
    limit = config.get("model_max_length")
    if limit is None or (isinstance(limit, int | float) and limit > _NO_LIMIT):
        return Check("tokenizer", "pass", "model_max_length sets no limit")
    reach = geometry.trained_length or geometry.max_position_embeddings
    if not isinstance(limit, int) or isinstance(limit, bool):
        return Check("tokenizer", "fail", f"model_max_length is {limit!r}, not an integer")
    if limit < reach:
        return Check("tokenizer", "fail", f"model_max_length is {limit}, the model works at {reach}")
    return Check("tokenizer", "pass", f"model_max_length is {limit}")


def _recorded_rotation(checkpoint: Checkpoint, inner: Mapping[str, Any], geometry: RopeGeometry) -> Check:
    """The config against the lambda and a that the conversion recorded: catches edits made afterwards."""
    return _guarded("recorded-rotation", checkpoint, lambda record: _compare_record(record, inner, geometry))


def _compare_record(record: Mapping[str, Any], inner: Mapping[str, Any], geometry: RopeGeometry) -> str | None:
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


def _hashes(checkpoint: Checkpoint) -> Check:
    root = checkpoint.root
    assert root is not None

    def compare(record: Mapping[str, Any]) -> str | None:
        changed = []
        for name, digest in record["files"].items():
            path = root / name
            if not path.resolve().is_relative_to(root.resolve()):
                return f"{FILE_NAME} names a file outside the folder"
            if not path.is_file():
                changed.append(f"{name} is missing")
            elif file_sha256(path) != digest:
                changed.append(f"{name} changed since the conversion")
        for name, digest in record["edited_tensors"].items():
            info = checkpoint.tensors.get(name)
            if info is None or hashlib.sha256(read_tensor_bytes(root, info)).hexdigest() != digest:
                changed.append(f"tensor {name} changed since the conversion")
        return "; ".join(changed) or None

    return _guarded("provenance", checkpoint, compare)


def _guarded(name: str, checkpoint: Checkpoint, compare: Callable[[Mapping[str, Any]], str | None]) -> Check:
    """Run a comparison with the provenance document, which may be absent or malformed."""
    record = checkpoint.json_files.get(FILE_NAME)
    if record is None:
        return Check(name, "skip", f"no {FILE_NAME}")
    try:
        problem = compare(record)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError):
        problem = f"{FILE_NAME} is malformed"
    return Check(name, "fail" if problem else "pass", problem or "as recorded")
