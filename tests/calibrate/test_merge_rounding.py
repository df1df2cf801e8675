"""W + s L R is the nearest representable number of the exact sum, element by element, whatever the values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ctxforge.calibrate.adapters.rounding import FORMATS, Format, bits_of, narrow, nearest, numbers_of, ulp_of
from ctxforge.calibrate.adapters.sums import LowRankChange

NAMES = ("BF16", "F16", "F32")


def number(bits: int, form: Format) -> float:
    """What the bits stand for, by the format's definition: an implementation of its own."""
    width = 8 * form.item
    fraction_bits = form.precision - 1
    exponent_bits = width - 1 - fraction_bits
    sign = -1.0 if bits >> (width - 1) else 1.0
    exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1)
    fraction = bits & ((1 << fraction_bits) - 1)
    if exponent == (1 << exponent_bits) - 1:
        return float("nan") if fraction else sign * float("inf")
    bias = (1 << (exponent_bits - 1)) - 1
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias - fraction_bits)
    return sign * (1 + fraction / (1 << fraction_bits)) * 2.0 ** (exponent - bias)


def value(bits: int, form: Format) -> Fraction:
    """Like `number`, exact, and with the infinity where the next finite number would be."""
    found = number(bits, form)
    if np.isinf(found):
        return Fraction(int(np.sign(found))) * 2 ** (-form.lowest + 2)
    return Fraction(found)


def is_nearest(bits: int, exact: Fraction, form: Format) -> bool:
    """Whether no neighbour is nearer, and a tie went to the even one."""
    sign = form.negative_zero
    size = bits & ~sign
    ends = [one for one in (size - 1, size + 1) if one >= 0 and not np.isnan(number(one, form))]
    mine = abs(value(size, form) - abs(exact))
    if exact and value(size, form) and (exact < 0) != bool(bits & sign):
        return False
    others = [abs(value(one, form) - abs(exact)) for one in ends]
    return all(mine < other or (mine == other and size % 2 == 0) for other in others)


def factors(shape: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    """float32 numbers of few bits, so that ties and cancellation are common, or of any bits."""
    few = st.integers(-16, 16).map(lambda n: n / 16) | st.integers(-40, 40).map(lambda n: 2.0**n)
    any_ = st.floats(-(2.0**60), 2.0**60, width=32)
    return arrays.arrays(np.float32, shape, elements=few | any_)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Format, np.ndarray, LowRankChange]:
    form = FORMATS[draw(st.sampled_from(NAMES))]
    rows, columns, rank = (draw(st.integers(1, 4)) for _ in range(3))
    patterns = st.integers(0, 2 ** (8 * form.item) - 1)
    edges = st.sampled_from(
        [0, form.negative_zero, 1, form.negative_zero + 1, 0x3F80 if form.item == 2 else 0x3F800000]
    )
    old = draw(arrays.arrays(form.storage, (rows, columns), elements=patterns | edges))
    scale = draw(st.sampled_from([1.0, 2.0, 0.5, 1.5, 16 / 3**0.5, 1 / 3]))
    return form, old, LowRankChange(draw(factors((rows, rank))), draw(factors((rank, columns))), scale)


def exact_change(change: LowRankChange, row: int, column: int) -> Fraction:
    pairs = zip(change.left[row], change.right[:, column], strict=True)
    return Fraction(change.scale) * sum((Fraction(float(a)) * Fraction(float(b)) for a, b in pairs), Fraction(0))


@settings(max_examples=400, deadline=None)
@given(problems())
def test_every_element_is_the_nearest_number(problem: tuple[Format, np.ndarray, LowRankChange]) -> None:
    form, old, change = problem
    with np.errstate(all="ignore"):
        new = change.merged(0, old, form)
    for row, column in np.ndindex(*old.shape):
        before, after = int(old[row, column]), int(new[row, column])
        delta = exact_change(change, row, column)
        if not np.isfinite(number(before, form)) or delta == 0:
            assert after == before
            continue
        assert is_nearest(after, Fraction(number(before, form)) + delta, form), (hex(before), hex(after), float(delta))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_float64_is_rounded_once(name: str, real: float) -> None:
    form = FORMATS[name]
    found = int(bits_of(narrow(np.array([real]), form), form)[0])
    assert is_nearest(found, Fraction(real), form)
    assert float(numbers_of(np.array([found], form.storage), form)[0]) == nearest(Fraction(real), form)


def test_rounding_by_way_of_float32_would_be_wrong() -> None:
    """The negative control of `narrow`: just above a midpoint of BF16, float32 falls onto the midpoint."""
    form = FORMATS["BF16"]
    real = np.array([1 + 2.0**-8 + 2.0**-40])
    twice = bits_of(real.astype(np.float32), form)
    once = bits_of(narrow(real, form), form)
    assert numbers_of(once, form)[0] == 1 + 2.0**-7
    assert numbers_of(twice, form)[0] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_large_blocks_equal_float64_and_blocks_of_any_size(name: str) -> None:
    """Random matrices: at most 0.5 ulp, the same bits in one block, row by row, and with the columns reversed."""
    form = FORMATS[name]
    draw = np.random.default_rng(5)
    weights = draw.normal(size=(96, 130)).astype(np.float32) * np.exp2(draw.integers(-9, 3, size=(96, 130)))
    old = bits_of(weights.astype(np.float64 if name == "F32" else np.float32), form)
    change = LowRankChange(
        draw.normal(size=(96, 8)).astype(np.float32), draw.normal(size=(8, 130)).astype(np.float32) * 0.02, 32 / 8**0.5
    )
    new = change.merged(0, old, form)
    assert np.mean(new != old) > 0.9
    exact = numbers_of(old, form).astype(np.float64) + change.scale * (
        change.left.astype(np.float64) @ change.right.astype(np.float64)
    )
    error = np.abs(numbers_of(new, form).astype(np.float64) - exact) / ulp_of(numbers_of(new, form), form)
    assert 0.49 < error.max() <= 0.5 + 1e-6
    assert np.array_equal(np.vstack([change.merged(row, old[row : row + 1], form) for row in range(96)]), new)
    mirrored = LowRankChange(change.left, np.ascontiguousarray(change.right[:, ::-1]), change.scale)
    assert np.array_equal(mirrored.merged(0, np.ascontiguousarray(old[:, ::-1]), form)[:, ::-1], new)
    assert change.norm == pytest.approx(change.scale * np.linalg.norm(change.left @ change.right), rel=1e-5)


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_changes_that_nearly_cancel_the_weights(name: str) -> None:
    """What is left is small beside both, so that the error of the product alone can cross a midpoint."""
    form = FORMATS[name]
    draw = np.random.default_rng(7)
    change = LowRankChange(
        draw.normal(size=(300, 8)).astype(np.float32), draw.normal(size=(8, 300)).astype(np.float32), 0.3
    )
    product = change.scale * (change.left.astype(np.float64) @ change.right.astype(np.float64))
    old = bits_of(narrow(-product, form), form)
    exact = numbers_of(old, form).astype(np.float64) + product
    assert np.median(np.abs(exact)) < 2.0**-7 * np.median(np.abs(product))
    assert np.array_equal(change.merged(0, old, form), bits_of(narrow(exact, form), form))


def test_a_float32_sum_is_wrong_where_the_bound_is_left_out() -> None:
    """The negative control of the interval: plain float32 sums land on the wrong side of a midpoint now and then."""
    form = FORMATS["BF16"]
    draw = np.random.default_rng(6)
    old = bits_of(draw.normal(size=(256, 512)).astype(np.float32), form)
    left, right = (draw.normal(size=shape).astype(np.float32) for shape in ((256, 32), (32, 512)))
    change = LowRankChange(left, right, 0.37)
    plain = bits_of(numbers_of(old, form) + np.float32(0.37) * (left @ right), form)
    wrong = np.argwhere(plain != change.merged(0, old, form))
    assert len(wrong) > 0
    for row, column in wrong[:20]:
        exact = Fraction(number(int(old[row, column]), form)) + exact_change(change, row, column)
        assert not is_nearest(int(plain[row, column]), exact, form)
