"""Writing a rope dict into config.json in both key styles, keeping the file's key order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ctxforge.rope.architectures import Architecture
from ctxforge.rope.reader import ORIGINAL_KEY
from ctxforge.rope.types import RopeForm, RopeGeometry

RopeDict = dict[str, Any]


def rope_dict(form: RopeForm) -> RopeDict:
    """The dict of one form without its base: rope_type first, floats as floats, counts as integers."""
    entries: RopeDict = {"rope_type": form.type}
    for key, value in form.parameters.items():
        if key != "rope_theta":
            entries[key] = value if isinstance(value, bool | list) or key == ORIGINAL_KEY else float(value)
    return entries


def write_forms(
    config: Mapping[str, Any],
    geometry: RopeGeometry,
    architecture: Architecture,
    forms: Mapping[str | None, tuple[RopeForm, float]],
    max_position_embeddings: int,
    original_length: int,
) -> dict[str, Any]:
    """A copy of the text model's `config` with `forms` (form and base for each table) in both dialects.

    transformers 5 reads `rope_parameters` with the base inside; 4.x reads the top-level base and `rope_scaling`.
    Where both stand, 5.x prefers `rope_scaling`, so the two must agree exactly.
    """
    patched = copy.deepcopy(dict(config))
    main_type = "full_attention" if architecture.nested else None
    main_form, base = forms[main_type]
    fraction = _fraction(config, architecture)
    modern: dict[str, RopeDict] = {}
    for layer_type, (form, table_base) in forms.items():
        entries = rope_dict(form)
        entries["rope_theta"] = table_base
        if fraction is not None:
            entries["partial_rotary_factor"] = fraction
        modern[layer_type or ""] = entries
    legacy = _legacy_dict(main_form, architecture)
    if architecture.spell_head_dim and patched.get("head_dim") is None:
        put(patched, "head_dim", geometry.head_dim, ("num_attention_heads",))
    put(patched, "max_position_embeddings", max_position_embeddings, ())
    put(patched, architecture.base_key, base, ("rope_parameters", "rope_scaling"))
    if architecture.local_base_key is not None:
        put(patched, architecture.local_base_key, forms["sliding_attention"][1], (architecture.base_key,))
    if fraction is not None and architecture.fraction_key is not None:
        put(patched, architecture.fraction_key, fraction, (architecture.base_key,))
    put(patched, "rope_scaling", legacy, (architecture.base_key, "rope_parameters"))
    put(patched, "rope_parameters", modern if architecture.nested else modern[""], ("rope_scaling",))
    wants_top_level = architecture.original_length_key is not None or main_form.type == "llama3"
    if wants_top_level and main_form.type in ("longrope", "llama3"):
        # Phi-3 reads it there and nowhere else; llama.cpp's converter takes llama3's from there, with default 8192.
        put(patched, ORIGINAL_KEY, original_length, ("max_position_embeddings",))
    elif architecture.original_length_key is None:
        # 5.x lets a top-level value override the dict's: a left-over one would be wrong now.
        patched.pop(ORIGINAL_KEY, None)
    return patched


def _legacy_dict(form: RopeForm, architecture: Architecture) -> RopeDict | None:
    """`rope_scaling` for 4.x: cut to the keys that a strict class admits. A type that it refuses is written whole: a
    loud refusal beats a model that loads without its scaling.
    """
    if form.type == "default":
        return None
    entries = rope_dict(form)
    strict = architecture.legacy_keys is not None and form.type in (architecture.legacy_types or ())
    if not strict:
        return entries
    entries["type"] = form.type
    return {key: entries[key] for key in architecture.legacy_keys or ()}


def _fraction(config: Mapping[str, Any], architecture: Architecture) -> float | None:
    """The rotated fraction to spell out; None for architectures that rotate whole heads."""
    if architecture.fraction_key is None:
        return None
    modern = config.get("rope_scaling") or config.get("rope_parameters") or {}
    value = modern.get("partial_rotary_factor", config.get(architecture.fraction_key))
    return float(value) if value is not None else architecture.default_fraction


def put(config: dict[str, Any], key: str, value: Any, neighbours: tuple[str, ...]) -> None:
    """Set `config[key]`, keeping an existing key's place.

    A new key goes to its alphabetical place when the keys are sorted (as `save_pretrained` writes them), else after
    the first neighbour present, else to the end.
    """
    if key in config:
        config[key] = value
        return
    keys = list(config)
    if keys == sorted(keys):
        position = sum(1 for other in keys if other < key)
    else:
        present = [keys.index(neighbour) for neighbour in neighbours if neighbour in config]
        position = present[0] + 1 if present else len(keys)
    items = list(config.items())
    items.insert(position, (key, value))
    config.clear()
    config.update(items)
