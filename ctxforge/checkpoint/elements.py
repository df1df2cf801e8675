"""The elements of a tensor's bytes as numbers, and back; numpy is imported only where an edit needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    Array = NDArray[floating[Any]]


def decode(data: bytes, dtype: str) -> Array:
    """The elements of little-endian `data` as a numpy array of a native float type; exact for all editable dtypes."""
    import numpy as np

    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])


def encode(values: Array, dtype: str) -> bytes:
    """`values` rounded to `dtype`, nearest even, as little-endian bytes."""
    import numpy as np

    if dtype != "BF16":
        return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
    bits = values.astype("<f4").view("<u4")
    # Adding half an ulp, less one where the kept part is even, carries exactly when the nearest-even value is above.
    rounding = bits >> np.uint32(16)
    rounding &= np.uint32(1)
    rounding += np.uint32(0x7FFF)
    rounding += bits
    rounding >>= np.uint32(16)
    nan = np.isnan(values)
    if nan.any():
        # The carry could turn a NaN into an infinity or wrap it to zero: keep its top bits and make it quiet.
        rounding[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x0040)
    return rounding.astype("<u2").tobytes()
