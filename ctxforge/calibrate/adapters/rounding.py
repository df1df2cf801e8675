"""Numbers rounded once, to nearest even, to a checkpoint's dtype: from float64 arrays, and from exact fractions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ctxforge.errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[Any]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes:
        dtype: its safetensors name.
        precision: bits of the significand, the hidden one included.
        lowest: the exponent of the smallest normal number.
        largest: the largest finite number.
    """

    dtype: str
    precision: int
    lowest: int
    largest: float

    @property
    def storage(self) -> str:
        """numpy's name of the little-endian integer of its size."""
        return "<u4" if self.dtype == "F32" else "<u2"

    @property
    def item(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "F32" else 2

    @property
    def negative_zero(self) -> int:
        """The bits of -0."""
        return int(1 << (8 * self.item - 1))


FORMATS = {
    "BF16": Format("BF16", 8, -126, 255 * 2.0**120),
    "F16": Format("F16", 11, -14, 65504.0),
    "F32": Format("F32", 24, -126, (2**24 - 1) * 2.0**104),
}
"""The dtypes that a merge writes. F64 isn't one: nothing here is wide enough to round to it."""


def find_format(dtype: str, tensor: str) -> Format:
    """The format of a dtype.

    Raises:
        UnsupportedError: quantised, packed, integer or F64.
    """
    if dtype not in FORMATS:
        raise UnsupportedError(
            f"the tensor {tensor} has dtype {dtype}, into which a change cannot be merged exactly",
            "train and merge on the unquantised checkpoint (BF16, F16 or F32)",
        )
    return FORMATS[dtype]


def bits_of(values: Numbers, form: Format) -> Numbers:
    """float32 values (float64 for F32) rounded once, nearest even, as the format's bits; infinite where they overflow.

    The values must not be NaN.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        if form.dtype == "F32":
            return values.astype("<f4").view("<u4")
        if form.dtype == "F16":
            return values.astype("<f2").view("<u2")
    bits = values.view(np.uint32)
    # Half an ulp, less one where the kept part is even, carries exactly where the nearest even value is the one above.
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    odd >>= np.uint32(16)
    found: Numbers = odd.astype("<u2")
    return found


def narrow(values: Numbers, form: Format) -> Numbers:
    """float64 values such that `bits_of` of the result rounds as if it had the values themselves.

    For 16-bit formats: float32, rounded to odd, so that a value beside a midpoint doesn't become the midpoint (rounding
    to odd at 24 bits and then to at most 22 is rounding once: Boldo and Melquiond 2008).
    """
    import numpy as np

    if form.dtype == "F32":
        return values
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= (np.abs(back) > np.abs(values)).astype(np.uint32)
    bits |= (back != values).astype(np.uint32)
    return near


def numbers_of(bits: Numbers, form: Format) -> Numbers:
    """The numbers that bits stand for: float64 for F32, else float32."""
    import numpy as np

    if form.dtype == "F32":
        return bits.view("<f4").astype(np.float64)
    if form.dtype == "F16":
        return bits.view("<f2").astype(np.float32)
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def nearest(value: Fraction, form: Format) -> float:
    """The format's number nearest to an exact value, ties to even, infinite beyond the range; +0 for 0."""
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, form.lowest) - form.precision + 1)
    rounded = round(size / quantum) * quantum  # Python rounds fractions to nearest even
    found = float("inf") if rounded > Fraction(form.largest) else float(rounded)
    return found if value > 0 else -found


def ulp_of(values: Numbers, form: Format) -> Numbers:
    """The distance from each finite value of the format to the next one farther from 0, float64."""
    import numpy as np

    wide = values.astype(np.float64)
    exponents = np.where(wide == 0, form.lowest, np.frexp(wide)[1] - 1)
    ulps: Numbers = np.ldexp(1.0, np.maximum(exponents, form.lowest) - form.precision + 1)
    return ulps
