"""Lambda-shaped attention for one query and for blocks of them.

Shapes as in ctxforge_attention. Two kinds of key take part in one softmax. Local ones are rotated by their positions,
and their queries by theirs. Far sinks go by another rule, for which the query has another rotation: their scores are
computed beforehand and handed to the attention kernel as further dimensions of the query, each of which one sink's key
reads, so that any kernel serves, in linear memory, and gradients flow.
"""

from __future__ import annotations

import torch
from torch import nn

from .ctxforge_attention import softmax_attention
from .ctxforge_bands import BLOCK, banded, serves
from .ctxforge_span import Output, Span, find_indices, take, widen
from .ctxforge_span_masks import Masks

# Keys are rotated once for this many windows of queries, so that copies stay small and angles too.
_WINDOWS_OF_SPAN = 4
# Blocks of queries with a full window each that one call of a kernel takes: on a CPU and elsewhere.
_BLOCKS_AT_ONCE = (4, 64)
# Kernels want dimensions of a head in multiples of this.
_MULTIPLE = 8


def attend_one(span: Span) -> torch.Tensor:
    """Attention's output for one query a row, [B, H, 1, Dv]: each key turned back by its distance."""
    call, geometry = span.call, span.geometry
    key, value, positions, real = call.key, call.value, call.key_positions, span.real
    if key.shape[2] > 2 * (geometry.sinks + geometry.window):
        index = _needed(span)
        key, value = take(key, index), take(value, index)
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
    return find_indices(wanted)


def attend_blocks(span: Span) -> torch.Tensor:
    """Attention's output for many queries, [B, H, T, Dv], a block at a time."""
    call, window = span.call, span.geometry.window
    total, past = call.query.shape[2], call.key.shape[2] - call.query.shape[2]
    start, output = 0, Output(call)
    if call.mask is None and span.real is None and past == 0 and call.softcap is None and call.sinks is None:
        start = min(window, total)
        first = call.query_positions[:, :start]
        if int((first.amax(dim=1) - first.amin(dim=1)).max()) < window:
            output.add(_causal(span, start))
        else:
            start = 0
    sinks = _sinks(span)
    full = max(_full_windows(span, sinks, past), start)
    step = max(_WINDOWS_OF_SPAN * window, span.geometry.block)
    for stop, answer in ((full, _span), (total, _middle)):
        for begin in range(start, stop, step):
            answer(span, sinks, slice(begin, min(begin + step, stop)), past, output)
        start = stop
    return output.whole()


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
    return find_indices(wanted) if bool(wanted.any()) else None


def _full_windows(span: Span, sinks: torch.Tensor | None, past: int) -> int:
    """The first query from which on `_middle` serves: full windows without gaps, all sinks out of them; T for never."""
    call, geometry = span.call, span.geometry
    never = call.query.shape[2]
    if span.real is not None or geometry.window < 2 or not serves(call):
        return never
    if geometry.sinks:
        at = torch.arange(geometry.sinks, device=call.key.device)
        if sinks is None or sinks.shape[1] != geometry.sinks or bool((call.key_positions.gather(1, sinks) != at).any()):
            return never
    ready = geometry.sinks + geometry.window - 1 - int(call.query_positions[:, 0].min())
    first = max(ready, geometry.window - 1 - past, 0)
    near = call.key_positions[:, past + first - geometry.window + 1 :]
    gaps = first < never and bool((near.diff(dim=1) != 1).any())
    return never if first >= never or gaps else first


def _middle(span: Span, sinks: torch.Tensor | None, queries: slice, past: int, output: Output) -> None:
    """Outputs of blocks of `queries` that have a full window each."""
    call, geometry = span.call, span.geometry
    keys = slice(past + queries.start - geometry.window + 1, past + queries.stop)
    key, value = _turned(span, call.key, call.key_positions, keys, queries), call.value[:, :, keys]
    far_key = far_value = None
    if sinks is not None:  # all these queries have them at one distance, so it is the keys that are turned
        distance = geometry.far_query(call.query_positions.amax(dim=1, keepdim=True)) - geometry.far_sink(
            call.key_positions.gather(1, sinks)
        )
        # Turned by nothing once more, for the amplitude that the query would have had.
        far_key = span.turn(span.turn(take(call.key, sinks), -distance), torch.zeros_like(distance))
        far_value = take(call.value, sinks)
    size = max(min(BLOCK, geometry.window // 2), 1)
    start, most = queries.start, _BLOCKS_AT_ONCE[call.query.device.type != "cpu"]
    while start < queries.stop:
        count = max(min((queries.stop - start) // size, most), 1)
        part = slice(start, min(start + count * size, queries.stop))
        query = _turned(span, call.query, call.query_positions, part, queries)
        scores = None if far_key is None else _products(call.query[:, :, part].to(far_key.dtype), far_key)
        near = slice(start - queries.start, part.stop - queries.start + geometry.window - 1)
        room = output.room(part)
        for row in range(len(query)):
            blocks = [_as_rows(states[row], count) for states in (query, *(() if scores is None else (scores,)), room)]
            windows = [_windows(states[row, :, near], count, geometry.window) for states in (key, value)]
            far = None if far_value is None else (blocks[1], far_value[row].expand(count, -1, -1, -1))
            banded(call, blocks[0], *windows, geometry.window, far, blocks[-1])
        start = part.stop


def _as_rows(states: torch.Tensor, count: int) -> torch.Tensor:
    """[count, h, t, n] of [h, count * t, n], without a copy: blocks of queries as rows of their own."""
    return states.unflatten(1, (count, -1)).transpose(0, 1)


def _windows(states: torch.Tensor, count: int, window: int) -> torch.Tensor:
    """The keys [count, h, window - 1 + t, n] of each block, of [h, window - 1 + count * t, n], without a copy."""
    size = (states.shape[1] - window + 1) // count
    return states.unfold(1, window - 1 + size, size).permute(1, 0, 3, 2)


def _turned(span: Span, states: torch.Tensor, positions: torch.Tensor, which: slice, queries: slice) -> torch.Tensor:
    """This range of the states, rotated about the first of `queries`, each row's own."""
    base = span.call.query_positions[:, queries.start : queries.start + 1]
    return span.turn(states[:, :, which], positions[:, which] - base)


def _span(span: Span, sinks: torch.Tensor | None, queries: slice, past: int, output: Output) -> None:
    """Outputs of the blocks of `queries`, whose keys are rotated together."""
    call, geometry = span.call, span.geometry
    keys = slice(_first_key(span, queries.start, queries.stop, past, 0), past + queries.stop)
    query = _turned(span, call.query, call.query_positions, queries, queries)
    key, value = _turned(span, call.key, call.key_positions, keys, queries), call.value[:, :, keys]
    if sinks is not None and int(call.query_positions[:, queries].max()) < geometry.window:
        sinks = None
    far = None
    if sinks is not None:
        query, key, far_key = _with_far_scores(span, sinks, queries, query, key)
        far_value = take(call.value, sinks)
        value, far_value = (widen(part, query.shape[3]) for part in (value, far_value))
        far = (far_key, far_value)
    room = _Room(span, key, value, far)
    masks = Masks(span, sinks)
    for start in range(queries.start, queries.stop, geometry.block):
        block = slice(start, min(start + geometry.block, queries.stop))
        near = slice(_first_key(span, block.start, block.stop, past, keys.start), past + block.stop)
        block_key, block_value = room.of(slice(near.start - keys.start, near.stop - keys.start))
        asked = query[:, :, block.start - queries.start : block.stop - queries.start]
        found = softmax_attention(call, asked, block_key, block_value, masks.of(block, near, past))
        output.add(found[..., : call.value.shape[3]])


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


def _far_rotated(span: Span, sinks: torch.Tensor, queries: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [B, H, t, D] and sinks [B, K, n, D], rotated by the rule for sinks out of the window."""
    call, geometry = span.call, span.geometry
    asked = span.turn(call.query[:, :, queries], geometry.far_query(call.query_positions[:, queries]))
    return asked, span.turn(take(call.key, sinks), geometry.far_sink(call.key_positions.gather(1, sinks)))


def _far_scores(span: Span, sinks: torch.Tensor, queries: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [B, H, t, n] of the sinks out of the window, before scaling, and a unit vector [B, K, n, n] for each."""
    asked, far = _far_rotated(span, sinks, queries)
    scores = _products(asked, far)
    return scores, torch.eye(far.shape[2], dtype=far.dtype, device=far.device).expand(*far.shape[:2], -1, -1)


def _products(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """q.k of all pairs, [B, H, t, n], for queries [B, H, t, D] and keys [B, K, n, D]."""
    rows, heads, count, dims = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, count, dims)
    return (grouped @ key[:, :, None].transpose(3, 4)).reshape(rows, heads, count, key.shape[2])


def _with_far_scores(
    span: Span, sinks: torch.Tensor, queries: slice, query: torch.Tensor, key: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and local keys with further dimensions, and the sinks' keys [B, K, n, D'] that read those alone."""
    dims, dtype = query.shape[3], span.call.value.dtype
    narrow = dtype in (torch.float16, torch.bfloat16)
    if (2 if narrow else 1) * sinks.shape[1] >= dims:
        asked, far = _far_rotated(span, sinks, queries)
    else:
        asked, far = _far_scores(span, sinks, queries)
        if narrow:  # what rounding takes from a score is a dimension of its own
            rounded = asked.to(dtype).to(asked.dtype)
            asked, far = torch.cat((rounded, asked - rounded), dim=3), torch.cat((far, far), dim=3)
    width = -(-(dims + asked.shape[3]) // _MULTIPLE) * _MULTIPLE
    query = widen(torch.cat((query, asked.to(query.dtype)), dim=3), width)
    far = widen(torch.cat((far.new_zeros(*far.shape[:3], dims), far), dim=3), width)
    return query, widen(key, width), far.to(key.dtype)
