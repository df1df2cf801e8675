"""Freed memory given back to the system while a step runs on a CPU.

torch aligns its tensors to 64 bytes, and glibc before 2.38 can't use a hole in its heap for an aligned piece of the
same size again (glibc bug 14581): the heap grows with every layer, though what is in use stays the same.
docs/decisions/0015-calibration.md has the figures.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

_LEAST, _SHARE = 512 << 20, 12
_STATM = "/proc/self/statm"


class HeapTrimmer:
    """Gives free pieces of the heap back when this process has grown by `limit` bytes since it last did.

    What is freed must be zeroed by the system when it is used again, so this is not for every layer. Elsewhere than on
    Linux with glibc `check` does nothing.

    Args:
        limit: bytes of growth; None for a twelfth of this machine's memory, and 512 MB at least.

    Attributes:
        trims: how often it gave memory back.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = max(_LEAST, _installed() // _SHARE) if limit is None else limit
        self.trims = 0
        self._trim = _malloc_trim()
        self._lowest: int | None = None

    def check(self) -> None:
        """Give back what is free, if the process has grown; some microseconds otherwise."""
        if self._trim is None:
            return
        resident = _resident()
        if self._lowest is None or resident < self._lowest:
            self._lowest = resident
        if resident - self._lowest > self.limit:
            self._trim(0)
            self.trims += 1
            self._lowest = _resident()


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim, or None where there is none."""
    if sys.platform != "linux" or not Path(_STATM).exists():
        return None
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found


def _installed() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _resident() -> int:
    with Path(_STATM).open(encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
