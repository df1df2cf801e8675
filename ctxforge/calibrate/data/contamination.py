"""The contamination guard: no document that shares a long passage with a text that verification measures on.

Passages are compared as shingles of 1 000 letters and digits: lower case, everything else left out, so that line
breaks, quotation marks and spacing hide nothing. The verification texts' shingles are hashed at every position,
a document's at every 250th: a shared passage of 1 249 letters and digits is always found, one below 1 000 never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

SHINGLE = 1000
"""Letters and digits of one shingle."""

STRIDE = 250
"""Letters and digits between the shingles of a document that are looked up."""

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_BLOCK = 1 << 16

Codes = NDArray[np.uint64]


@dataclass(frozen=True)
class ContaminationGuard:
    """Hashes of the texts that no document may share a passage with.

    Attributes:
        shingles: their hashes, sorted, uint64.
        sha256: of the texts' normalised content, in hex.
    """

    shingles: Codes
    sha256: str

    def shares(self, text: str) -> bool:
        """Whether `text` has a shingle, among those at every `STRIDE`, that a guarded text has."""
        found = strided_hashes(normalised(text))
        if not len(found) or not len(self.shingles):
            return False
        at = np.minimum(np.searchsorted(self.shingles, found), len(self.shingles) - 1)
        return bool((self.shingles[at] == found).any())


def make_guard(texts: Iterable[str]) -> ContaminationGuard:
    """A guard of these texts; 8 bytes of memory a character. Texts below `SHINGLE` letters and digits guard nothing."""
    codes = [normalised(text) for text in texts]
    parts = [np.unique(every_hash(one)) for one in codes]
    digests = sorted(hashlib.sha256(one.astype("<u8").tobytes()).hexdigest() for one in codes)
    shingles = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    shingles.setflags(write=False)
    return ContaminationGuard(shingles, hashlib.sha256(" ".join(digests).encode()).hexdigest())


def normalised(text: str) -> Codes:
    """The code points of the letters and digits of `text` in lower case, uint64 [count].

    Outside ASCII everything counts as a letter but the no-break space and General Punctuation (U+2000 to U+206F).
    """
    raw = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), dtype="<u4")
    codes: Codes = raw[_kept()[raw]].astype(np.uint64)
    return codes


@cache
def _kept() -> NDArray[np.bool_]:
    table = np.ones(0x110000, dtype=bool)
    table[:0x80] = [chr(code).isalnum() for code in range(0x80)]
    table[0xA0] = False
    table[0x2000:0x2070] = False
    return table


def every_hash(codes: Codes) -> Codes:
    """The hash of the shingle at each position, uint64 [max(0, count - SHINGLE + 1)].

    A shingle c_0 .. c_(k-1) hashes to sum c_j B^(k-1-j) modulo 2^64, with B odd. From position to position the hash is
    h' = (h - c_0 B^(k-1)) B + c_k, so sums of c_j B^-j give all of them at once.
    """
    out = [np.empty(0, np.uint64)]
    for start in range(0, len(codes) - SHINGLE + 1, _BLOCK):
        part = codes[start : start + _BLOCK + SHINGLE - 1]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(part * _powers(inverse=True)[: len(part)])])
        windows = sums[SHINGLE:] - sums[:-SHINGLE]
        out.append(windows * _powers(inverse=False)[SHINGLE - 1 :][: len(windows)])
    return np.concatenate(out)


@cache
def _powers(*, inverse: bool) -> Codes:
    """B^0, B^1, ... modulo 2^64, or those of its inverse."""
    base = pow(_BASE, -1, 1 << 64) if inverse else _BASE
    steps = np.full(_BLOCK + SHINGLE, base, dtype=np.uint64)
    steps[0] = 1
    return np.cumprod(steps)


def strided_hashes(codes: Codes) -> Codes:
    """The hashes of the shingles at every `STRIDE`, uint64, each character touched once."""
    per = SHINGLE // STRIDE
    blocks = len(codes) // STRIDE
    if blocks < per:
        return np.empty(0, np.uint64)
    weights = _powers(inverse=False)[STRIDE - 1 :: -1]
    sums = (codes[: blocks * STRIDE].reshape(blocks, STRIDE) * weights).sum(axis=1, dtype=np.uint64)
    found = np.zeros(blocks - per + 1, np.uint64)
    for index in range(per):
        found = found * _powers(inverse=False)[STRIDE] + sums[index : index + len(found)]
    return found


assert SHINGLE % STRIDE == 0
