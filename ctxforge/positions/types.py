"""The types that the stages of learned and ALiBi positions hand to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ctxforge.rope.types import GroupPlan

Scheme = Literal["learned", "alibi"]


@dataclass(frozen=True)
class PositionGeometry:
    """A model's positions, read from its config.

    Attributes:
        model_type: of the model.
        scheme: `learned`: a table of one embedding a position; `alibi`: a bias of slope * distance a head.
        layers, heads: counts.
        max_position_embeddings: as the config says, whatever it calls it.
        original_length: L0 before any scaling in force.
        trained_length: the length that the weights work at now.
        evidence: how the lengths were decided, in words.
        offset: rows of a learned table before that of position 0.
        windowed_layers: indices of the layers that attend to a window only.
        window: its size in tokens where there are such layers.
    """

    model_type: str
    scheme: Scheme
    layers: int
    heads: int
    max_position_embeddings: int
    original_length: int | None
    trained_length: int | None
    evidence: str
    offset: int = 0
    windowed_layers: tuple[int, ...] = ()
    window: int | None = None


@dataclass(frozen=True)
class PositionPlan:
    """A method applied to such a model: numbers alone.

    Attributes:
        method: its name.
        parameters: the method's parameters, resolved.
        original_length: L0 that the method was given.
        target_length: L'.
        scale: s = L'/L0.
        warnings: what the user must know, one line each.
    """

    method: str
    parameters: Mapping[str, float | int | bool | str | None]
    original_length: int
    target_length: int
    scale: float
    warnings: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """True when the method changes anything."""
        return self.method != "none"

    @property
    def groups(self) -> tuple[GroupPlan, ...]:
        """No rotary table: empty, so that what all plans have in common can be shown alike."""
        return ()

    @property
    def composed(self) -> bool:
        """Never multiplied onto a rotary scaling."""
        return False
