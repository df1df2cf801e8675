"""The arithmetic of lambda-shaped attention: who is seen, how far away, and attention block by block.

Shapes as in ctxforge_attention. Two kinds of key take part in one softmax. Local ones are rotated by their positions,
and their queries by theirs. Far sinks go by another rule, for which the query has another rotation: their scores are
computed beforehand and handed to the attention kernel as further dimensions of the query, each of which one sink's key
reads, so that any kernel serves, in linear memory, and gradients flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import causal_mask_function, sdpa_mask

from .ctxforge_attention import Call, rotate, softmax_attention

# Queries of a block: enough for a kernel to be efficient, few beside the window that they share.
_LARGEST_BLOCK = 256
_SMALLEST_BLOCK = 64
# Keys are rotated once for this many windows of queries, so that copies stay small and angles too.
_WINDOWS_OF_SPAN = 4
# Kernels want dimensions of a head in multiples of this.
_MULTIPLE = 8


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


def attend_one(span: Span) -> torch.Tensor:
    """Attention's output for one query a row, [B, H, 1, Dv]: each key turned back by its distance."""
    call, geometry = span.call, span.geometry
    key, value, positions, real = call.key, call.value, call.key_positions, span.real
    if key.shape[2] > 2 * (geometry.sinks + geometry.window):
        index = _needed(span)
        key, value = _take(key, index), _take(value, index)
        positions, real = (
            positions.gather(1, index),
            None if real is None else real.expand_as(positions).gather(1, index),
        )
    apart = call.query_positions - positions
    sink = positions < geometry.sinks
    visible = (apart < geometry.window) | sink
    if real is not None:
        visible = visible & real
        visible[:, -1] = True
    far = geometry.far_query(call.query_positions) - geometry.far_sink(positions)
    distance = torch.where(apart < geometry.window, apart, far)
    query = span.turn(call.query, torch.zeros_like(call.query_positions))
    key = span.turn(key, -distance)
    mask = None if bool(visible.all()) else visible[:, None, None, :]
    return softmax_attention(call, query, key, value, mask)


def _needed(span: Span) -> torch.Tensor:
    """Indices [B, n] of the keys that the newest query may see."""
    positions, newest = span.call.key_positions, span.call.query_positions[:, -1:]
    wanted = (positions < span.geometry.sinks) | (newest - positions < span.geometry.window)
    if span.real is not None:
        wanted = wanted & span.real
    wanted[:, -1] = True
    return _indices(wanted)


def attend_blocks(span: Span) -> torch.Tensor:
    """Attention's output for many queries, [B, H, T, Dv], a block at a time."""
    call, window = span.call, span.geometry.window
    total, past = call.query.shape[2], call.key.shape[2] - call.query.shape[2]
    start, found = 0, []
    if call.mask is None and span.real is None and past == 0 and call.softcap is None and call.sinks is None:
        start = min(window, total)
        first = call.query_positions[:, :start]
        if int((first.amax(dim=1) - first.amin(dim=1)).max()) < window:
            found.append(_causal(span, start))
        else:
            start = 0
    sinks = _sinks(span)
    step = max(_WINDOWS_OF_SPAN * window, span.geometry.block)
    for begin in range(start, total, step):
        found.extend(_span(span, sinks, slice(begin, min(begin + step, total)), past))
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _causal(span: Span, stop: int) -> torch.Tensor:
    """The first queries of a text, which have all keys before them in the window."""
    call = span.call
    query, key = (
        span.turn(states[:, :, :stop], positions[:, :stop])
        for states, positions in ((call.query, call.query_positions), (call.key, call.key_positions))
    )
    return softmax_attention(call, query, key, call.value[:, :, :stop], None, causal=stop > 1)


def _sinks(span: Span) -> torch.Tensor | None:
    """Indices [B, n] of the sinks, each row's own; a row with fewer repeats keys that are none."""
    positions = span.call.key_positions
    wanted = positions < span.geometry.sinks
    if span.real is not None:
        wanted = wanted & span.real
    return _indices(wanted) if bool(wanted.any()) else None


def _span(span: Span, sinks: torch.Tensor | None, queries: slice, past: int) -> list[torch.Tensor]:
    """Outputs of the blocks of `queries`, whose keys are rotated together."""
    call, geometry = span.call, span.geometry
    keys = slice(_first_key(span, queries.start, queries.stop, past, 0), past + queries.stop)
    base = call.query_positions[:, queries.start : queries.start + 1]
    query = span.turn(call.query[:, :, queries], call.query_positions[:, queries] - base)
    key = span.turn(call.key[:, :, keys], call.key_positions[:, keys] - base)
    value = call.value[:, :, keys]
    if sinks is not None and int(call.query_positions[:, queries].max()) < geometry.window:
        sinks = None
    far = None
    if sinks is not None:
        query, key, far_key = _with_far_scores(span, sinks, queries, query, key)
        far_value = _take(call.value, sinks)
        value, far_value = (_widen(part, query.shape[3]) for part in (value, far_value))
        far = (far_key, far_value)
    room = _Room(span, key, value, far)
    masks, found = _Masks(span, sinks), []
    for start in range(queries.start, queries.stop, geometry.block):
        block = slice(start, min(start + geometry.block, queries.stop))
        near = slice(_first_key(span, block.start, block.stop, past, keys.start), past + block.stop)
        block_key, block_value = room.of(slice(near.start - keys.start, near.stop - keys.start))
        asked = query[:, :, block.start - queries.start : block.stop - queries.start]
        output = softmax_attention(call, asked, block_key, block_value, masks.of(block, near, past))
        found.append(output[..., : call.value.shape[3]])
    return found


class _Room:
    """Keys and values of a span for all query heads, from which each block takes the sinks and its own range.

    The ranges of one block after the other never begin earlier, so that the sinks may be written over what lies before
    a range, and nothing is copied. Where a gradient may need it later, each block gets a copy.
    """

    def __init__(
        self, span: Span, key: torch.Tensor, value: torch.Tensor, far: tuple[torch.Tensor, torch.Tensor] | None
    ) -> None:
        call = span.call
        groups, dtype = call.query.shape[1] // key.shape[1], call.value.dtype
        heads = [part.to(dtype).repeat_interleave(groups, dim=1) for part in far] if far is not None else []
        own = [part.to(dtype) for part in (key, value)]
        self.copies = torch.is_grad_enabled() and any(states.requires_grad for states in (call.query, *own))
        self.sinks = heads
        self.before = heads[0].shape[2] if heads else 0
        if heads and not self.copies:
            own = [nn.functional.pad(part, (0, 0, self.before, 0)) for part in own]
        self.states = [part.repeat_interleave(groups, dim=1) if groups > 1 else part for part in own]

    def of(self, keys: slice) -> list[torch.Tensor]:
        """Keys and values [B, H, n + s, D'], the n sinks first."""
        if not self.sinks:
            return [part[:, :, keys] for part in self.states]
        if self.copies:
            return [
                torch.cat((sink, part[:, :, keys]), dim=2) for sink, part in zip(self.sinks, self.states, strict=True)
            ]
        for sink, part in zip(self.sinks, self.states, strict=True):
            part[:, :, keys.start : keys.start + self.before] = sink
        return [part[:, :, keys.start : keys.stop + self.before] for part in self.states]


def _first_key(span: Span, start: int, stop: int, past: int, lowest: int) -> int:
    """Index of the first key that any of these queries has in its window."""
    call, window = span.call, span.geometry.window
    if span.real is None and call.mask is None:
        return max(lowest, past + start - window + 1)
    asked, candidates = call.query_positions[:, start:stop], slice(lowest, past + stop)
    if call.mask is not None and call.mask.shape[2] > 1:
        counts = call.mask[:, 0, start:stop, candidates].any(dim=1)
    else:
        assert span.real is not None
        counts = span.real[:, candidates]
        own = span.real[:, past + start : past + stop]
        asked = asked.masked_fill(~own, torch.iinfo(asked.dtype).max)
    oldest = asked.amin(dim=1, keepdim=True)
    reach = (counts & (call.key_positions[:, candidates] > oldest - window)).any(dim=0).nonzero()
    first = lowest + int(reach[0]) if len(reach) else past + stop
    return min(first, past + start)


def _with_far_scores(
    span: Span, sinks: torch.Tensor, queries: slice, query: torch.Tensor, key: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and local keys with further dimensions, and the sinks' keys [B, K, n, D'] that read those alone."""
    call, geometry = span.call, span.geometry
    rows, heads, count, dims = query.shape
    groups = heads // key.shape[1]
    asked = span.turn(call.query[:, :, queries], geometry.far_query(call.query_positions[:, queries]))
    far = span.turn(_take(call.key, sinks), geometry.far_sink(call.key_positions.gather(1, sinks)))
    narrow = call.value.dtype in (torch.float16, torch.bfloat16)
    further = (2 if narrow else 1) * far.shape[2]
    if further < dims:
        grouped = asked.reshape(rows, key.shape[1], groups * count, dims)
        scores = (grouped @ far.transpose(2, 3)).reshape(rows, heads, count, far.shape[2])
        unit = torch.eye(far.shape[2], dtype=far.dtype, device=far.device).expand(*far.shape[:2], -1, -1)
        if narrow:  # what rounding takes from a score is a dimension of its own
            rounded = scores.to(call.value.dtype).to(scores.dtype)
            asked, far = torch.cat((rounded, scores - rounded), dim=3), torch.cat((unit, unit), dim=3)
        else:
            asked, far = scores, unit
    width = -(-(dims + asked.shape[3]) // _MULTIPLE) * _MULTIPLE
    query = _widen(torch.cat((query, asked.to(query.dtype)), dim=3), width)
    far = _widen(torch.cat((far.new_zeros(*far.shape[:3], dims), far), dim=3), width)
    return query, _widen(key, width), far.to(key.dtype)


class _Masks:
    """The masks of blocks, the last one kept: in the middle of a text each block's is the same."""

    def __init__(self, span: Span, sinks: torch.Tensor | None) -> None:
        self.span, self.sinks = span, sinks
        call = span.call
        self.positions, self.keys = call.query_positions, call.key_positions
        if span.real is None and call.mask is None and self._uniform():
            self.positions, self.keys = self.positions[:1], self.keys[:1]
            self.sinks = None if sinks is None else sinks[:1]
        self._last: tuple[list[torch.Tensor], torch.Tensor] | None = None

    def of(self, queries: slice, keys: slice, past: int) -> torch.Tensor:
        """[B or 1, 1, t, n + s]: which sinks out of their window and which local keys these queries see.

        True where visible; or 0 there and very negative elsewhere, where a kernel takes that.
        """
        call, asked, near = self.span.call, self.positions[:, queries], self.keys[:, keys]
        ordinary = self.span.real is None and call.mask is None
        signs = [asked - asked[:, :1], near - asked[:, :1], asked[:, :1] >= self._settled()]
        if ordinary and self._last is not None and bool(signs[2].all()) and _same(signs, self._last[0]):
            return self._last[1]
        made = self._make(queries, keys, past)
        if call.softcap is None and call.sinks is None:  # a kernel would make this of it, for each block anew
            hidden = torch.finfo(call.value.dtype).min
            made = torch.zeros_like(made, dtype=call.value.dtype).masked_fill_(~made, hidden)
        self._last = (signs, made)
        return made

    def _make(self, queries: slice, keys: slice, past: int) -> torch.Tensor:
        span, device = self.span, self.keys.device
        asked, near, window = self.positions[:, queries], self.keys[:, keys], span.geometry.window
        rows = torch.arange(past + queries.start, past + queries.stop, device=device)[:, None]
        columns = torch.arange(keys.start, keys.stop, device=device)[None, :]
        seen = (asked[:, :, None] - near[:, None, :] < window) & (columns <= rows)
        real, explicit = span.real, span.call.mask
        if explicit is not None and explicit.shape[2] > 1:
            seen = seen & explicit[:, 0, queries, keys]
        elif real is not None:
            seen = seen & real[:, None, keys]
        seen = seen | (columns == rows)  # padding sees itself: a row that sees nothing has no softmax
        if self.sinks is None:
            return seen[:, None]
        positions = self.keys.gather(1, self.sinks)
        far = (asked[:, :, None] - positions[:, None, :] >= window) & (positions < span.geometry.sinks)[:, None]
        far = far & (self.sinks[:, None, :] <= rows)
        if explicit is not None and explicit.shape[2] > 1:
            index = self.sinks[:, None, :].expand(-1, asked.shape[1], -1)
            far = far & explicit[:, 0, queries].expand(index.shape[0], -1, -1).gather(2, index)
        elif real is not None:
            far = far & real.expand(self.sinks.shape[0], -1).gather(1, self.sinks)[:, None]
        return torch.cat((far, seen), dim=2)[:, None]

    def _settled(self) -> int:
        """From this position on every sink is out of the window."""
        return self.span.geometry.window + self.span.geometry.sinks

    def _uniform(self) -> bool:
        return all(bool((part == part[:1]).all()) for part in (self.positions, self.keys))


def _same(found: list[torch.Tensor], before: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, before, strict=True))


def _indices(wanted: torch.Tensor) -> torch.Tensor:
    """Indices [B, n] of the true entries of [B, S], in order; a row with fewer begins with others."""
    if wanted.shape[0] == 1 or bool((wanted == wanted[:1]).all()):
        return wanted[0].nonzero()[:, 0].expand(wanted.shape[0], -1)
    width = int(wanted.sum(dim=1).max())
    return wanted.to(torch.int8).argsort(dim=1, stable=True)[:, -width:]


def _take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[B, h, n, D] of [B, h, S, D], each row by its own index [B, n]."""
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def _widen(states: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - states.shape[-1]
    return nn.functional.pad(states, (0, missing)) if missing > 0 else states
