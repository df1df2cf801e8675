"""What lambda-shaped attention is told: geometry, rotation, the mask, and which keys count.

Shapes as in ctxforge_attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import causal_mask_function, sdpa_mask

from .ctxforge_attention import Call, rotate

# Queries of a block: enough for a kernel to be efficient, few beside the window that they share.
_LARGEST_BLOCK = 256
_SMALLEST_BLOCK = 64


@dataclass(frozen=True)
class Geometry:
    """W, G, and what distance a sink out of the window has.

    Attributes:
        window: W: keys with m - n < W are seen at their distance.
        sinks: G: keys at positions below it are seen always.
        sink_distance: "ceiling" for W, "cache" for min(m, G + W - 1) - j.
    """

    window: int
    sinks: int
    sink_distance: str

    def far_query(self, positions: torch.Tensor) -> torch.Tensor:
        """Where a query stands for the sinks out of its window."""
        if self.sink_distance == "ceiling":
            return torch.full_like(positions, self.window)
        return positions.clamp(max=self.sinks + self.window - 1)

    def far_sink(self, positions: torch.Tensor) -> torch.Tensor:
        """Where a sink stands for the queries that have it out of their window."""
        return torch.zeros_like(positions) if self.sink_distance == "ceiling" else positions

    @property
    def block(self) -> int:
        """Queries that are attended together."""
        return min(max(self.window // 8, _SMALLEST_BLOCK), _LARGEST_BLOCK)


@dataclass(frozen=True)
class Span:
    """A call with its geometry and rotation.

    Attributes:
        call: see `Call`; its mask is None, [B or 1, 1, 1, S'] for padding, or [B or 1, 1, T, S].
        geometry: see `Geometry`.
        real: bool [B or 1, S], keys that count; None where all do.
        table: radians per token, [d/2]; None for a layer without rotation.
        temperature: factor on cos and sin.
        interleaved: layout of the pairs.
    """

    call: Call
    geometry: Geometry
    real: torch.Tensor | None
    table: torch.Tensor | None
    temperature: float
    interleaved: bool

    def turn(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`states` [B, h, N, D] rotated by `positions` [B or 1, N]."""
        if self.table is None:
            return states
        return rotate(states, positions, self.table, interleaved=self.interleaved, amplitude=self.temperature)


class Output:
    """Attention's output, put together from parts in order, tokens before heads in memory as the layer wants it.

    Where no gradient is needed, parts are written where they belong, and nothing is copied twice.
    """

    def __init__(self, call: Call) -> None:
        rows, heads, total, _ = call.query.shape
        states = (call.query, call.key, call.value)
        self._parts: list[torch.Tensor] = []
        self._whole, self._filled = None, 0
        if not (torch.is_grad_enabled() and any(part.requires_grad for part in states)):
            self._whole = call.value.new_empty(rows, total, heads, call.value.shape[3]).transpose(1, 2)

    def add(self, part: torch.Tensor) -> None:
        """The next tokens' output, [B, H, t, Dv]."""
        if self._whole is None:
            self._parts.append(part.transpose(1, 2))
        else:
            self.room(slice(self._filled, self._filled + part.shape[2])).copy_(part)

    def room(self, queries: slice) -> torch.Tensor:
        """Where the next tokens' output is to be written; only where no gradient is needed."""
        assert self._whole is not None
        assert queries.start == self._filled
        self._filled = queries.stop
        return self._whole[:, :, queries]

    def whole(self) -> torch.Tensor:
        """[B, H, T, Dv]."""
        return torch.cat(self._parts, dim=1).transpose(1, 2) if self._whole is None else self._whole


@torch.compiler.disable
def padding_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """A mask function: None, or [B, 1, 1, S] for padding, where the rest is plainly causal; else the whole mask."""
    if args or "q_length" not in kwargs or kwargs.get("mask_function") is not causal_mask_function:
        return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    given, length, offset = kwargs.get("attention_mask"), kwargs["kv_length"], kwargs.get("kv_offset", 0)
    if given is None:
        return None
    shown = given[:, offset : offset + length].bool()
    shown = nn.functional.pad(shown, (0, length - shown.shape[1]))
    return None if bool(shown.all()) else shown[:, None, None, :]


def key_reality(call: Call) -> torch.Tensor | None:
    """Bool [B, S]: keys that count at all, apart from what a mask for each query says; None where all do."""
    known = call.key_positions >= 0
    if call.mask is not None and call.mask.shape[2] == 1:
        newest = call.mask[:, 0, -1]
        missing = known.shape[1] - newest.shape[1]
        known = known & (nn.functional.pad(newest, (missing, 0), value=True) if missing else newest)
    return None if bool(known.all()) else known


def find_indices(wanted: torch.Tensor) -> torch.Tensor:
    """Indices [B, n] of the true entries of [B, S], in order; a row with fewer begins with others."""
    if wanted.shape[0] == 1 or bool((wanted == wanted[:1]).all()):
        return wanted[0].nonzero()[:, 0].expand(wanted.shape[0], -1)
    width = int(wanted.sum(dim=1).max())
    return wanted.to(torch.int8).argsort(dim=1, stable=True)[:, -width:]


def take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[B, h, n, D] of [B, h, S, D], each row by its own index [B, n]."""
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def widen(states: torch.Tensor, width: int) -> torch.Tensor:
    """[..., D] filled up with zeros to [..., width]."""
    missing = width - states.shape[-1]
    return nn.functional.pad(states, (0, missing)) if missing > 0 else states
