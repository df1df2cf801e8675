"""By how much elements differ whose bytes do; numpy is imported here and nowhere else in this package."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ctxforge.checkpoint.dtypes import DTYPE_BITS
from ctxforge.checkpoint.elements import decode
from ctxforge.differences.types import Amounts

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 128 * 1024
"""Elements handled at once: their float64 copies stay in the processor's cache."""

_NATIVE = {
    "I8": "<i1", "U8": "<u1", "BOOL": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8",
    "U64": "<u8", "C64": "<c8",
}  # fmt: skip

# Exponent bits, mantissa bits, bias, and what the largest codes mean, of the eight-bit floats: OCP 8-bit Floating Point
# Specification 1.0, table 1 (E4M3, E5M2), OCP MX 1.0, table 5.7 (E8M0), 2206.02915 (FNUZ: no infinity, no negative
# zero, one NaN at 0x80).
_EIGHT_BIT = {
    "F8_E4M3": (4, 3, 7, "finite"),
    "F8_E5M2": (5, 2, 15, "ieee"),
    "F8_E4M3FNUZ": (4, 3, 8, "fnuz"),
    "F8_E5M2FNUZ": (5, 2, 16, "fnuz"),
    "F8_E8M0": (8, 0, 127, "scale"),
}


def amounts(before: bytes, after: bytes, dtype: str) -> Amounts:
    """Compare elements of one safetensors dtype, given as equally many bytes.

    Differences are computed in float64, those of floats of 16 bits and less in float32, so that they are rounded to
    seven digits. Dtypes below eight bits are compared by bytes, without amounts; integers beyond 2^53 are rounded.
    """
    import numpy as np

    bits = DTYPE_BITS[dtype]
    width = max(bits // 8, 1)
    raw = np.dtype(f"<u{width}")
    one, other = np.frombuffer(before, raw), np.frombuffer(after, raw)
    total = Amounts.none_of(0, dtype)
    for start in range(0, len(one), _CHUNK):
        a, b = one[start : start + _CHUNK], other[start : start + _CHUNK]
        where = a != b
        changed = int(np.count_nonzero(where))
        if bits < 8:
            total += Amounts(len(a), changed, None, None)
        elif changed == 0:
            total += Amounts.none_of(len(a), dtype)
        else:
            if changed < len(a):
                a, b = a[where], b[where]
            total += _measured(len(where), changed, a.tobytes(), b.tobytes(), dtype)
    return total


def _measured(elements: int, changed: int, before: bytes, after: bytes, dtype: str) -> Amounts:
    import numpy as np

    a, b = _values(before, dtype), _values(after, dtype)
    finite = np.isfinite(a) & np.isfinite(b)
    not_finite = changed - int(np.count_nonzero(finite))
    if not_finite:
        a, b = a[finite], b[finite]
    if not len(a):
        return Amounts(elements, changed, not_finite=not_finite)
    # Halved, so that the difference of two of the largest numbers doesn't overflow.
    a, b = a * a.dtype.type(0.5), b * b.dtype.type(0.5)
    apart = np.abs(b - a)
    scale = np.maximum(np.abs(a), np.abs(b))
    # Both zero, of either sign: no difference, and nothing to divide by.
    scale[scale == 0] = 1
    apart_most = 2.0 * float(apart.max())
    apart /= scale
    return Amounts(elements, changed, apart_most, float(apart.max()), not_finite)


def _values(data: bytes, dtype: str) -> NDArray[Any]:
    import numpy as np

    if dtype in _EIGHT_BIT:
        return _table(dtype)[np.frombuffer(data, np.uint8)]
    if dtype in _NATIVE:
        found = np.frombuffer(data, _NATIVE[dtype])
        return found.astype(np.complex128 if dtype == "C64" else np.float64)
    return decode(data, dtype).astype(np.float64 if DTYPE_BITS[dtype] > 16 else np.float32, copy=False)


@cache
def _table(dtype: str) -> NDArray[Any]:
    """The 256 values of an eight-bit float."""
    import numpy as np

    return np.array([_eight_bit(code, *_EIGHT_BIT[dtype]) for code in range(256)], np.float32)


def _eight_bit(code: int, exponent_bits: int, mantissa_bits: int, bias: int, kind: str) -> float:
    if kind == "scale":
        return float("nan") if code == 255 else 2.0 ** (code - bias)
    if kind == "fnuz" and code == 0x80:
        return float("nan")
    sign = -1.0 if code & 0x80 else 1.0
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = (code & 0x7F) >> mantissa_bits
    top = (1 << exponent_bits) - 1
    if kind == "ieee" and exponent == top:
        return sign * float("inf") if mantissa == 0 else float("nan")
    if kind == "finite" and code & 0x7F == 0x7F:
        return float("nan")
    fraction = mantissa / (1 << mantissa_bits)
    if exponent == 0:
        return float(sign * fraction * 2.0 ** (1 - bias))
    return float(sign * (1 + fraction) * 2.0 ** (exponent - bias))
