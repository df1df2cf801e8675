"""The types that the RoPE stages hand to each other.

Notation of the whole package, from the papers: `d` rotated dimensions of a head, pair index i = 0 ... d/2 - 1, base b,
plain inverse frequency f_i = b^(-2i/d) in radians per token, divisor lambda_i (the model rotates with f_i / lambda_i),
temperature a (cos and sin are multiplied by a, so q.k is multiplied by a^2), L0 the trained length, L' the target,
scale s = L'/L0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The divisor of a pair that does not rotate at all. Finite, so that JSON and float32 hold it times any b^(2i/d): at a
# billion tokens its angle is 1e-21.
UNROTATED = 1e30


@dataclass(frozen=True)
class RopeForm:
    """A scaling as the RoPE dialects of config.json name it: a type and that type's parameters.

    `type` is one of default, linear, dynamic, yarn, llama3, longrope, proportional. For `default`, a changed base
    stands in `parameters["rope_theta"]`.
    """

    type: str
    parameters: Mapping[str, float | int | bool | list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class CustomCode:
    """A rotation that no config key expresses: the modeling file that computes it, and its parameters.

    `name` is a module of templates/modeling; `parameters` go under the config's `ctxforge` key.
    """

    name: str
    parameters: Mapping[str, float | int | bool | str | list[float] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Rotation:
    """The function that one rotary table computes: divisors lambda_i, one per pair, and the temperature a.

    A divisor of `UNROTATED` marks a pair that does not rotate. `length_dependent` marks tables that change with the
    running length (dynamic NTK, longrope with two different lists); `divisors` then hold for the longest length that
    the config declares. `code` names the modeling file of a rotation that config keys can't express.
    """

    divisors: tuple[float, ...]
    temperature: float = 1.0
    form: RopeForm | None = None
    length_dependent: bool = False
    code: CustomCode | None = None

    @property
    def is_plain(self) -> bool:
        """True when nothing is scaled: every divisor 1, temperature 1."""
        return self.temperature == 1.0 and all(divisor == 1.0 for divisor in self.divisors)


@dataclass(frozen=True)
class RopeGroup:
    """Layers that share one rotary table.

    Attributes:
        layer_type: the key of this table in a nested `rope_parameters`, or None when the config holds one flat dict.
        layers: indices of the layers that rotate with it.
        windowed_layers: those among them that attend to a sliding window only.
        rotated_dims: d.
        base: b of the plain frequencies.
        in_force: the rotation that the source's config already applies.
        extendable: False for tables used by windowed layers alone: no distance beyond the window ever reaches them.
        head_dim: dimensions of a query head in these layers; None for the model's.
        first_rotated: where the rotated dimensions start within a head (MLA rotates the last ones).
        softmax_scale: what the attention multiplies the whole of q.k by because of the rope dict (MLA).
    """

    layer_type: str | None
    layers: tuple[int, ...]
    windowed_layers: tuple[int, ...]
    rotated_dims: int
    base: float
    in_force: Rotation
    extendable: bool
    head_dim: int | None = None
    first_rotated: int = 0
    softmax_scale: float = 1.0


@dataclass(frozen=True)
class RopeGeometry:
    """What a model's RoPE really is, read from its config.

    Attributes:
        model_type: of the text model.
        config_path: keys that lead from the config's root to the text model's config (empty for most).
        head_dim: dimensions of a head, rotated or not.
        heads, layers: counts of query heads and of decoder layers.
        groups: the rotary tables.
        unrotated_layers: layers without RoPE (NoPE).
        window: sliding-window size in tokens where any layer has one.
        max_position_embeddings: as the config says.
        original_length: L0 of the plain frequencies, before any scaling in force; None when the config doesn't tell.
        trained_length: the length that the weights work at now, with the scaling in force; None when it can't be told.
        evidence: how the lengths were decided, in words.
        nothing_to_extend: why rescaling this model's RoPE would do nothing; None when it would.
        layer_heads: query heads of each layer, where layers differ.
        pairing: the layout, where the config and not the architecture alone decides it.
        notes: what else a plan's reader must know, one line each.
    """

    model_type: str
    config_path: tuple[str, ...]
    head_dim: int
    heads: int
    layers: int
    groups: tuple[RopeGroup, ...]
    unrotated_layers: tuple[int, ...]
    window: int | None
    max_position_embeddings: int
    original_length: int | None
    trained_length: int | None
    evidence: str
    nothing_to_extend: str | None = None
    layer_heads: tuple[int, ...] | None = None
    pairing: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def layout(self) -> str:
        """How rotated dimensions pair up: `half-split` pairs i with i + d/2, `interleaved` pairs 2i with 2i + 1."""
        from ctxforge.rope.architectures import ARCHITECTURES

        return self.pairing or ARCHITECTURES[self.model_type].layout

    @property
    def direction(self) -> int:
        """1 when a pair turns from its first dimension to its second with growing positions, -1 the other way."""
        from ctxforge.rope.architectures import ARCHITECTURES

        return ARCHITECTURES[self.model_type].direction


@dataclass(frozen=True)
class GroupPlan:
    """What one rotary table becomes. `rotation.divisors` are relative to the plain frequencies of `base`.

    `changed` is False for tables that the plan leaves exactly as they are.
    """

    layer_type: str | None
    layers: tuple[int, ...]
    rotated_dims: int
    base: float
    rotation: Rotation
    changed: bool


@dataclass(frozen=True)
class RopePlan:
    """A method applied to a geometry: numbers alone, no config keys.

    Attributes:
        method: its name, with the modifiers after it: yarn+resonance.
        parameters: the method's parameters, resolved.
        original_length: L0 that the method was given.
        target_length: L'.
        scale: s = L'/L0.
        composed: True when the method was multiplied onto a scaling already in force.
        groups: one entry for each rotary table, in the geometry's order.
        warnings: what the user must know, one line each.
    """

    method: str
    parameters: Mapping[str, float | int | bool | str | tuple[float, ...] | None]
    original_length: int
    target_length: int
    scale: float
    composed: bool
    groups: tuple[GroupPlan, ...]
    warnings: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """True when any rotary table changes."""
        return any(group.changed for group in self.groups)
