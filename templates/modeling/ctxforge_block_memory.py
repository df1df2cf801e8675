"""What stands for each block of tokens when a query chooses blocks: the keys that the tokens after them asked for most.

Positions from G on are cut into blocks of `block` tokens. A key's score, for each query head, is

    r_n = sum over p = n + 1 ... n + l of q_p^T R(p - n) k_n,   l the largest multiple of `block` within the window

(2402.04617, equation 2, without its constant 1 / l). It is linear in the queries, so nothing of the size of queries
times window is made. With l = c block, the queries of a key's sum end at its own place c blocks on: they are those
after it in its block, all of the c - 1 blocks between, of which a sum is kept, and those up to its place in the last.
A block's score is final once its c-th follower is complete, one query before the block may be chosen at the earliest,
and each term is added when its query comes: any cut of a text into calls gives the same sums.

The block is then represented by the sum of its `representatives` keys with the highest scores, head by head.

Shapes: B rows, N blocks, H query heads, K key heads, D dimensions; P pairs of a row and a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .ctxforge_attention import rotate

# Pairs of a row and a block whose tensors stand in memory together.
_PAIRS = 64
# Spare blocks of which room is made together.
_SPARE = 16


@dataclass(frozen=True)
class BlockGeometry:
    """Parameters in tokens, and what follows from them.

    Attributes:
        window: W. sinks: G. block: tokens of a block, W at most.
        topk: blocks that a query chooses. representatives: keys that stand for a block.
    """

    window: int
    sinks: int
    block: int
    topk: int
    representatives: int

    @property
    def lag(self) -> int:
        """c: blocks that must follow a block before it may be chosen."""
        return self.window // self.block

    def retrievable(self, positions: torch.Tensor) -> torch.Tensor:
        """How many blocks lie wholly out of the window of queries at these positions."""
        return ((positions - self.window - self.sinks + 1) // self.block).clamp(min=0)

    def final(self, count: int) -> int:
        """How many blocks have their final scores once `count` tokens have come."""
        return max((count - self.sinks) // self.block - self.lag, 0)


@dataclass(frozen=True)
class Turn:
    """The rotation of a layer: its table [d/2] (None for a layer without), temperature and layout."""

    table: torch.Tensor | None
    temperature: float
    interleaved: bool

    def __call__(self, states: torch.Tensor, positions: torch.Tensor, power: int = 1) -> torch.Tensor:
        """`states` [B, h, N, D] rotated by `positions` [B or 1, N], times temperature^power; float32 at least."""
        if self.table is None:
            return states.to(torch.promote_types(states.dtype, torch.float32))
        amplitude = self.temperature**power
        return rotate(states, positions, self.table, interleaved=self.interleaved, amplitude=amplitude)


class Places:
    """In which slot of its row, along the keys, the token at a position stands.

    Attributes:
        counts: tokens of each row.
        regular: whether slot and position are the same.
    """

    def __init__(self, positions: torch.Tensor, real: torch.Tensor | None, name: str) -> None:
        """Slots of tokens at `positions` [B, S], of which `real` [B or 1, S] count (None: all).

        Raises:
            NotImplementedError: the positions of a row's tokens do not count up from 0.
        """
        rows, total = positions.shape
        at = torch.arange(total, device=positions.device)
        self._table: torch.Tensor | None = None
        self.counts = [total] * rows
        self.regular = real is None and bool((positions == at).all())
        if self.regular:
            return
        known = torch.ones_like(positions, dtype=torch.bool) if real is None else real.expand_as(positions)
        order = known.cumsum(dim=1)
        self.counts = order[:, -1].tolist()
        if bool(((positions != order - 1) & known).any()):
            raise NotImplementedError(
                f"{name} cuts a text into blocks by position: the positions of each row's tokens must count up from 0"
            )
        places = torch.where(known, positions, total)
        self._table = places.new_zeros(rows, total + 1).scatter_(1, places, at.expand_as(places))[:, :total]

    def slots(self, positions: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Slots [B, N] of these positions; those that a row does not have get some other's.

        Args:
            positions: [B, N], or [P, N] with `rows`.
            rows: [P], which rows they are about; None for each its own.
        """
        if self._table is None:
            return positions.clamp(0, self.counts[0] - 1)
        table = self._table if rows is None else self._table[rows]
        return table.gather(1, positions.clamp(0, table.shape[1] - 1).expand(table.shape[0], -1))


class BlockMemory:
    """Scores and representations of blocks, grown with each call.

    Attributes:
        counts: tokens that have come, of each row.
        representations: [B, N, H, D] in float32 at least: sums of unrotated keys, right for blocks with final scores.
    """

    def __init__(self, geometry: BlockGeometry) -> None:
        self.geometry = geometry
        self.counts: list[int] = []
        self.representations: torch.Tensor | None = None
        self._scores: torch.Tensor | None = None  # [B, N, H, block]
        self._sums: torch.Tensor | None = None  # [B, N, H, D], of queries rotated by their places in the block

    @torch.no_grad()
    def update(self, query: torch.Tensor, keys: Any, places: Places, turn: Turn, past: int) -> None:
        """Take the queries of new tokens in.

        Args:
            query: [B, H, T, D], those of the slots from `past` on.
            keys: gives keys by `take_keys`, of all slots.
            places: of all tokens, the new ones included.
            turn: the layer's rotation.
            past: slots before.
        """
        geometry, after = self.geometry, places.counts
        before = self.counts or [0] * len(after)
        size, begin = geometry.block, geometry.sinks
        self._make_room(query, max(after))
        touched, completed = [], []
        for row, (old, new) in enumerate(zip(before, after, strict=True)):
            first = max(old - begin, 0) // size
            for block in range(first, max(-(-(new - begin) // size), first)):
                start = begin + block * size
                touched.append((row, block, max(old, start), min(new, start + size)))
            completed += [(row, block) for block in range(geometry.final(old), geometry.final(new))]
        for start in range(0, len(touched), _PAIRS):
            group = [one for one in touched[start : start + _PAIRS] if one[3] > one[2]]
            if group:
                self._add(query, keys, places, turn, past, torch.tensor(group, device=query.device))
        for start in range(0, len(completed), _PAIRS):
            pairs = torch.tensor(completed[start : start + _PAIRS], device=query.device)
            self._represent(keys, places, turn, pairs[:, 0], pairs[:, 1])
        self.counts = list(after)

    def select_rows(self, index: torch.Tensor) -> None:
        """These rows alone, in this order."""
        if self._scores is None:
            return
        for name in ("representations", "_scores", "_sums"):
            held = getattr(self, name)
            setattr(self, name, held.index_select(0, index.to(held.device)))
        self.counts = [self.counts[row] for row in index.tolist()]

    def _make_room(self, query: torch.Tensor, count: int) -> None:
        rows, heads, _, dims = query.shape
        blocks = max(-(-(count - self.geometry.sinks) // self.geometry.block), 0)
        dtype = torch.promote_types(query.dtype, torch.float32)
        for name, width in (("representations", dims), ("_scores", self.geometry.block), ("_sums", dims)):
            held = getattr(self, name)
            if held is None:
                held = torch.zeros(rows, 0, heads, width, dtype=dtype, device=query.device)
            missing = blocks - held.shape[1]
            if missing > 0:
                held = torch.cat((held, held.new_zeros(rows, missing + _SPARE, heads, width)), dim=1)
            setattr(self, name, held)

    def _add(
        self, query: torch.Tensor, keys: Any, places: Places, turn: Turn, past: int, touched: torch.Tensor
    ) -> None:
        """Queries of these pairs, [P, 4]: row, block, and the first and past the last new position."""
        assert self._scores is not None
        assert self._sums is not None
        size, lag = self.geometry.block, self.geometry.lag
        rows, blocks, first, stop = touched.unbind(dim=1)
        width = int((stop - first).max())
        positions = first[:, None] + torch.arange(width, device=query.device)
        slots = (places.slots(positions, rows) - past).clamp(0, query.shape[2] - 1)
        place = positions - (self.geometry.sinks + blocks * size)[:, None]  # in the block
        asked = turn(query[rows[:, None], :, slots].transpose(1, 2), place, power=2)
        asked = asked * (positions < stop[:, None])[:, None, :, None]
        self._sums[rows, blocks] += asked.sum(dim=2)
        own = torch.arange(size, device=query.device)
        later = own < place[..., None]
        self._scores[rows, blocks] += self._summed(asked, self._keys(keys, places, turn, rows, blocks, 0), later)
        old = blocks >= lag
        if bool(old.any()):
            rows, blocks = rows[old], blocks[old] - lag
            held = self._keys(keys, places, turn, rows, blocks, -lag * size)
            self._scores[rows, blocks] += self._summed(asked[old], held, ~later[old] & (place[old] >= 0)[..., None])

    def _summed(self, asked: torch.Tensor, keys: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """[P, H, block]: for each key the sum of its products with those queries [P, H, t, D] that count."""
        pairs, heads, width, dims = asked.shape
        products = asked.reshape(pairs, keys.shape[1], -1, dims) @ keys.transpose(2, 3)
        return (products.reshape(pairs, heads, width, -1) * counts[:, None]).sum(dim=2)

    def _keys(
        self, keys: Any, places: Places, turn: Turn, rows: torch.Tensor, blocks: torch.Tensor, shift: int
    ) -> torch.Tensor:
        """Keys [P, K, block, D] rotated by their places in the block + `shift`."""
        own = torch.arange(self.geometry.block, device=blocks.device)[None]
        return turn(self._raw(keys, places, rows, blocks), own + shift, power=0)

    def _raw(self, keys: Any, places: Places, rows: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        own = torch.arange(self.geometry.block, device=blocks.device)
        positions = (self.geometry.sinks + blocks * self.geometry.block)[:, None] + own
        found: torch.Tensor = keys.take_keys(rows, places.slots(positions, rows))
        return found

    def _represent(self, keys: Any, places: Places, turn: Turn, rows: torch.Tensor, blocks: torch.Tensor) -> None:
        """Choose the representatives of blocks whose scores are final."""
        assert self._scores is not None
        assert self._sums is not None
        assert self.representations is not None
        size, lag = self.geometry.block, self.geometry.lag
        raw = self._raw(keys, places, rows, blocks)
        scores = self._scores[rows, blocks]
        if lag > 1:
            after = torch.arange(1, lag, device=blocks.device)
            between = self._sums[rows[:, None], blocks[:, None] + after].transpose(1, 2)
            between = turn(between, after[None] * size, power=0).sum(dim=2, keepdim=True)
            held = turn(raw, torch.arange(size, device=blocks.device)[None], power=0)
            scores = scores + self._summed(between, held, torch.ones_like(scores[:, :1], dtype=torch.bool))
        best = scores.topk(self.geometry.representatives, dim=2).indices
        heads = raw.repeat_interleave(scores.shape[1] // raw.shape[1], dim=1).to(scores.dtype)
        chosen = heads.gather(2, best[..., None].expand(-1, -1, -1, raw.shape[3]))
        self.representations[rows, blocks] = chosen.sum(dim=2)
