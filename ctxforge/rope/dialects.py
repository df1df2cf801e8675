"""Writing a rope dict into config.json in both key styles, keeping the file's key order."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from ctxforge.errors import UnsupportedError
from ctxforge.rope import fields, formulas
from ctxforge.rope.architectures import Architecture, TableRow
from ctxforge.rope.sizes import canonical
from ctxforge.rope.table import ORIGINAL_KEY
from ctxforge.rope.types import RopeForm, RopeGeometry

RopeDict = dict[str, Any]

# What a rope dict says about scaling, rewritten by every conversion; all other keys (mrope_section,
# llama_4_scaling_beta, ...) are the model's own and are carried over.
_SCALING_KEYS = frozenset(
    (
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        ORIGINAL_KEY,
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "short_factor",
        "long_factor",
        "short_mscale",
        "long_mscale",
        "low_freq_factor",
        "high_freq_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "alpha",
    )
)


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
    main_label = _main_label(geometry, architecture, forms)
    main_form, base = forms[main_label]
    fraction = _fraction(config, architecture)
    tables: dict[str | None, RopeDict | None] = {}
    for label, (form, table_base) in forms.items():
        source = _source_dict(config, architecture, label)
        if architecture.nested and not _extendable(geometry, label):
            tables[label] = _kept(source, table_base)
            continue
        entries = rope_dict(form)
        entries |= _own_entries(config, geometry, architecture, label, form, original_length)
        entries |= {key: value for key, value in source.items() if key not in _SCALING_KEYS}
        if "max_position_embeddings" in entries:
            entries["max_position_embeddings"] = max_position_embeddings
        entries["rope_theta"] = table_base
        own_fraction = _table_fraction(config, architecture, label, source, fraction)
        if own_fraction is not None and form.type != "proportional":
            entries["partial_rotary_factor"] = own_fraction
        tables[label] = entries
    if architecture.spell_head_dim and patched.get("head_dim") is None:
        put(patched, "head_dim", geometry.head_dim, ("num_attention_heads",))
    _put_length(patched, architecture, max_position_embeddings)
    _put_bases(patched, architecture, forms, base)
    if fraction is not None and architecture.fraction_key is not None and not architecture.nested:
        put(patched, architecture.fraction_key, fraction, (architecture.base_key,))
    main = tables[main_label]
    assert main is not None
    if architecture.legacy_scaling:
        put(
            patched,
            "rope_scaling",
            _legacy_dict(main_form, main, architecture),
            (architecture.base_key, "rope_parameters"),
        )
    else:
        # 5.x would take a left-over one for all tables.
        patched.pop("rope_scaling", None)
    put(patched, "rope_parameters", _modern(config, architecture, tables), ("rope_scaling", architecture.base_key))
    wants_top_level = architecture.original_length_key is not None or main_form.type == "llama3"
    if wants_top_level and main_form.type in ("longrope", "llama3"):
        # Phi-3 reads it there and nowhere else; llama.cpp's converter takes llama3's from there, with default 8192.
        put(patched, ORIGINAL_KEY, original_length, ("max_position_embeddings",))
    elif architecture.original_length_key is None:
        # 5.x lets a top-level value override the dict's: a left-over one would be wrong now.
        patched.pop(ORIGINAL_KEY, None)
    return patched


def _main_label(
    geometry: RopeGeometry, architecture: Architecture, forms: Mapping[str | None, tuple[RopeForm, float]]
) -> str | None:
    """The table that legacy keys describe: the first that can be extended."""
    if not architecture.nested:
        return None
    known = [group for group in geometry.groups if group.layer_type in forms]
    return next((group for group in known if group.extendable), known[0]).layer_type


def _extendable(geometry: RopeGeometry, label: str | None) -> bool:
    return any(group.layer_type == label and group.extendable for group in geometry.groups)


def _row(architecture: Architecture, label: str | None) -> TableRow | None:
    return next((row for row in architecture.tables if row.label == label), None)


def _source_dict(config: Mapping[str, Any], architecture: Architecture, label: str | None) -> RopeDict:
    """The dict that the source's table `label` is read from, defaults included where the config has none."""
    modern = fields.table(config, "rope_parameters")
    legacy = fields.table(config, "rope_scaling")
    row = _row(architecture, label)
    if row is None:
        silent = modern is None and legacy is None and architecture.default_scaling is not None
        return dict(architecture.default_scaling or ()) if silent else dict(legacy or modern or {})
    found = dict(row.default or {}) if modern is None else dict(fields.table(modern, row.label) or {})
    if legacy is not None and row.takes_scaling:
        found.update(legacy)
    return found


def _kept(source: RopeDict, base: float) -> RopeDict:
    """A table that stays as it is, spelled out."""
    kept = {"rope_type": source.get("rope_type", source.get("type", "default"))}
    kept |= {key: value for key, value in source.items() if key not in ("rope_type", "type")}
    kept["rope_theta"] = base
    return kept


def _own_entries(
    config: Mapping[str, Any],
    geometry: RopeGeometry,
    architecture: Architecture,
    label: str | None,
    form: RopeForm,
    original_length: int,
) -> RopeDict:
    """Keys that this architecture wants beside the form's own."""
    entries: RopeDict = {}
    if architecture.mscale_keys and form.type != "default":
        temperature = float(form.parameters.get("attention_factor", 1.0))  # type: ignore[arg-type]
        entries |= {"short_mscale": temperature, "long_mscale": temperature}
    source = _source_dict(config, architecture, label)
    if architecture.keeps_original_length and form.type not in ("yarn", "llama3") and source.get(ORIGINAL_KEY):
        entries[ORIGINAL_KEY] = source[ORIGINAL_KEY]
    coefficient = _softmax_coefficient(geometry, label, form, original_length)
    if coefficient is not None:
        entries["mscale_all_dim"] = coefficient
    return entries


def _softmax_coefficient(
    geometry: RopeGeometry, label: str | None, form: RopeForm, original_length: int
) -> float | None:
    """mscale_all_dim that keeps the source's factor on the softmax scale: m(c)^2 with m(c) = 0.1 c ln(factor) + 1.

    None when the source has none, or when the plan starts over from another length.

    Raises:
        UnsupportedError: a form without a factor, which cannot keep it.
    """
    group = next((group for group in geometry.groups if group.layer_type == label), None)
    if group is None or group.softmax_scale == 1.0 or original_length != geometry.trained_length:
        return None
    factor = form.parameters.get("factor")
    if not isinstance(factor, int | float) or factor <= 1:
        raise UnsupportedError(
            f"the rope type {form.type} cannot keep the softmax scale of {group.softmax_scale:.6g} that this model's"
            " attention takes from mscale_all_dim",
            "choose another method, or restart with --original-length",
        )
    return (math.sqrt(group.softmax_scale) - 1) / (formulas.mscale(float(factor), 1.0) - 1)


def _table_fraction(
    config: Mapping[str, Any], architecture: Architecture, label: str | None, source: RopeDict, fraction: float | None
) -> float | None:
    """The rotated fraction to spell out in one table's dict; None where whole heads rotate."""
    if label is None:
        return fraction
    row = _row(architecture, label)
    if architecture.rotated_key is not None:
        own = source.get("partial_rotary_factor")
        return None if own is None else float(own)
    if architecture.fraction_key is None or row is None:
        return None
    missing = architecture.default_fraction
    if architecture.rotates_tail and config.get(architecture.fraction_key) is not None:
        missing = float(config[architecture.fraction_key])
    return float(source.get("partial_rotary_factor", missing))


def _modern(
    config: Mapping[str, Any], architecture: Architecture, tables: Mapping[str | None, RopeDict | None]
) -> RopeDict:
    if not architecture.nested:
        flat = tables[None]
        assert flat is not None
        return flat
    before = fields.table(config, "rope_parameters") or {}
    found: RopeDict = {}
    for row in architecture.tables:
        if row.label in tables:
            found[row.label] = tables[row.label]
        elif row.label in before:
            found[row.label] = before[row.label]
        elif row.default is None or before:
            found[row.label] = None
        else:
            found[row.label] = _kept(dict(row.default), row.default["rope_theta"])
    return found


def _put_length(patched: dict[str, Any], architecture: Architecture, length: int) -> None:
    own = architecture.key("max_position_embeddings")
    names = [name for name in dict.fromkeys((own, "max_position_embeddings")) if name in patched] or [own]
    for name in names:
        put(patched, name, length, ())


def _put_bases(
    patched: dict[str, Any],
    architecture: Architecture,
    forms: Mapping[str | None, tuple[RopeForm, float]],
    base: float,
) -> None:
    """The bases at top level and wherever else this architecture or 4.57 looks for them."""
    if not architecture.nested:
        put(patched, architecture.base_key, base, ("rope_parameters", "rope_scaling"))
    previous = architecture.base_key
    for row in architecture.tables:
        if row.base_key is not None and row.label in forms:
            put(patched, row.base_key, forms[row.label][1], (previous, "rope_parameters", "rope_scaling"))
            previous = row.base_key
    if architecture.legacy_base_path:
        outer, inner = architecture.legacy_base_path
        patched[outer] = {**(fields.table(patched, outer) or {}), inner: base}
    listed = patched.get(architecture.layer_bases_key or "")
    if isinstance(listed, list):
        patched[architecture.layer_bases_key or ""] = [base if entry else entry for entry in listed]


def _legacy_dict(form: RopeForm, entries: RopeDict, architecture: Architecture) -> RopeDict | None:
    """`rope_scaling` for 4.x: cut to the keys that a strict class admits. A type that it refuses is written whole: a
    loud refusal beats a model that loads without its scaling.
    """
    outside = ("rope_theta", "partial_rotary_factor")
    if form.type == "default":
        carried = {key: value for key, value in entries.items() if key not in (*outside, "rope_type")}
        # 5.x takes this dict in place of rope_parameters: what the model reads there must stand here too.
        return {"rope_type": "default", **carried} if carried or architecture.legacy_spells_default else None
    kept = {key: value for key, value in entries.items() if key not in outside or form.type == "proportional"}
    strict = architecture.legacy_keys is not None and form.type in (architecture.legacy_types or ())
    if not strict:
        kept.pop("rope_theta", None)
        return kept
    kept["type"] = form.type
    return {key: kept[key] for key in architecture.legacy_keys or ()}


def _fraction(config: Mapping[str, Any], architecture: Architecture) -> float | None:
    """The rotated fraction to spell out; None for architectures that rotate whole heads."""
    if architecture.fraction_key is None:
        return None
    modern = config.get("rope_scaling") or config.get("rope_parameters") or {}
    value = modern.get("partial_rotary_factor", config.get(architecture.fraction_key))
    if value is None and architecture.rotary_dim_key is not None and config.get(architecture.rotary_dim_key):
        from ctxforge.rope.sizes import full_head_dim

        return float(config[architecture.rotary_dim_key]) / full_head_dim(canonical(config, architecture), architecture)
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
