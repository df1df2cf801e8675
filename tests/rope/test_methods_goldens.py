"""Golden numbers, recomputed here in numpy from frequencies instead of divisors, and relations between methods."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.rope import find_method, make_plan, read_rotations, understand
from ctxforge.rope.methods import Request
from ctxforge.rope.spectrum import Spectrum
from ctxforge.rope.types import UNROTATED, Rotation
from tests.rope.test_methods import LLAMA2

LLAMA3 = {**LLAMA2, "max_position_embeddings": 8192, "rope_theta": 500000.0}
PHI3 = {
    "model_type": "llama",
    "hidden_size": 3072,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}
SHOWN = (20, 32, 45, 63)


def rotate(
    method: str, to: int, parameters: dict[str, Any] | None = None, source: Any = None, **options: Any
) -> Rotation:
    plan = make_plan(understand(source or LLAMA2), find_method(method), to, parameters=parameters, **options)
    return plan.groups[0].rotation


def angles(d: int = 128, base: float = 1e4) -> np.ndarray:
    return np.exp(-np.log(base) * np.arange(0, d, 2) / d)


def turns(length: int, d: int = 128, base: float = 1e4) -> np.ndarray:
    return length * angles(d, base) / (2 * np.pi)


def slower(new: np.ndarray, d: int = 128, base: float = 1e4) -> np.ndarray:
    return angles(d, base) / new


# Llama-2 (d=128, b=1e4, L0=4096) at s=16: a, and lambda at pairs 20, 32, 45, 63.
GOLDENS = [
    ("yarn-paper", {}, (), 1.277259, (1, 4.35911, 15.97005, 16)),
    ("mrrope-uni", {}, (), 1.277259, (1, 3.59540, 14.38162, 16)),
    ("mrrope-pro", {}, (), 1.277259, (1, 1.85175, 13.02944, 16)),
    ("yarn", {}, ("resonance",), 1.277259, (1.00239, 1.76344, 10.14635, 15.99999)),
    ("giraffe-power", {"k": 0.5}, (), 1.0, (1.20605, 1.41421, 1.83533, 8.0)),
    ("pose-yarn", {}, (), 1.277259, (1, 1 + 15 * 12 / 26, 1 + 15 * 25 / 26, 16)),
    ("ntk", {"critical_pair": 41}, (), 1.0, tuple(16 ** (i / 41) for i in SHOWN)),
]


@pytest.mark.parametrize(("method", "parameters", "modifiers", "temperature", "expected"), GOLDENS)
def test_goldens(method: str, parameters: dict, modifiers: tuple, temperature: float, expected: tuple) -> None:
    rotation = rotate(method, 65536, parameters, modifiers=modifiers)
    assert rotation.temperature == pytest.approx(temperature, abs=1e-6)
    assert [rotation.divisors[i] for i in SHOWN] == pytest.approx(expected, abs=5.1e-6)  # the notes' five decimals


def by_rotations(s: float) -> np.ndarray:
    share = np.interp(turns(4096), [1, 32], [0, 1])
    return slower(angles() * share + angles() / s * (1 - share))


def by_index(s: float, high: int = 46) -> np.ndarray:
    share = np.interp(np.arange(64), [20, high], [1, 0])
    return slower(angles() * share + angles() / s * (1 - share))


def digits(s: float, *, progressive: bool) -> np.ndarray:
    """MrRoPE as the paper states it: a product of radices, one a middle pair."""
    fast, slow = np.nonzero(turns(4096) > 32)[0][-1], np.nonzero(turns(4096) < 1)[0][0]
    n = slow - fast
    radices = np.ones(64)
    for k, j in enumerate(range(fast, slow), start=1):
        radices[j] = s ** (2 * k / ((1 + n) * n)) if progressive else s ** (1 / n)
    return np.concatenate([[1.0], np.cumprod(radices)[:-1]])


def whole_wavelengths(divisors: np.ndarray) -> np.ndarray:
    return np.rint(2 * np.pi * divisors / angles()) * angles() / (2 * np.pi)


@pytest.mark.parametrize("scale", [2, 16, 32])
def test_methods_equal_their_second_derivation(scale: int) -> None:
    to = 4096 * scale
    expected = {
        "yarn-paper": by_rotations(scale),
        "yarn": by_index(scale),
        "mrrope-uni": digits(scale, progressive=False),
        "mrrope-pro": digits(scale, progressive=True),
    }
    for method, divisors in expected.items():
        np.testing.assert_allclose(rotate(method, to).divisors, divisors, rtol=1e-12, err_msg=method)
    np.testing.assert_allclose(
        rotate("yarn", to, modifiers=("resonance",)).divisors, whole_wavelengths(by_index(scale)), rtol=1e-12
    )
    np.testing.assert_allclose(rotate("yarn", to, {"critical_shift": 5}).divisors, by_index(scale, high=41), rtol=1e-12)


def test_resonance_leaves_whole_wavelengths_and_works_alone() -> None:
    for method, to in (("pi", 65536), ("none", None)):
        plan = make_plan(understand(LLAMA2), find_method(method), to, modifiers=("resonance",))
        assert plan.method == f"{method}+resonance"
        assert plan.changed
        rotation = plan.groups[0].rotation
        wavelengths = 2 * np.pi * np.array(rotation.divisors) / angles()
        np.testing.assert_allclose(wavelengths, np.rint(wavelengths), rtol=1e-12)
        assert rotation.form is None


def test_resonance_keeps_unrotated_pairs_still() -> None:
    rotation = rotate("p-rope", 8192, {"p": 0.5}, modifiers=("resonance",))
    assert rotation.divisors[32:] == (UNROTATED,) * 32
    assert rotation.divisors[0] == pytest.approx(6 / (2 * math.pi))


# Theoretical critical pairs of 2502.20082: LLaMA3-8B 35 and Phi3-mini 31; real ones 30 and 25.
@pytest.mark.parametrize(("source", "theory", "real"), [(LLAMA3, 35, 30), (PHI3, 31, 25)])
def test_longrope2_critical_pairs(source: dict, theory: int, real: int) -> None:
    to = 16 * source["max_position_embeddings"]
    by_index_given = rotate("ntk", to, {"critical_pair": real}, source)
    by_shift = rotate("ntk", to, {"critical_shift": theory - real}, source)
    assert by_index_given == by_shift
    assert by_index_given.divisors[real] == pytest.approx(16, rel=1e-12)
    assert rotate("yarn", to, {"critical_pair": theory}, source).divisors == rotate("yarn", to, {}, source).divisors
    moved = rotate("yarn", to, {"critical_pair": real}, source).divisors
    assert moved[real] == pytest.approx(16)
    assert moved[real - 1] < 16


def test_ntk_at_the_theoretical_pair_is_the_scaling_laws_base() -> None:
    """2310.05209: b' = b^(log_(L0/2pi)(L'/2pi)); the critical pair there is fractional, so interpolate it."""
    d, b, original, target = 128, 5e5, 8192, 131072
    spectrum = Spectrum(d, b, (1.0,) * 64)
    fractional = spectrum.pair_at_rotations(1.0, original)
    base = b ** (math.log(target / (2 * math.pi)) / math.log(original / (2 * math.pi)))
    assert b * 16 ** (d / (2 * fractional)) == pytest.approx(base, rel=1e-12)
    # And the whole pair that the parameter takes brackets it.
    request = Request(spectrum, original, target)
    method = find_method("ntk")
    chosen = method.compute(method.build_parameters({"critical_pair": 35}), request)
    assert chosen.form is not None
    assert b * 16 < chosen.form.parameters["rope_theta"] < base


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("source", [LLAMA2, LLAMA3, PHI3])
@pytest.mark.parametrize("shift", [1, 5, 9])
def test_moved_yarn_is_still_the_yarn_type(source: dict, shift: int, *, truncate: bool) -> None:
    to = 8 * source["max_position_embeddings"]
    rotation = rotate("yarn", to, {"critical_shift": shift, "truncate": truncate}, source)
    assert rotation.form is not None
    keys = {"rope_type": "yarn", **rotation.form.parameters, "rope_theta": source["rope_theta"]}
    config = {**source, "max_position_embeddings": to, "rope_parameters": keys}
    table = read_rotations(config, "llama", "transformers 5")[None]
    np.testing.assert_allclose(table.rotation.divisors, rotation.divisors, rtol=1e-9)
    assert rotation.divisors != rotate("yarn", to, {"truncate": truncate}, source).divisors


def test_longrope2_is_ntk_before_the_critical_pair_and_constant_after() -> None:
    divisors = rotate("longrope2", 131072, {"tail": 1.25}, LLAMA3).divisors
    np.testing.assert_allclose(divisors[:31], 20.0 ** (np.arange(31) / 30), rtol=1e-12)
    assert divisors[30:] == (20.0,) * 34
    searched = tuple(16.0 + i for i in range(34))
    given = rotate("longrope2", 131072, {"factors": list(searched), "critical_pair": 30}, LLAMA3)
    assert given.divisors[30:] == searched
    assert given.divisors[15] == pytest.approx(4.0)
    whole = tuple(np.linspace(1, 20, 64))
    assert rotate("longrope2", 131072, {"factors": list(whole)}, LLAMA3).divisors == whole


@pytest.mark.parametrize(
    ("length", "scale", "expected"), [(4096, 16, 1.15470), (4096, 2, 1.04083), (8192, 32, 1.17670)]
)
def test_longrope_temperatures(length: int, scale: int, expected: float) -> None:
    source = {**LLAMA2, "max_position_embeddings": length}
    factors = list(np.linspace(1, scale, 64))
    assert rotate("longrope", length * scale, {"factors": factors}, source).temperature == pytest.approx(
        expected, abs=1e-5
    )
    yarn = rotate("longrope", length * scale, {"factors": factors, "temperature": "yarn"}, source)
    assert yarn.temperature == pytest.approx(0.1 * math.log(scale) + 1)
    assert rotate("longrope", length * scale, {"factors": factors, "temperature": "none"}, source).temperature == 1.0


def test_giraffes_truncated_basis() -> None:
    """abacusai/Long-Context's three zones, written with where() on frequencies."""
    cutoff = 2 * np.pi / 4096
    f = angles()
    expected = np.where(f >= cutoff, f, np.where(f >= cutoff / 8, cutoff / 16, 0))
    rotation = rotate("giraffe-truncated", 16384)
    got = f / np.array(rotation.divisors)
    np.testing.assert_allclose(np.where(got < 1e-20, 0, got), expected, rtol=1e-12)
    assert {20: 1.0, 45: 1.0}.items() <= {i: rotation.divisors[i] for i in SHOWN}.items()
    assert rotation.divisors[63] == UNROTATED
    shared = {round(value, 12) for value in got if 1e-20 < value < cutoff}
    assert shared == {round(cutoff / 16, 12)}
    halved = rotate("giraffe-truncated", 16384, {"interpolate": 4, "window": 2048})
    assert halved.divisors[0] == 4.0


def test_prope_and_drope() -> None:
    kept = rotate("p-rope", 8192, {"p": 0.25})
    assert kept.divisors == (1.0,) * 16 + (UNROTATED,) * 48
    assert rotate("drope", 8192).divisors == (UNROTATED,) * 64
    everything = rotate("p-rope", 8192, {"p": 1})
    assert everything.divisors == (1.0,) * 64
    with pytest.raises(UsageError, match="above 1"):
        rotate("p-rope", 8192, {"p": 1.5})


def test_clex_takes_frequencies_or_factors() -> None:
    wanted = np.geomspace(1, 20, 64)
    by_frequency = rotate("clex", 65536, {"frequencies": list(angles() / wanted)})
    np.testing.assert_allclose(by_frequency.divisors, wanted, rtol=1e-12)
    assert by_frequency.temperature == 1.0
    assert rotate("clex", 65536, {"factors": list(wanted)}).divisors == tuple(wanted)
    for wrong in ({}, {"factors": [1.0] * 64, "frequencies": [1.0] * 64}):
        with pytest.raises(UsageError, match="needs one list"):
            rotate("clex", 65536, wrong)


def test_randomised_positions_refuse_to_plan() -> None:
    with pytest.raises(UnsupportedError, match="changes no config") as caught:
        rotate("randomised-positions", 8192)
    assert "--recipe giraffe" in caught.value.remedy


@pytest.mark.parametrize(
    ("method", "parameters", "word"),
    [
        ("yarn", {"critical_pair": 10}, "not above the ramp's start"),
        ("yarn", {"critical_pair": 64}, "theory puts it at 46"),
        ("ntk", {"critical_pair": 0}, "theory puts it at 46"),
        ("ntk", {"critical_shift": 46}, "theory puts it at 46"),
        ("ntk", {"critical_pair": 30, "critical_shift": 5}, "both given"),
        ("ntk", {"critical_shift": 2.5}, "not a whole number"),
        ("ntk", {"critical_shift": -1}, "not a whole number"),
        ("mrrope-pro", {"alpha": 1}, "not above"),
        ("yarn-paper", {"beta": 0.5}, "not above"),
        ("giraffe-power", {"k": 1000}, "stops the slow pairs"),
        ("longrope2", {"tail": 3}, "outside the searched range"),
        ("longrope", {"temperature": "hot"}, "not a choice"),
        ("longrope", {}, "needs a list"),
        ("drope", {"p": 1}, "no parameter"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(method: str, parameters: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        rotate(method, 65536, parameters)
    assert caught.value.remedy
