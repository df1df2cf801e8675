"""A cache layer for attention that retrieves blocks: all keys and values, and what stands for each block.

Keys stay unrotated, each with its position: -1 for one that does not count, such as padding. Beams, repeats and
selections of rows move keys, positions and the blocks' state together. Tokens cannot be taken back: the scores of keys
are sums over the queries that came, and the queries are gone.

With `offload`, keys and values older than the window move to the processor's memory once a call is answered, and come
back for the blocks that are chosen.

Shapes as in ctxforge_block_memory; S slots a row, of which the first `moved` are in the processor's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from .ctxforge_block_memory import BlockGeometry, BlockMemory
from .ctxforge_block_near import NearKeys
from .ctxforge_key_store import KeyStore

NOTHING = -1


@dataclass(frozen=True)
class Keys:
    """Keys and values of all slots.

    Attributes:
        key, value: [B, K, S - moved, D], of the newest slots.
        far_key, far_value: [B, K, moved, D] in the processor's memory; None where nothing was moved.
    """

    key: torch.Tensor
    value: torch.Tensor
    far_key: torch.Tensor | None = None
    far_value: torch.Tensor | None = None

    @property
    def moved(self) -> int:
        """Slots in the processor's memory."""
        return 0 if self.far_key is None else self.far_key.shape[2]

    def range(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, K, stop - start, D] of these slots."""
        moved = self.moved
        if start >= moved:
            return self.key[:, :, start - moved : stop - moved], self.value[:, :, start - moved : stop - moved]
        index = torch.arange(start, stop, device=self.key.device)
        return self.take(index.expand(self.key.shape[0], -1))

    def take(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, K, n, D] of slots [B, n]."""
        rows = torch.arange(slots.shape[0], device=slots.device)
        return self.take_pairs(rows, slots)

    def take_keys(self, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Keys [P, K, n, D] of slots [P, n] in rows [P]."""
        return self._take(rows, slots, self.key, self.far_key)

    def take_pairs(self, rows: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [P, K, n, D] of slots [P, n] in rows [P]."""
        return self.take_keys(rows, slots), self._take(rows, slots, self.value, self.far_value)

    def _take(
        self, rows: torch.Tensor, slots: torch.Tensor, near: torch.Tensor, far: torch.Tensor | None
    ) -> torch.Tensor:
        if far is None:
            return _pick(near, rows, slots)
        old = slots < far.shape[2]
        if not bool(old.any()):
            return _pick(near, rows, slots - far.shape[2])
        index = slots.clamp(max=far.shape[2] - 1).to(far.device)
        fetched = _pick(far, rows.to(far.device), index).to(near.device)
        if bool(old.all()):
            return fetched
        return torch.where(old[:, None, :, None], fetched, _pick(near, rows, (slots - far.shape[2]).clamp(min=0)))


def _pick(states: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[P, K, n, D] of [B, K, S, D]."""
    if states.shape[0] == 1 and slots.shape[0] == 1:
        return states.index_select(2, slots[0])
    return states[rows[:, None], :, slots].transpose(1, 2)


class BlockLayer(KeyStore):
    """Keys, values and positions of all tokens, and the memory of blocks.

    Attributes:
        memory, near: see `BlockMemory`, `NearKeys`.
        positions: [B, S]; -1 for a key that does not count.
    """

    is_croppable = False

    def __init__(self, geometry: BlockGeometry, *, offload: bool) -> None:
        super().__init__()
        self.geometry, self.offloads = geometry, offload
        self.memory, self.near = BlockMemory(geometry), NearKeys()
        self.positions: torch.Tensor | None = None
        self._coming: torch.Tensor | None = None
        self._far = (_Room(), _Room())

    def expect(self, positions: torch.Tensor) -> torch.Tensor:
        """Take the positions [B, T] of the keys that come next; returns those of all keys then, [B, S]."""
        self._coming = positions if self.positions is None else torch.cat((self.positions, positions), dim=1)
        return self._coming

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append; returns keys and values [B, K, S - moved, D]."""
        if self._coming is None:
            raise RuntimeError("this cache is filled by its own model only")
        self.positions, self._coming = self._coming, None
        if torch.is_grad_enabled() and key_states.requires_grad:
            return DynamicLayer.update(self, key_states, value_states)
        return super().update(key_states, value_states)

    def all_keys(self) -> Keys:
        """Keys and values of all slots."""
        return Keys(self.keys, self.values, *(room.states for room in self._far))

    def settle(self, real: torch.Tensor | None) -> None:
        """Once a call is answered: mark the keys that do not count, and move old ones away.

        Args:
            real: bool [B or 1, S]; None where all count.
        """
        assert self.positions is not None
        if real is not None:
            self.positions = self.positions.masked_fill(~real, NOTHING)
        # What is scored next lies a window and a block back at most; a block more, so that not every token moves some.
        old = self.keys.shape[2] - self.geometry.window - 2 * self.geometry.block
        if self.offloads and old >= self.geometry.block and not self.keys.requires_grad:
            for room, states in zip(self._far, (self.keys, self.values), strict=True):
                room.add(states[:, :, :old])
            self.keys, self.values = self.keys[:, :, old:].clone(), self.values[:, :, old:].clone()

    def get_seq_length(self, *_args: Any) -> int:
        """Tokens seen, padding included."""
        return 0 if self.positions is None else self.positions.shape[1]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Keys that the mask is about, and the index of the first."""
        length = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse.

        Raises:
            NotImplementedError: tokens would have to be taken back.
        """
        seen = self.get_seq_length()
        if tokens_to_remove == 0 or seen == 0 or tokens_to_remove >= seen:
            return
        raise NotImplementedError(
            "a cache with scores of blocks cannot take tokens back, as assisted decoding does: generate without an"
            " assistant"
        )

    def reset(self) -> None:
        """Hold nothing."""
        self.forget()
        self.positions = self._coming = None
        self._far = (_Room(), _Room())
        self.memory, self.near = BlockMemory(self.geometry), NearKeys()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows in another order."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """These rows alone."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row this many times."""
        if self.positions is not None:
            self._select(torch.arange(self.positions.shape[0]).repeat_interleave(repeats))

    def _select(self, index: torch.Tensor) -> None:
        if self.positions is None:
            return
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        self.keys, self.values = _rows(self.keys, index), _rows(self.values, index)
        self.positions = _rows(self.positions, index)
        for room in self._far:
            room.select(index)
        self.memory.select_rows(index)
        self.near.select_rows(index)


def _rows(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return states.index_select(0, index.to(states.device))


class _Room:
    """States in the processor's memory, which grow into spare room instead of being copied for each block."""

    def __init__(self) -> None:
        self.states: torch.Tensor | None = None
        self._room: torch.Tensor | None = None

    def add(self, states: torch.Tensor) -> None:
        """Append [B, K, n, D]."""
        held = 0 if self.states is None else self.states.shape[2]
        needed = held + states.shape[2]
        if self._room is None or self._room.shape[2] < needed:
            shape = (*states.shape[:2], needed + needed // 4, states.shape[3])
            room = torch.empty(shape, dtype=states.dtype, pin_memory=torch.cuda.is_available())
            if self.states is not None:
                room[:, :, :held] = self.states
            self._room = room
        self._room[:, :, held:needed] = states
        self.states = self._room[:, :, :needed]

    def select(self, index: torch.Tensor) -> None:
        """These rows alone."""
        if self.states is not None:
            self.states, self._room = _rows(self.states, index), None


def block_layer(cache: Cache, layer: int, geometry: BlockGeometry, name: str, *, offload: bool) -> BlockLayer:
    """The block layer of a dynamic cache, put in the place of an empty one.

    Args:
        cache: as the model was called with.
        layer: index.
        geometry: of the system.
        name: of the system, for messages.
        offload: whether old keys move to the processor's memory.

    Raises:
        NotImplementedError: a cache of another kind.
        RuntimeError: a cache that this model did not fill.
    """
    while len(cache.layers) <= layer:
        cache.layers.append(DynamicLayer())
    found = cache.layers[layer]
    if isinstance(found, BlockLayer):
        return found
    if type(found) is not DynamicLayer:
        raise NotImplementedError(
            f"{name} runs with a dynamic cache only, not with {type(found).__name__}: leave cache_implementation out,"
            " or pass a new DynamicCache"
        )
    if found.get_seq_length():
        raise RuntimeError(
            f"the cache holds keys that another model put there: {name} needs one that it filled itself, or an empty"
            " DynamicCache"
        )
    made = cache.layers[layer] = BlockLayer(geometry, offload=offload)
    return made
