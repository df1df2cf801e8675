"""Kept tensors in the processor's memory while nobody needs them, copied beside the computation.

64k tokens of 4096 bfloat16 channels over 32 layers are 16 GiB; a step over them takes far longer than the copies.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Mover(Protocol):
    """Copies tensors away and back."""

    def serves(self, tensor: torch.Tensor) -> bool:
        """Whether this tensor is worth moving."""
        ...

    def away(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The copy, and what to wait for before it may be read."""
        ...

    def back(self, copied: torch.Tensor, written: Any, device: torch.device) -> tuple[torch.Tensor, Any]:
        """The tensor on its device again, and what to wait for before it may be used."""
        ...

    def ready(self, tensor: torch.Tensor, fetched: Any) -> None:
        """Have the computation wait for `tensor`."""
        ...


class PinnedMover:
    """To pinned memory, on a stream of its own beside the computation; tensors that are on no GPU stay.

    Args:
        minimum_bytes: smaller tensors stay too.
    """

    def __init__(self, minimum_bytes: int = 1 << 20) -> None:
        self.minimum_bytes = minimum_bytes
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def serves(self, tensor: torch.Tensor) -> bool:
        """See `Mover`."""
        return tensor.device.type == "cuda" and tensor.nbytes >= self.minimum_bytes

    def away(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """See `Mover`."""
        stream = self._stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            copied = torch.empty_like(tensor, device="cpu", pin_memory=True)
            copied.copy_(tensor, non_blocking=True)
            written = stream.record_event()
        # Its memory must not be given to another tensor before the copy is done.
        tensor.record_stream(stream)
        return copied, written

    def back(self, copied: torch.Tensor, written: Any, device: torch.device) -> tuple[torch.Tensor, Any]:
        """See `Mover`."""
        stream = self._stream(device)
        with torch.cuda.stream(stream):
            stream.wait_event(written)
            tensor = copied.to(device, non_blocking=True)
            return tensor, stream.record_event()

    def ready(self, tensor: torch.Tensor, fetched: Any) -> None:
        """See `Mover`."""
        current = torch.cuda.current_stream(tensor.device)
        current.wait_event(fetched)
        tensor.record_stream(current)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]


@dataclass
class _Slot:
    """A tensor that was moved: the copy, and the tensor again once it was fetched."""

    copied: torch.Tensor
    written: Any
    device: torch.device
    before: weakref.ref[_Slot] | None
    fetched: tuple[torch.Tensor, Any] | None = None


class Offload:
    """Moves what autograd keeps inside `hooks`. The backward asks in reverse order, so each fetch starts the next one.

    Args:
        mover: how to copy; None for `PinnedMover()`, which does nothing on a CPU.

    Attributes:
        moved: tensors moved so far.
    """

    def __init__(self, mover: Mover | None = None) -> None:
        self.mover: Mover = mover or PinnedMover()
        self.moved = 0
        self._last: weakref.ref[_Slot] | None = None

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Inside, tensors that autograd keeps are moved."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Slot:
        if not self.mover.serves(tensor):
            return tensor
        copied, written = self.mover.away(tensor)
        slot = _Slot(copied, written, tensor.device, self._last)
        self._last = weakref.ref(slot)
        self.moved += 1
        return slot

    def _unpack(self, packed: torch.Tensor | _Slot) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        tensor, fetched = self._fetch(packed)
        # Asked for again, it is fetched again: it must not stay on the device.
        packed.fetched = None
        self.mover.ready(tensor, fetched)
        before = packed.before() if packed.before is not None else None
        if before is not None:
            self._fetch(before)
        return tensor

    def _fetch(self, slot: _Slot) -> tuple[torch.Tensor, Any]:
        if slot.fetched is None:
            slot.fetched = self.mover.back(slot.copied, slot.written, slot.device)
        return slot.fetched
