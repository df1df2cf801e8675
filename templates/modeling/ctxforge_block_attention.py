"""Attention over a window, sinks, and blocks that each query chooses for itself.

Queries go in tiles. A tile's keys are those in its queries' windows, rotated by their positions, and those out of them,
at one distance: sinks, what lies between the last whole block out of the window and the window, and the chosen blocks.
Nearly all of the first kind all queries see, so they need no mask. Chosen blocks are attended to by the queries that
chose them (ctxforge_block_shares); where scores must stand in memory, and for a few queries, by all of a tile under a
mask that says who chose what. All take part in one softmax (ctxforge_score_sets). No tensor of T x S is made.

Shapes as in ctxforge_attention; t queries of a tile, N blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .ctxforge_attention import Call, softmax_attention
from .ctxforge_block_cache import Keys
from .ctxforge_block_memory import BlockGeometry, BlockMemory, Places, Turn
from .ctxforge_block_near import NearKeys
from .ctxforge_block_shares import attend_chosen, merge_parts
from .ctxforge_score_sets import ScoreSet, attend, needs_scores
from .ctxforge_span import find_indices

# Queries of a tile: enough for a kernel to be efficient, few beside the window that they share.
TILE = 256
# Queries that choose together, so that many chose the same block; with fewer than some, all see what one chose.
_GROUP, _MANY = 2048, 32
# Numbers in the outputs over single blocks that stand in memory together.
_OUTPUTS = 2**25
# Keys are rotated once for this many windows of queries, about the first, so that angles stay small.
_WINDOWS_OF_STRETCH = 4
# Scores in memory at once, where they must be.
_SCORES = 2**25


@dataclass(frozen=True)
class Asked:
    """A call, and where its keys are.

    Attributes:
        call: queries of the newest T slots; its mask is not looked at.
        positions: [B, S], of all slots. real: bool [B or 1, S], slots that count; None where all do.
        places, keys, memory, turn: see their classes. near: None without a cache.
    """

    call: Call
    geometry: BlockGeometry
    positions: torch.Tensor
    real: torch.Tensor | None
    places: Places
    keys: Keys
    memory: BlockMemory
    turn: Turn
    near: NearKeys | None = None

    @property
    def past(self) -> int:
        """Slots before the first query's."""
        return self.positions.shape[1] - self.call.query.shape[2]


def attend_blocks(asked: Asked) -> torch.Tensor:
    """Attention's output [B, H, T, Dv]."""
    call, window = asked.call, asked.geometry.window
    rows, heads, total = call.query.shape[:3]
    start, found = 0, []
    group = min(max(_OUTPUTS // (rows * heads * call.value.shape[3] * max(asked.geometry.topk, 1)), TILE), _GROUP)
    if needs_scores(call):
        width = window + asked.geometry.sinks + asked.geometry.block * (asked.geometry.topk + 1)
        group = max(1, min(TILE, _SCORES // (rows * heads * width)))
    if asked.past == 0 and asked.places.regular and call.softcap is None and call.sinks is None:
        start = min(window, total)
        found.append(_causal(asked, start))
    step = max(_WINDOWS_OF_STRETCH * window, group)
    for begin in range(start, total, step):
        stretch = Stretch(asked, slice(begin, min(begin + step, total)))
        for first in range(begin, stretch.queries.stop, group):
            found.extend(stretch.outputs(slice(first, min(first + group, stretch.queries.stop))))
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _causal(asked: Asked, stop: int) -> torch.Tensor:
    """The first queries of a text, which have all keys before them in the window."""
    call = asked.call
    query = asked.turn(call.query[:, :, :stop], asked.positions[:, :stop])
    key, value = asked.keys.range(0, stop)
    return softmax_attention(call, query, asked.turn(key, asked.positions[:, :stop]), value, None, causal=stop > 1)


class Stretch:
    """Queries that lie together, and the keys in their windows, rotated about the first."""

    def __init__(self, asked: Asked, queries: slice) -> None:
        self.asked, self.queries = asked, queries
        call, turn, window = asked.call, asked.turn, asked.geometry.window
        positions = call.query_positions[:, queries]
        dtype, query = call.value.dtype, call.query[:, :, queries]
        self.first = self._first_key(positions)
        stop = asked.past + queries.stop
        key, self.value = asked.keys.range(self.first, stop)
        base, at = positions[:, :1], asked.positions[:, self.first : stop]
        if asked.near is not None and call.query.shape[2] == 1 and not needs_scores(call):
            self.key, base = asked.near.take(key, at, self.first, stop, turn)
        else:
            self.key = turn(key, at - base).to(dtype)
        self.query = turn(query, positions - base).to(dtype)
        self.far_query = turn(query, torch.full_like(positions, window), power=2)

    def outputs(self, queries: slice) -> list[torch.Tensor]:
        """Outputs [B, H, t, Dv] of these queries, in parts."""
        asked, call, tile = self.asked, self.asked.call, TILE
        chosen, further = self._choose(queries), None
        starts = range(queries.start, queries.stop, tile)
        if queries.stop - queries.start >= _MANY and not needs_scores(call):
            query = self._of(self.far_query, queries)
            further = attend_chosen(call, query, chosen, asked.keys, asked.places, asked.geometry)
            chosen = chosen[..., :0]
        found = []
        for start in starts:
            some = slice(start, min(start + tile, queries.stop))
            here = slice(start - queries.start, some.stop - queries.start)
            if further is None:
                found.extend(self._outputs(some, chosen[:, here]))
            else:
                sets = [*self._near(some), *self._far(some, chosen[:, here])]
                found.append(merge_parts(call, sets, (further[0][:, :, here], further[1][:, :, here])))
        return found

    def _outputs(self, queries: slice, chosen: torch.Tensor) -> list[torch.Tensor]:
        """`outputs` with all scores of the chosen blocks of all these queries."""
        call, count = self.asked.call, queries.stop - queries.start
        width = int(chosen.any(dim=1).sum(dim=1).max()) * self.asked.geometry.block if chosen.shape[2] else 0
        if count > 1 and width * count * call.query.shape[0] * call.query.shape[1] > _SCORES:
            middle = count // 2
            first, second = slice(queries.start, queries.start + middle), slice(queries.start + middle, queries.stop)
            return [*self._outputs(first, chosen[:, :middle]), *self._outputs(second, chosen[:, middle:])]
        return [attend(call, [*self._near(queries), *self._far(queries, chosen)])]

    def _choose(self, queries: slice) -> torch.Tensor:
        """Which blocks each query chooses, bool [B, t, N]: the `topk` with the highest scores, all heads together."""
        asked, geometry = self.asked, self.asked.geometry
        ready = geometry.retrievable(asked.call.query_positions[:, queries])
        blocks = int(ready.max()) if geometry.topk else 0
        open_to = torch.arange(blocks, device=ready.device) < ready[..., None]
        if blocks <= geometry.topk:
            return open_to
        assert asked.memory.representations is not None
        query = self._of(self.far_query, queries).detach().transpose(1, 2).flatten(2)
        scores = query @ asked.memory.representations[:, :blocks].flatten(2).transpose(1, 2)
        best = scores.masked_fill(~open_to, float("-inf")).topk(geometry.topk, dim=2).indices
        return torch.zeros_like(open_to).scatter_(2, best, value=True) & open_to

    def _of(self, states: torch.Tensor, queries: slice) -> torch.Tensor:
        return states[:, :, queries.start - self.queries.start : queries.stop - self.queries.start]

    def _first_key(self, positions: torch.Tensor) -> int:
        """The first slot that any of the stretch's queries has in its window."""
        asked, own = self.asked, self.asked.past + self.queries.start
        if asked.places.regular:
            return max(own - asked.geometry.window + 1, 0)
        slots = asked.places.slots((positions - asked.geometry.window + 1).clamp(min=0))
        if asked.real is not None:
            slots = slots.masked_fill(~asked.real[:, own : own + positions.shape[1]], own)
        return min(int(slots.min()), own)

    def _near(self, queries: slice) -> list[ScoreSet]:
        """Scores of the keys in the window, at their true distances."""
        asked, window = self.asked, self.asked.geometry.window
        start, stop = asked.past + queries.start, asked.past + queries.stop
        if not asked.places.regular:
            return [self._near_set(queries, self.first, stop, masked=True)]
        low = max(start - window + 1, 0)
        if start + 1 == stop:
            return [self._near_set(queries, low, stop, masked=False)]
        shared = min(max(stop - window, low), start)  # from here on all queries see all keys before the first's own
        parts = ((low, shared, True), (shared, start, False), (start, stop, True))
        return [self._near_set(queries, one, other, masked=masked) for one, other, masked in parts if other > one]

    def _near_set(self, queries: slice, start: int, stop: int, *, masked: bool) -> ScoreSet:
        asked, keys = self.asked, slice(start - self.first, stop - self.first)
        mask = None
        if masked:
            device = asked.positions.device
            rows = torch.arange(asked.past + queries.start, asked.past + queries.stop, device=device)[:, None]
            columns = torch.arange(start, stop, device=device)[None, :]
            if asked.places.regular:
                mask = ((columns <= rows) & (rows - columns < asked.geometry.window))[None, None]
            else:
                positions = asked.call.query_positions[:, queries, None] - asked.positions[:, None, start:stop]
                seen = (positions < asked.geometry.window) & (columns <= rows)
                if asked.real is not None:
                    seen = seen & asked.real[:, None, start:stop]
                mask = (seen | (columns == rows))[:, None]  # padding sees itself: no softmax without a key
        return ScoreSet(self._of(self.query, queries), self.key[:, :, keys], self.value[:, :, keys], mask)

    def _far(self, queries: slice, chosen: torch.Tensor) -> list[ScoreSet]:
        """Scores of the keys out of the window, all a window away: sinks, remainder, and chosen blocks."""
        asked, geometry = self.asked, self.asked.geometry
        positions = asked.call.query_positions[:, queries]
        limit = positions - geometry.window  # the newest position out of the window
        newest = int(limit.max())
        if newest < 0:
            return []
        device, size = positions.device, geometry.block
        at = torch.arange(min(geometry.sinks, newest + 1), device=device).expand(positions.shape[0], -1)
        parts, masks = [at], [at[:, None] <= limit[..., None]]
        ends = geometry.sinks + geometry.retrievable(positions) * size  # of the last whole block out of the window
        begin, width = ends.amin(dim=1, keepdim=True), int((limit - ends.amin(dim=1, keepdim=True)).max()) + 1
        if width > 0:
            at = begin + torch.arange(width, device=device)
            parts.append(at)
            masks.append((at[:, None] >= ends[..., None]) & (at[:, None] <= limit[..., None]))
        if bool(chosen.any()):
            index = find_indices(chosen.any(dim=1))
            at = geometry.sinks + index[..., None] * size + torch.arange(size, device=device)
            parts.append(at.flatten(1))
            shown = chosen.gather(2, index[:, None].expand(-1, chosen.shape[1], -1))
            masks.append(shown.repeat_interleave(size, dim=2))
        key, value = asked.keys.take(asked.places.slots(torch.cat(parts, dim=1)))
        mask = torch.cat(masks, dim=2)[:, None]
        query = self._of(self.far_query, queries).to(value.dtype)
        return [ScoreSet(query, key.to(value.dtype), value, None if bool(mask.all()) else mask)]


def attend_masked(call: Call, turn: Turn, window: int) -> torch.Tensor:
    """Attention over all that a mask shows, keys from `window` on counting as that far away, [B, H, T, Dv]."""
    total, keys = call.query.shape[2], call.key.shape[2]
    tile = TILE
    if needs_scores(call):
        tile = max(1, min(tile, _SCORES // (call.query.shape[0] * call.query.shape[1] * keys)))
    if call.mask is not None:
        call = replace(call, mask=call.mask[..., :keys])
    found = []
    for start in range(0, total, tile):
        queries = slice(start, min(start + tile, total))
        seen = call.visible(queries, slice(None))
        if seen.shape[2] != queries.stop - queries.start:  # padding, for queries of any number
            seen = seen & replace(call, mask=None).visible(queries, slice(None))
        shown = seen.flatten(0, 2).any(dim=0).nonzero()[:, 0]
        span = slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(0, 1)
        found.append(_masked_tile(call, turn, window, queries, span, seen[..., span]))
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _masked_tile(call: Call, turn: Turn, window: int, queries: slice, keys: slice, seen: torch.Tensor) -> torch.Tensor:
    dtype, positions = call.value.dtype, call.query_positions[:, queries]
    query, key, value = call.query[:, :, queries], call.key[:, :, keys], call.value[:, :, keys]
    apart = positions[:, :, None] - call.key_positions[:, None, keys]
    base = positions[:, :1]
    near = (turn(query, positions - base).to(dtype), turn(key, call.key_positions[:, keys] - base).to(dtype))
    sets = [ScoreSet(*near, value, seen & (apart < window)[:, None])]
    far = seen & (apart >= window)[:, None]
    if bool(far.any()):
        turned = turn(query, torch.full_like(positions, window), power=2).to(dtype)
        sets.append(ScoreSet(turned, key.to(dtype), value, far))
    return attend(call, sets)
