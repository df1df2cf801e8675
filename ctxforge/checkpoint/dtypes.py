"""The dtypes of the safetensors format and their sizes (safetensors/src/tensor.rs, 0.8.0)."""

from __future__ import annotations

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, by safetensors dtype string."""

EDITABLE_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""The dtypes that a tensor edit can compute in; anything else is packed, quantised or an integer."""


def tensor_bytes(dtype: str, shape: tuple[int, ...], limit: int) -> int | None:
    """Size in bytes of a tensor; None when it isn't a whole number of bytes or exceeds `limit` bytes.

    The product stops at the limit, so that a hostile shape can't make it a number of a million digits.
    """
    if 0 in shape:
        return 0
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits > 8 * limit:
            return None
    return bits // 8 if bits % 8 == 0 else None
