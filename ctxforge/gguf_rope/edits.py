"""What to change in a GGUF so that llama.cpp computes the rotation of a config: metadata and one small tensor.

Measured through xllamacpp (docs/engines.md): for files of architecture `llama` the runtime divides each pair's
frequency by `rope_freqs.weight` (float32, one divisor a pair) and multiplies cos and sin by `rope.scaling.attn_factor`,
both without any scaling type. Other graphs don't load the tensor: their loader refuses a file that has it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.gguf_rope.header import FLOAT32, UINT32, Entry, Header, scalar_entry
from ctxforge.rope import understand
from ctxforge.rope.types import RopeGeometry, RopeGroup

TENSOR = "rope_freqs.weight"
# Architectures of GGUF whose graph was measured to use the tensor. llama covers Llama, Mistral and Mixtral.
MEASURED = ("llama",)
_ATTN_FACTOR = "rope.scaling.attn_factor"
_OTHER_MODEL = "name the folder that this file was converted from"


@dataclass(frozen=True)
class RopeEdits:
    """The new metadata entries and the new tensor's contents (None where no pair is scaled and the file has none).

    `divisors` and `temperature` are what was written; `removed` the keys that went.
    """

    entries: tuple[Entry, ...]
    tensor: bytes | None
    divisors: tuple[float, ...]
    temperature: float
    removed: tuple[str, ...]


def rope_edits(
    header: Header, config: Mapping[str, Any], name: str, graphs: tuple[str, ...] | None = MEASURED
) -> RopeEdits:
    """What gives the file `name` with this header the rotation of `config` (a config.json, parsed).

    `graphs` are the architectures to accept, None for any.

    Raises:
        UnsupportedError: an architecture whose graph is not known to use the tensor, more than one rotary table, a
            rotation that follows the length or needs custom code, or a split file.
        CheckpointError: the file was converted from another model.
    """
    architecture = header.value("general.architecture")
    if graphs is not None and architecture not in graphs:
        raise UnsupportedError(
            f"{name}: llama.cpp's graph for {architecture!r} does not read {TENSOR}",
            f"it is measured for {', '.join(graphs)}; choose a method that conversion keeps (ctxforge engines DIR)",
        )
    if header.value("split.count") not in (None, 0, 1):
        raise UnsupportedError(
            f"{name} is one part of a split file", "merge the parts first (llama-gguf-split --merge)"
        )
    geometry = understand(config)
    group = _only_group(geometry)
    _same_model(header, geometry, group, str(architecture), name)
    divisors, temperature = group.in_force.divisors, group.in_force.temperature
    kept, removed = [], []
    length = f"{architecture}.context_length"
    base = f"{architecture}.rope.freq_base"
    for entry in header.entries:
        scaling = entry.key.startswith(f"{architecture}.rope.scal")
        if scaling or entry.key in (length, base):
            removed += [entry.key] if scaling else []
            continue
        kept.append(entry)
    kept.append(scalar_entry(length, UINT32, geometry.max_position_embeddings))
    kept.append(scalar_entry(base, FLOAT32, group.base))
    if temperature != 1.0:
        kept.append(scalar_entry(f"{architecture}.{_ATTN_FACTOR}", FLOAT32, temperature))
    wanted = any(divisor != 1.0 for divisor in divisors) or any(record.name == TENSOR for record in header.records)
    tensor = struct.pack(f"<{len(divisors)}f", *divisors) if wanted else None
    return RopeEdits(tuple(kept), tensor, divisors, temperature, tuple(removed))


def _only_group(geometry: RopeGeometry) -> RopeGroup:
    if len(geometry.groups) != 1:
        raise UnsupportedError(
            f"{geometry.model_type} has {len(geometry.groups)} rotary tables, and a GGUF holds one {TENSOR}",
            "choose a method that conversion keeps (ctxforge engines DIR)",
        )
    [group] = geometry.groups
    if group.in_force.length_dependent or group.in_force.code is not None:
        raise UnsupportedError(
            "the config's rotation follows the running length or needs custom code: no fixed divisors express it",
            "convert with a static method (ctxforge methods)",
        )
    return group


def _same_model(header: Header, geometry: RopeGeometry, group: RopeGroup, architecture: str, name: str) -> None:
    expected = {
        "block_count": geometry.layers,
        "attention.head_count": geometry.heads,
        "rope.dimension_count": group.rotated_dims,
    }
    for key, ours in expected.items():
        theirs = header.value(f"{architecture}.{key}")
        if theirs is not None and theirs != ours:
            raise CheckpointError(
                f"{name} is of another model: its {key} is {theirs}, the config's {ours}", _OTHER_MODEL
            )
