"""Checks of what the config says about positions: understood, the same in both dialects, whole numbers, consistent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ctxforge.checkpoint import Checkpoint
from ctxforge.errors import CtxforgeError
from ctxforge.origins import understand_checkpoint
from ctxforge.positions.types import PositionGeometry
from ctxforge.rope import RopeGeometry, dialect_differences, fields
from ctxforge.rope.reader import ORIGINAL_KEY, legacy_note
from ctxforge.schemes import Geometry
from ctxforge.static_checks.config_text import CONFIG, fault, named_paths, rope_paths, text_prefix
from ctxforge.static_checks.locate import Path
from ctxforge.static_checks.types import Check, failed

TOKENIZER = "tokenizer_config.json"
_INTEGERS = ("max_position_embeddings", "original_max_position_embeddings", "num_hidden_layers", "sliding_window")
_NO_LIMIT = 10**18
_WITH_ORIGINAL = ("yarn", "longrope", "su")


def understood(checkpoint: Checkpoint) -> tuple[Geometry | None, Check]:
    """The geometry, where the config can be understood, and the check that says so."""
    try:
        geometry = understand_checkpoint(checkpoint)
    except CtxforgeError as error:
        paths = named_paths(checkpoint.config, error.cause)
        return None, failed("rope", [fault(checkpoint, CONFIG, error.cause, *paths)])
    name = geometry.scheme if isinstance(geometry, PositionGeometry) else "rope"
    length = geometry.trained_length if geometry.trained_length is not None else "unknown"
    return geometry, Check(name, "pass", f"{geometry.model_type}, works at {length} tokens: {geometry.evidence}")


def dialects(checkpoint: Checkpoint, inner: Mapping[str, Any], geometry: RopeGeometry) -> Check:
    """Do the keys of transformers 5 and of transformers 4 compute the same rotation."""
    older = legacy_note(inner, geometry.model_type)
    if older is not None:
        return Check("dialects", "pass", f"transformers 5 reads it; {older}")
    differences = dialect_differences(inner, geometry.model_type)
    if differences:
        paths = rope_paths(checkpoint.config)
        return failed("dialects", [fault(checkpoint, CONFIG, words, *paths) for words in differences])
    return Check("dialects", "pass", "transformers 5 and 4 keys compute the same frequencies and temperature")


def integer_types(checkpoint: Checkpoint, inner: Mapping[str, Any]) -> Check:
    """Are counts and lengths whole numbers by type, not only by value."""
    prefix = text_prefix(checkpoint.config)
    wrong = [
        fault(checkpoint, CONFIG, f"{key} is {holder[key]!r}", (*prefix, *path, key))
        for path, holder in _holders(inner)
        for key in _INTEGERS
        if key in holder and holder[key] is not None and (type(holder[key]) is not int)
    ]
    return (
        failed("integer-types", wrong) if wrong else Check("integer-types", "pass", "counts and lengths are integers")
    )


def _holders(inner: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The text model's config and the rope dicts in it, each with the keys that lead to it."""
    yield (), inner
    for key in ("rope_parameters", "rope_scaling"):
        found = inner.get(key)
        if isinstance(found, Mapping):
            yield (key,), found
            for label, value in found.items():
                if isinstance(value, Mapping):
                    yield (key, label), value


def max_positions(checkpoint: Checkpoint, inner: Mapping[str, Any], geometry: RopeGeometry) -> Check:
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
            words = f"max_position_embeddings is {longest}, but factor x original is {reach:g}"
            prefix = text_prefix(checkpoint.config)
            return failed(
                name, [fault(checkpoint, CONFIG, words, (*prefix, "max_position_embeddings"), (*prefix, key))]
            )
    return Check(name, "pass", f"{longest} agrees with the scaling")


def tokenizer(checkpoint: Checkpoint, geometry: Geometry) -> Check:
    """Does the tokenizer allow the length that the model works at."""
    config = checkpoint.json_files.get(TOKENIZER)
    if config is None:
        return Check("tokenizer", "skip", f"no {TOKENIZER}")
    limit = config.get("model_max_length")
    if limit is None or (isinstance(limit, int | float) and limit > _NO_LIMIT):
        return Check("tokenizer", "pass", "model_max_length sets no limit")
    reach = geometry.trained_length or geometry.max_position_embeddings
    words = None
    if not isinstance(limit, int) or isinstance(limit, bool):
        words = f"model_max_length is {limit!r}, not an integer"
    elif limit < reach:
        words = f"model_max_length is {limit}, the model works at {reach}"
    if words is not None:
        return failed("tokenizer", [fault(checkpoint, TOKENIZER, words, ("model_max_length",))])
    return Check("tokenizer", "pass", f"model_max_length is {limit}")
