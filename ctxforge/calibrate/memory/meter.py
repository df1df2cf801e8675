"""Bytes of tensors alive, operation by operation, on any device, the meta device included."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, memory that operations allocate for tensors is counted until it is freed.

    What a kernel allocates for itself and gives back is not seen. Tensors that were there before count for nothing.

    Attributes:
        live: bytes at this moment.
        peak: the most there were since the meter was made, or since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def ignore(self, tensors: Any) -> None:
        """Count these tensors' memory for nothing, views of it included."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage(), 0)

    def restart(self) -> int:
        """Start a new peak at what is alive now; returns the old one."""
        before, self.peak = self.peak, self.live
        return before

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what `func` returns."""
        # Its inputs were there before it; those that no operation made here are not this meter's.
        self.ignore((args, kwargs))
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._watch(storage, storage.nbytes())
        return result

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        # The address may be another storage's later.
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
