"""Every method on random geometries: finite, of the right length, in order, and the identity at s = 1."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ctxforge.errors import CtxforgeError, UsageError
from ctxforge.rope import METHODS, find_method
from ctxforge.rope.methods import ALIASES, Request
from ctxforge.rope.methods.base import NEEDS
from ctxforge.rope.modifiers import MODIFIERS, find_modifiers
from ctxforge.rope.spectrum import Spectrum, plain_frequencies
from ctxforge.rope.types import UNROTATED

FORMULAS = (
    "yarn",
    "mrrope-uni",
    "mrrope-pro",
    "ntk",
    "ntk-by-parts",
    "pi",
    "llama3",
    "yarn-paper",
    "pose-yarn",
    "longrope2",
    "dynamic-ntk",
)
NO_SCALE = ("giraffe-power", "giraffe-truncated", "p-rope", "drope")


@st.composite
def requests(draw: st.DrawFn) -> Request:
    d = 2 * draw(st.integers(2, 128))
    base = draw(st.floats(1e3, 1e8))
    length = draw(st.integers(256, 2**20))
    target = max(length, int(length * draw(st.floats(1.0, 128.0))))
    return Request(Spectrum(d, base, (1.0,) * (d // 2)), length, target)


@st.composite
def scaled_requests(draw: st.DrawFn) -> Request:
    plain = draw(requests())
    ratio = draw(st.floats(1.0, 32.0))
    pairs = plain.spectrum.pairs
    inside = tuple(ratio ** (i / max(pairs - 1, 1)) for i in range(pairs))
    spectrum = Spectrum(plain.spectrum.rotated_dims, plain.spectrum.base, inside)
    return Request(spectrum, plain.original_length, plain.target_length)


@pytest.mark.parametrize("name", FORMULAS + NO_SCALE)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_divisors_are_sane(name: str, data: st.DataObject) -> None:
    request = data.draw(requests() if name == "dynamic-ntk" else st.one_of(requests(), scaled_requests()))
    method = find_method(name)
    rotation = method.compute(method.build_parameters({}), request)
    assert len(rotation.divisors) == request.spectrum.pairs
    assert all(math.isfinite(divisor) and 1 - 1e-9 <= divisor <= UNROTATED for divisor in rotation.divisors)
    assert math.isfinite(rotation.temperature)
    assert 1 <= rotation.temperature < 3
    frequencies = [f / divisor for f, divisor in zip(request.spectrum.frequencies, rotation.divisors, strict=True)]
    assert all(a >= b * (1 - 1e-9) for a, b in pairwise(frequencies))
    if name != "giraffe-truncated":
        assert all(a <= b * (1 + 1e-9) for a, b in pairwise(rotation.divisors))
    if name in FORMULAS and name not in ("ntk", "longrope2"):
        assert max(rotation.divisors) <= request.scale * (1 + 1e-9)


@pytest.mark.parametrize("name", FORMULAS)
@settings(max_examples=40, deadline=None)
@given(request=st.one_of(requests()))
def test_no_extension_is_the_identity(name: str, request: Request) -> None:
    same = Request(request.spectrum, request.original_length, request.original_length)
    method = find_method(name)
    rotation = method.compute(method.build_parameters({}), same)
    assert rotation.divisors == pytest.approx((1.0,) * same.spectrum.pairs, rel=1e-12)
    assert rotation.temperature == 1.0


@settings(max_examples=60, deadline=None)
@given(
    request=requests(), shift=st.integers(1, 40), method=st.sampled_from(["ntk", "yarn", "ntk-by-parts", "pose-yarn"])
)
def test_an_earlier_critical_pair_interpolates_no_pair_less(request: Request, shift: int, method: str) -> None:
    assume(request.scale > 1.01)
    row = find_method(method)
    theory = math.ceil(request.spectrum.pair_at_rotations(1.0, request.original_length))
    assume(theory <= request.spectrum.pairs - 1)
    try:
        moved = row.compute(row.build_parameters({"critical_shift": shift}), request)
    except UsageError:
        return
    there = row.compute(row.build_parameters({"critical_pair": theory}), request)
    assert all(a >= b * (1 - 1e-12) for a, b in zip(moved.divisors, there.divisors, strict=True))
    assert moved.divisors[theory - shift] == pytest.approx(request.scale)


@settings(max_examples=60, deadline=None)
@given(request=requests(), method=st.sampled_from(["yarn", "pi", "ntk", "mrrope-pro", "drope"]))
def test_resonance_moves_a_wavelength_by_half_a_token_at_most(request: Request, method: str) -> None:
    row = find_method(method)
    divisors = row.compute(row.build_parameters({}), request).divisors
    d, base = request.spectrum.rotated_dims, request.spectrum.base
    rounded = MODIFIERS["resonance"].apply(divisors, d, base)
    assert MODIFIERS["resonance"].apply(rounded, d, base) == pytest.approx(rounded, rel=1e-12)
    for before, after, f in zip(divisors, rounded, plain_frequencies(d, base), strict=True):
        if before >= UNROTATED:
            assert after == before
        else:
            assert abs(after - before) * 2 * math.pi / f <= 0.5 * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    key=st.sampled_from(
        ["beta_fast", "critical_pair", "factors", "p", "k", "alpha", "temperature", "base", "nonsense"]
    ),
    value=st.one_of(st.text(max_size=8), st.floats(), st.integers(), st.booleans(), st.none(), st.lists(st.floats())),
    request=requests(),
)
def test_any_parameter_is_taken_or_refused_in_one_line(name: str, key: str, value: object, request: Request) -> None:
    method = find_method(name)
    if method.scheme != "rope":
        return
    refusal = None
    try:
        divisors = method.compute(method.build_parameters({key: value}), request).divisors
    except CtxforgeError as error:
        refusal = error
    if refusal is None:
        assert all(math.isfinite(divisor) and divisor > 0 for divisor in divisors)
    else:
        assert refusal.remedy
        assert "\n" not in refusal.cause + refusal.remedy


def test_the_table_is_consistent() -> None:
    assert not set(ALIASES) & set(METHODS)
    assert len(ALIASES) == sum(len(method.aliases) for method in METHODS.values())
    assert not set(MODIFIERS) & (set(METHODS) | set(ALIASES))
    for name, method in METHODS.items():
        assert name == method.name
        assert method.needs in NEEDS
        assert method.costs
        assert method.scheme in ("rope", "learned", "alibi")
        if method.needs_code:
            assert method.needs == "custom code"
        for line in (*method.evidence, *method.costs, method.summary, method.needs_training):
            assert "\n" not in line
            assert line.isascii()


def test_aliases_resolve() -> None:
    for alias, name in (("linear", "pi"), ("ntk-aware", "ntk"), ("by-parts", "ntk-by-parts"), ("prope", "p-rope")):
        assert find_method(alias).name == name


def test_a_modifier_is_no_method_and_unknown_ones_are_refused() -> None:
    with pytest.raises(UsageError, match="modifies a method") as caught:
        find_method("resonance")
    assert "yarn+resonance" in caught.value.remedy
    with pytest.raises(UsageError, match="unknown modifier") as caught:
        find_modifiers(["resonanse"])
    assert "did you mean 'resonance'" in caught.value.remedy
    with pytest.raises(UsageError, match="given twice"):
        find_modifiers(["resonance", "resonance"])
