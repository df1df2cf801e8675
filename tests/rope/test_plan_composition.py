"""What plans refuse and allow: schemes, targets, custom code, unrotated pairs, modifiers on scaled sources."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.errors import CtxforgeError, UnsupportedError, UsageError
from ctxforge.rope import METHODS, find_method, make_plan, understand
from ctxforge.rope.types import UNROTATED, CustomCode, RopeForm, Rotation
from tests.rope.test_geometry import LLAMA, LLAMA31
from tests.rope.test_plan_and_lower import convert


def with_code(name: str = "coded", **changes: Any) -> Any:
    base = find_method("yarn")

    def compute(parameters: Any, request: Any) -> Rotation:
        return dataclasses.replace(base.compute(parameters, request), code=CustomCode("xpos", {"scale_base": 512.0}))

    return dataclasses.replace(base, name=name, compute=compute, needs="custom code", needs_code=True, **changes)


def test_another_scheme_is_refused_with_methods_that_fit() -> None:
    method = dataclasses.replace(find_method("pi"), name="stretch", scheme="learned")
    with pytest.raises(UnsupportedError, match="don't combine: stretch extends learned position embeddings") as caught:
        make_plan(understand(LLAMA), method, 65536)
    assert "yarn" in caught.value.remedy
    assert "drope" not in caught.value.remedy


def test_custom_code_survives_on_plain_sources_only() -> None:
    rotation = make_plan(understand(LLAMA), with_code(), 65536).groups[0].rotation
    assert rotation.code == CustomCode("xpos", {"scale_base": 512.0})
    with pytest.raises(UnsupportedError, match="custom code, which can't be multiplied") as caught:
        make_plan(understand(LLAMA31), with_code(), 262144)
    assert "--original-length" in caught.value.remedy
    restarted = make_plan(understand(LLAMA31), with_code(), 262144, original_length=8192)
    assert restarted.groups[0].rotation.code is not None
    with pytest.raises(UnsupportedError, match="modifies one static table"):
        make_plan(understand(LLAMA), with_code(), 65536, modifiers=("resonance",))


def test_a_source_with_custom_code_is_not_multiplied() -> None:
    geometry = understand(LLAMA)
    group = dataclasses.replace(
        geometry.groups[0], in_force=Rotation((1.0,) * 64, code=CustomCode("xpos"), form=RopeForm("default"))
    )
    with pytest.raises(UnsupportedError, match="rotates with custom code"):
        make_plan(dataclasses.replace(geometry, groups=(group,)), find_method("yarn"), 65536)


def test_dynamic_methods_take_neither_temperature_nor_modifiers() -> None:
    with pytest.raises(UnsupportedError, match="no one temperature"):
        make_plan(understand(LLAMA), find_method("dynamic-ntk"), 65536, temperature=1.1)
    with pytest.raises(UnsupportedError, match="modifies one static table"):
        make_plan(understand(LLAMA), find_method("dynamic-ntk"), 65536, modifiers=("resonance",))


def test_unrotated_pairs_stay_unrotated_on_a_scaled_source() -> None:
    plan = make_plan(understand(LLAMA31), find_method("drope"), None)
    assert plan.groups[0].rotation.divisors == (UNROTATED,) * 64
    half = make_plan(understand(LLAMA31), find_method("p-rope"), None, parameters={"p": 0.5}).groups[0].rotation
    old = understand(LLAMA31).groups[0].in_force.divisors
    assert half.divisors == old[:32] + (UNROTATED,) * 32
    assert half.form is None


@pytest.mark.parametrize("method", ["drope", "p-rope"])
def test_methods_without_a_target_keep_the_trained_length(method: str) -> None:
    for target in (None, 4096):
        plan = make_plan(understand(LLAMA), find_method(method), target)
        assert (plan.target_length, plan.scale) == (4096, 1.0)
        assert plan.changed
    assert make_plan(understand(LLAMA), find_method(method), 65536).scale == 16.0
    with pytest.raises(UsageError, match="not longer"):
        make_plan(understand(LLAMA), find_method(method), 2048)


def test_other_methods_need_a_longer_target() -> None:
    with pytest.raises(UsageError, match="no target length"):
        make_plan(understand(LLAMA), find_method("mrrope-pro"), None)
    with pytest.raises(UsageError, match="not longer"):
        make_plan(understand(LLAMA), find_method("giraffe-power"), 4096)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 11.0])
def test_temperatures_that_are_none(value: float) -> None:
    with pytest.raises(UsageError, match="is not usable"):
        make_plan(understand(LLAMA), find_method("mrrope-pro"), 65536, temperature=value)


def test_what_needs_calibration_says_so() -> None:
    lines = make_plan(understand(LLAMA), find_method("p-rope"), None).warnings
    assert any("experimental" in line for line in lines)
    assert any("needs calibration" in line for line in lines)
    assert not any("calibration" in line for line in make_plan(understand(LLAMA), find_method("yarn"), 65536).warnings)


def test_resonance_rounds_the_final_wavelengths_of_a_scaled_source() -> None:
    plan = make_plan(understand(LLAMA31), find_method("yarn"), 262144, modifiers=("resonance",))
    assert plan.method == "yarn+resonance"
    divisors = np.array(plan.groups[0].rotation.divisors)
    wavelengths = 2 * np.pi * divisors * 500000.0 ** (np.arange(64) / 64)
    np.testing.assert_allclose(wavelengths, np.rint(wavelengths), rtol=1e-12)
    unmodified = make_plan(understand(LLAMA31), find_method("yarn"), 262144).groups[0].rotation
    np.testing.assert_allclose(divisors, unmodified.divisors, rtol=0.08)
    assert plan.groups[0].rotation.temperature == unmodified.temperature


def test_none_stays_none() -> None:
    plan = make_plan(understand(LLAMA31), find_method("none"), None)
    assert not plan.changed
    assert plan.method == "none"


# Which type each method's plan comes out as, on plain Llama-2, weights foldable.
@pytest.mark.parametrize(
    ("method", "options", "rope_type"),
    [
        ("yarn", {"parameters": {"critical_shift": 5}}, "yarn"),
        ("ntk", {"parameters": {"critical_shift": 5}}, None),
        # mlx-lm, llama.cpp and TGI ignore truncate: false, so lists reach further (docs/engines.md).
        ("ntk-by-parts", {"parameters": {"critical_pair": 40, "truncate": False}}, "longrope"),
        ("yarn-paper", {}, "llama3"),
        ("mrrope-uni", {}, "longrope"),
        ("mrrope-pro", {}, "longrope"),
        ("pose-yarn", {}, "longrope"),
        ("longrope", {"parameters": {"factors": list(np.linspace(1, 16, 64))}}, "longrope"),
        ("longrope2", {}, "longrope"),
        ("giraffe-power", {}, "longrope"),
        ("giraffe-truncated", {}, "longrope"),
        ("clex", {"parameters": {"factors": list(np.geomspace(1, 9, 64))}}, None),
        ("p-rope", {}, "longrope"),
        ("drope", {}, "longrope"),
        ("yarn", {"modifiers": ("resonance",)}, "longrope"),
        ("pi", {"modifiers": ("resonance",)}, "longrope"),
    ],
)
def test_how_each_method_is_expressed(method: str, options: dict[str, Any], rope_type: str | None) -> None:
    _plan, lowered = convert(LLAMA, method, 65536, **options)
    if rope_type is None:
        assert "rope_scaling" not in lowered.config or lowered.config["rope_scaling"] is None
        assert lowered.config["rope_theta"] > 10000.0
    else:
        assert lowered.config["rope_scaling"]["rope_type"] == rope_type


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from([name for name in METHODS if name not in ("abf", "longrope", "clex")]),
    target=st.one_of(st.none(), st.integers(1, 2**33)),
    source=st.sampled_from([LLAMA, LLAMA31]),
    resonates=st.booleans(),
    temperature=st.one_of(st.none(), st.floats()),
)
def test_any_plan_is_sane_or_refused_in_one_line(
    method: str, target: int | None, source: dict[str, Any], resonates: bool, temperature: float | None
) -> None:
    refusal = None
    try:
        plan = make_plan(
            understand(source),
            find_method(method),
            target,
            temperature=temperature,
            modifiers=("resonance",) if resonates else (),
        )
    except CtxforgeError as error:
        refusal = error
    if refusal is not None:
        assert refusal.remedy
        assert "\n" not in refusal.cause + refusal.remedy
        return
    rotation = plan.groups[0].rotation
    assert len(rotation.divisors) == 64
    assert all(0.9 < divisor <= UNROTATED for divisor in rotation.divisors)
    assert 0.1 <= rotation.temperature <= 10
    if method != "none":
        assert plan.target_length >= plan.original_length
