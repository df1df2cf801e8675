"""Rotated copies of the newest keys, so that a decoded token rotates one key and not a window of them.

Keys are rotated about the first slot that is held. Once the window has moved on by a quarter, the copies are made anew
about its first slot: angles stay small however long a text becomes, and no more than that is held.
"""

from __future__ import annotations

import torch

from .ctxforge_block_memory import Turn
from .ctxforge_key_store import KeyStore


class NearKeys:
    """Rotated keys of the slots from `first` on."""

    def __init__(self) -> None:
        self.first = 0
        self._store = KeyStore()
        self._base: torch.Tensor | None = None

    def take(
        self, key: torch.Tensor, positions: torch.Tensor, start: int, total: int, turn: Turn
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys [B, K, n, D] of the newest slots, and the positions [B, 1] that they are rotated about.

        Args:
            key: unrotated, [B, K, n, D].
            positions: theirs, [B, n].
            start: slot of the first. total: slots of all keys, start + n.
            turn: the layer's rotation.
        """
        width, held = total - start, self._store.get_seq_length()
        stale = start < self.first or self.first + held < start or self.first + held > total
        if held == 0 or stale or total - self.first > width + width // 4 + 64:
            self._store.forget()
            self.first, self._base, held = start, positions[:, :1], 0
        assert self._base is not None
        new = slice(self.first + held - start, None)
        if self.first + held < total:
            turned = turn(key[:, :, new], positions[:, new] - self._base).to(key.dtype)
            self._store.update(turned, turned[..., :0])
        return self._store.keys[:, :, start - self.first :], self._base

    def select_rows(self, index: torch.Tensor) -> None:
        """These rows alone, in this order."""
        if self._base is not None:
            self._store.batch_select_indices(index.to(self._base.device))
            self._base = self._base.index_select(0, index.to(self._base.device))
