"""Rotated copies of the keys, kept beside the unrotated cache so that a decoded token rotates one key and not all.

A store is one more layer of the same cache, so that beams, crops and repeats move it together with the keys it was
made from. It holds a prefix of them: what is missing, after a crop or a pass that trained, is made when next asked for.

    near, far = stored(self, module, call, make)    # make(keys: slice) -> the two, for the keys of that range

`stored` gives what `make(slice(0, S))` gives, and calls `make` for the new keys alone where the cache allows it. The
result must be a function of each key, its position and `label` alone, never of the query, and have the keys' dtype:
with another label all is made anew. Without a cache, in training, and in layers whose cache drops keys nothing is
stored.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from .ctxforge_attention import Call
from .ctxforge_runtime import System

# One or two copies [B, K, s, D'] of the keys of a range, in the dtype they are kept in.
Make = Callable[[slice], tuple[torch.Tensor, ...]]


class KeyStore(DynamicLayer):
    """One or two tensors made from the keys, [B, K, held, D'], as a cache layer's keys and values.

    It grows into spare room instead of being copied for each token. A store of one has values of no width.
    """

    def __init__(self) -> None:
        super().__init__()
        self.label: Hashable = None
        self._rooms: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to both, and return both."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def forget(self) -> None:
        """Hold nothing."""
        self.keys = self.values = None
        self.is_initialized = False
        self._rooms = {}

    def fits(self, key: torch.Tensor, label: Hashable) -> bool:
        """Whether what is held was made under `label` from the first of these keys, [B, K, S, D]."""
        if self.get_seq_length() == 0:
            return True
        held = self.keys
        same = held.shape[:2] == key.shape[:2] and held.dtype == key.dtype and held.device == key.device
        return same and self.label == label and held.shape[2] <= key.shape[2]

    def _append(self, name: str, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        past = held.shape[2] if held.ndim == 4 else 0
        needed, room = past + new.shape[2], self._rooms.get(name)
        if room is None or not _continues(room, held, needed):
            room = new.new_empty(*new.shape[:2], needed + needed // 8 + 64, new.shape[3])
            if past:
                room[:, :, :past] = held
            self._rooms[name] = room
        room[:, :, past:needed] = new
        return room[:, :, :needed]


def stored(system: System, module: nn.Module, call: Call, make: Make, *, label: Hashable = None) -> tuple[Any, ...]:
    """`make(slice(0, S))`, one or two tensors [B, K, S, D'] made from the S keys of `call`.

    Args:
        system: for the number of its layers.
        module: the attention module, for its `layer_idx`.
        call: keys and positions; `make` reads its `key` and `key_positions`.
        make: see above; called with the range that is missing.
        label: what besides key and position the result depends on.
    """
    total = call.key.shape[2]
    store = _find(system, module, call)
    if store is None:
        return make(slice(0, total))
    if not store.fits(call.key, label):
        store.forget()
    held = store.get_seq_length()
    if held < total:
        made = make(slice(held, total))
        store.label = label
        store.update(made[0], made[1] if len(made) > 1 else made[0][..., :0])
    single = store.values.shape[-1] == 0
    return (store.keys,) if single else (store.keys, store.values)


def _find(system: System, module: nn.Module, call: Call) -> KeyStore | None:
    """The store of this layer, past the layer of positions; None where the cache cannot have one."""
    cache, layer = call.cache, module.layer_idx
    if cache is None or (torch.is_grad_enabled() and call.key.requires_grad):
        return None
    own = cache.layers[layer]
    if type(own) is not DynamicLayer or own.get_seq_length() != call.key.shape[2]:
        return None
    index = system.layers + 1 + layer
    while len(cache.layers) <= index:
        cache.layers.append(KeyStore())
    store: KeyStore = cache.layers[index]
    return store


def _continues(room: torch.Tensor, held: torch.Tensor, needed: int) -> bool:
    """Whether `held` is the beginning of `room`, still, and `room` can take `needed`."""
    if room.is_inference() and not torch.is_inference_mode_enabled():
        return False
    same = held.ndim == 4 and held.shape[:2] == room.shape[:2] and held.shape[3] == room.shape[3]
    return same and held.stride() == room.stride() and held.data_ptr() == room.data_ptr() and needed <= room.shape[2]
