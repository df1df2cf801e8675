"""What a row of the architecture table can say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Layout = Literal["half-split", "interleaved"]
Legacy = Literal["reads", "absent", "other"]


@dataclass(frozen=True)
class QueryTensor:
    """A tensor whose rows (dimension 0) are query dimensions just before the rotation.

    Attributes:
        names: names inside a layer; `{head}` makes one tensor a head. Absent ones (biases) are skipped.
        arrangement: `heads` rows are head after head; `interleaved-qkv` each head's q, k, v rows follow each other;
            `falcon` one of Falcon's three fused orders, told by the config; `gated` each head's query rows are followed
            by v_head_dim rows of a gate; `after-gate` the rows of all heads follow as many rows of a gate; `shared` one
            head's dimensions, used for all heads; `matrix` a matrix of heads by dimensions.
        offset: the model computes with (w + offset): 1 for Gemma's norms.
        when: config key that must be true for this tensor to exist; None when it always does.
        when_default: what holds when the config lacks that key.
        instead: names of the same tensors in models without the low-rank query projection.
    """

    names: tuple[str, ...]
    arrangement: str = "heads"
    offset: float = 0.0
    when: str | None = None
    when_default: bool = False
    instead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layers:
    """How each layer gets its type (`full_attention`, `sliding_attention`, ...) when the config doesn't list them.

    Attributes:
        rule: `all` every layer is of the first kind; `every` each period-th is of the second kind; `first-of` the first
            of each `period` is; `cycle` the kinds repeat; `indices` those in the list at `key` are of the second kind;
            `from-layer` the second kind from the count at `key` on, when a window is in use; `before-layer` the second
            kind at every other layer below the count at `key`; `window` the second kind everywhere, when a window is
            set; `marked` the second kind in layers marked as without RoPE; `listed` the config must list them.
        kinds: the kinds that the rule deals out.
        period, key: its number, and the config key that overrides it.
        list_key: where the config lists the types.
        first: the kinds of the first layers, whatever the rule says.
        full_last: the last layer is of kind `full_attention`, whatever the rule says.
        with_mlp: the list names feed-forward blocks as layers too (`mlp`), and num_hidden_layers counts them.
        aliases: names in the list that stand for others.
    """

    rule: str = "all"
    kinds: tuple[str, ...] = ("full_attention", "sliding_attention")
    period: int = 0
    key: str | None = None
    list_key: str = "layer_types"
    first: tuple[str, ...] = ()
    full_last: bool = False
    with_mlp: bool = False
    aliases: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TableRow:
    """One of several rotary tables, a dict of its own inside `rope_parameters`.

    Attributes:
        label: its key there.
        default: the dict in force when the config has no `rope_parameters`; None when there is no table then.
        kinds: the layer types that rotate with it; the label when empty.
        base_key: legacy top-level key of its base.
        windowed: its layers attend to a window only.
        takes_scaling: a legacy `rope_scaling` is merged into it.
        head_dim_key, default_head_dim: where its layers' own head_dim stands.
    """

    label: str
    default: Mapping[str, Any] | None
    kinds: tuple[str, ...] = ()
    base_key: str | None = None
    windowed: bool = False
    takes_scaling: bool = False
    head_dim_key: str | None = None
    default_head_dim: int | None = None

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The layer types that rotate with it."""
        return self.kinds or (self.label,)


@dataclass(frozen=True)
class Architecture:
    """One row of the table. Sources: transformers 5.24 `configuration_*.py` and `modeling_*.py`, and 4.57's.

    Attributes:
        default_base: base when the config names none.
        legacy_default_base: what 4.57 takes then, where it is another.
        base_key: legacy top-level key of the base.
        legacy_base_path: the base that 4.57 reads, where that isn't at top level.
        layer_bases_key: a list of one base a layer, 0 for layers without RoPE.
        keys: (canonical name, name in this config) of num_hidden_layers and the like.
        fraction_key, default_fraction: legacy top-level key and default of the rotated fraction of a head; no key when
            the architecture always rotates whole heads. Rotated dimensions are int(head_dim * fraction).
        rotary_dim_key: a count of rotated dimensions that gives the fraction where nothing else does.
        rotated_key, default_rotated: config key of the rotated dimensions where heads have an unrotated part of their
            own size (MLA); key and default of that part are `unrotated_key`, `default_unrotated`. The rotated part is
            the last one, and the keys' has one head.
        rotates_tail: the rotated fraction is the last one of a head.
        scales_softmax: the attention multiplies the softmax scale by m(mscale_all_dim)^2; `legacy_scales_softmax`
            whether 4.57 does.
        head_dim_ignored: the class overwrites head_dim with hidden_size / num_attention_heads.
        head_dim_factor: the attention works on so many times the hidden size.
        layers: how layers get their type.
        layer_multiple: decoder layers per counted one.
        rotating: the layer types that rotate; None for all that attend.
        rotating_without_window: every attending layer rotates when the config sets no window.
        rotating_marks: (key of a list, value): layers so marked rotate whatever their type.
        window_key, default_window, window_flag: sliding-window size, and the flag that must be true for it to be used.
        window_divisor: what the config's value is divided by.
        tables: rotary tables by layer type; empty for one flat table.
        unrotated: config key of a list with 0 for layers without RoPE, and of the interval that stands in for it.
        unrotated_indices: config key of a list of layers without RoPE, and its default.
        requires: (key, default, value, reason): RoPE is in use only when the config's key has that value.
        scaling_types: the RoPE types that the config class admits; None for all.
        aliases: names of RoPE types that this class renames.
        alpha: `dynamic` with a key `alpha` is a fixed base of base * alpha^(d/(d-2)).
        mscale_keys: the temperature is `short_mscale` and `long_mscale`, which every scaled type must name.
        legacy: whether 4.57 `reads` the type, lacks it (`absent`), or does something else (`other`, see
            `legacy_reason`): then the legacy keys need not agree.
        legacy_scaling: a legacy `rope_scaling` may be written: 5.x reads it for the same table, or not at all.
        legacy_spells_default: 4.57 asks the dict for its type without looking whether there is one.
        legacy_types, legacy_keys: the types, and exactly the keys, that transformers 4.57 admits in `rope_scaling`;
            None for no such limit. A type outside makes 4.57 refuse the whole config, loudly.
        legacy_single_base: 4.57 has one base for all tables.
        original_length_key: the trained length stands at top level and overrides the dict's (Phi-3).
        default_scaling: the scaling in force when the config is silent (gpt-oss).
        query, query_norm: the tensors that a folded temperature scales; the norm wins where it exists, because it
            cancels any scale of the projection before it.
        no_fold: why no tensor can carry a temperature; None when one can.
        clip_path: config key of a clamp between projection and rotation, which a fold would not commute with.
        norm_after_rotation: q and k are normalised after the rotation, which cancels a temperature on cos and sin.
        rotates_values: values are rotated with the keys, so cos and sin must keep a temperature of 1.
        query_temperature: what scales queries by position, in words; it follows original_max_position_embeddings when
            `keeps_original_length`.
        indexer: a sparse-attention indexer rotates with the same table.
        layer_prefixes: where layer {i} may stand in the state dict; {half} counts from half of the layers on.
        config_path: keys from the config's root to the text model's config.
        layout: how rotated dimensions pair up; `layout_key` a config key that is false where they are half-split.
        direction: -1 where pairs turn the other way.
        spell_head_dim: the config must name head_dim for a scaled type to load: this class keeps a null one, and
            transformers 5.24 then fails in `_compute_yarn_parameters` and its siblings.
        notes: what a user must know, one line each.
    """

    default_base: float = 10000.0
    legacy_default_base: float | None = None
    base_key: str = "rope_theta"
    legacy_base_path: tuple[str, ...] = ()
    layer_bases_key: str | None = None
    keys: tuple[tuple[str, str], ...] = ()
    fraction_key: str | None = None
    default_fraction: float = 1.0
    rotary_dim_key: str | None = None
    rotated_key: str | None = None
    default_rotated: int = 64
    unrotated_key: str = "qk_nope_head_dim"
    default_unrotated: int = 128
    rotates_tail: bool = False
    scales_softmax: bool = False
    legacy_scales_softmax: bool = True
    head_dim_ignored: bool = False
    head_dim_factor: int = 1
    layers: Layers = field(default_factory=Layers)
    layer_multiple: int = 1
    rotating: tuple[str, ...] | None = None
    rotating_without_window: bool = False
    rotating_marks: tuple[str, str] | None = None
    window_key: str = "sliding_window"
    default_window: int | None = None
    window_flag: str | None = None
    window_divisor: int = 1
    default_head_dim: int | None = None
    default_heads: int | None = None
    default_hidden: int | None = None
    default_layers: int | None = None
    default_max_position_embeddings: int | None = None
    heads_by_layer_key: str | None = None
    tables: tuple[TableRow, ...] = ()
    unrotated: tuple[str, str, int] | None = None
    unrotated_indices: tuple[str, tuple[int, ...]] | None = None
    requires: tuple[str, object, object, str] | None = None
    scaling_types: tuple[str, ...] | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    alpha: bool = False
    mscale_keys: bool = False
    legacy: Legacy = "reads"
    legacy_reason: str | None = None
    legacy_scaling: bool = True
    legacy_spells_default: bool = False
    legacy_types: tuple[str, ...] | None = None
    legacy_keys: tuple[str, ...] | None = None
    legacy_single_base: bool = False
    original_length_key: str | None = None
    default_original_length: int | None = None
    default_scaling: tuple[tuple[str, object], ...] | None = None
    query: QueryTensor = QueryTensor(("self_attn.q_proj.weight", "self_attn.q_proj.bias"))
    query_norm: QueryTensor | None = None
    no_fold: str | None = None
    clip_path: tuple[str, ...] = ()
    norm_after_rotation: bool = False
    rotates_values: bool = False
    query_temperature: str | None = None
    keeps_original_length: bool = False
    indexer: bool = False
    layer_prefixes: tuple[str, ...] = ("model.layers.{layer}.",)
    config_path: tuple[str, ...] = ()
    layout: Layout = "half-split"
    layout_key: str | None = None
    direction: int = 1
    spell_head_dim: bool = False
    notes: tuple[str, ...] = ()

    @property
    def nested(self) -> bool:
        """True when `rope_parameters` holds one dict a layer type."""
        return bool(self.tables)

    def key(self, canonical: str) -> str:
        """The name that this architecture's config has for `canonical`."""
        return dict(self.keys).get(canonical, canonical)


@dataclass(frozen=True)
class MisstatedLength:
    """A family whose `max_position_embeddings` is not the length it was trained at."""

    model_type: str
    claimed: int
    trained: int
    why: str
    window: int | None = None
