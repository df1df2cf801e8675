"""A cache layer that keeps the first G tokens of each row and the last W - 1, and forgets the rest.

Keys stay unrotated, each with its position: -1 for one that does not count, such as padding. What a row keeps follows
from its own positions, so rows padded on the left keep their own first tokens, and beams, repeats and selections of
rows move keys and positions together. A layer answers `get_seq_length` with the tokens that it has seen, so that
positions and masks go on as if nothing had been dropped; the mask is about this call's tokens alone.

A call returns what was kept followed by all of its own keys, however many they are, and drops when the attention is
done (`settle`): a long chunk computes what one pass does.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

NOTHING = -1


class WindowLayer(DynamicLayer):
    """Keys, values and positions of `sinks` first and `window` - 1 last tokens of each row.

    Attributes:
        positions: [B, kept], of the keys; -1 for none.
        seen: tokens that went through.
    """

    is_croppable = False

    def __init__(self, sinks: int, window: int) -> None:
        super().__init__()
        self.sinks, self.window = sinks, window
        self.positions: torch.Tensor | None = None
        self.seen = 0
        self._coming: torch.Tensor | None = None

    def expect(self, positions: torch.Tensor) -> torch.Tensor:
        """Take the positions [B, T] of the keys that come next; returns those of all keys then, [B, kept + T]."""
        self._coming = positions if self.positions is None else torch.cat((self.positions, positions), dim=1)
        return self._coming

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append; returns all keys and values, [B, K, kept + T, D]."""
        if self._coming is None:
            raise RuntimeError("this cache is filled by its own model only")
        self.positions, self._coming = self._coming, None
        self.seen += key_states.shape[-2]
        return super().update(key_states, value_states)

    def settle(self, real: torch.Tensor | None) -> None:
        """Once a call is answered: mark the keys that do not count, and drop those that no later query sees.

        Args:
            real: bool [B or 1, kept + T], false for keys that do not count; None where all do.
        """
        assert self.positions is not None
        if real is not None:
            self.positions = self.positions.masked_fill(~real, NOTHING)
        if self.positions.shape[1] <= self.sinks + self.window - 1:
            return
        newest = self.positions.amax(dim=1, keepdim=True)
        near = self.positions > newest - (self.window - 1)
        self._select(((self.positions < self.sinks) | near) & (self.positions >= 0))

    def _select(self, keep: torch.Tensor) -> None:
        """Keep these keys, bool [B, S], in their order, the rows aligned at the right."""
        assert self.positions is not None
        if keep.shape[0] == 1 or bool((keep == keep[:1]).all()):
            index = keep[0].nonzero()[:, 0]
            self.keys, self.values = self.keys.index_select(2, index), self.values.index_select(2, index)
            self.positions = self.positions.index_select(1, index)
            return
        width = int(keep.sum(dim=1).max())
        index = keep.to(torch.int8).argsort(dim=1, stable=True)[:, -width:]
        self.positions = self.positions.masked_fill(~keep, NOTHING).gather(1, index)
        rows = torch.arange(keep.shape[0], device=keep.device)[:, None]
        self.keys = self.keys[rows, :, index].transpose(1, 2).contiguous()
        self.values = self.values[rows, :, index].transpose(1, 2).contiguous()

    def get_seq_length(self, *_args: Any) -> int:
        """Tokens seen."""
        return self.seen

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Keys that the mask is about, and the index of the first: this call's own."""
        length = query_length if isinstance(query_length, int) else query_length.shape[0]
        return length, self.seen

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens, while nothing has been dropped.

        Args:
            tokens_to_remove: negative: how many; positive, in transformers before 5.18: how many to keep.

        Raises:
            NotImplementedError: tokens were dropped that would have to come back.
        """
        remove = -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)
        if remove == 0 or self.positions is None:
            return
        kept = self.positions.shape[1]
        if self.seen != kept:
            raise NotImplementedError(
                "an evicting cache cannot take tokens back, as assisted decoding does: convert with evict=false, or"
                " generate without an assistant"
            )
        remove = min(remove, kept)
        self.keys, self.values = self.keys[:, :, : kept - remove], self.values[:, :, : kept - remove]
        self.positions = self.positions[:, : kept - remove]
        self.seen = kept - remove

    def reset(self) -> None:
        """Hold nothing."""
        self.keys = self.values = self.positions = self._coming = None
        self.is_initialized = False
        self.seen = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows in another order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """These rows alone."""
        if self.positions is not None:
            self.keys, self.values = self.keys[indices.to(self.keys.device)], self.values[indices.to(self.keys.device)]
            self.positions = self.positions[indices.to(self.positions.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row this many times."""
        if self.positions is not None:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)
            self.positions = self.positions.repeat_interleave(repeats, dim=0)


def evicting_layer(cache: Cache, layer: int, sinks: int, window: int, name: str) -> WindowLayer | None:
    """The evicting layer of a dynamic cache, put in the place of an empty one; None for a model's own window.

    Args:
        cache: as the model was called with.
        layer: index.
        sinks, window: G and W.
        name: of the system, for messages.

    Raises:
        NotImplementedError: a cache of another kind.
        RuntimeError: a cache that this model did not fill.
    """
    while len(cache.layers) <= layer:
        cache.layers.append(DynamicLayer())
    found = cache.layers[layer]
    if isinstance(found, WindowLayer):
        return found
    if getattr(found, "is_sliding", False) and isinstance(found, DynamicLayer):
        return None
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
    cache.layers[layer] = WindowLayer(sinks, window)
    return cache.layers[layer]
