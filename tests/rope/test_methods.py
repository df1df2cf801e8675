"""Every method against published goldens and against transformers' own functions."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ctxforge.errors import UsageError
from ctxforge.rope import METHODS, find_method, make_plan, understand

LLAMA2 = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
}

# lambda at pairs 20, 32, 45, 63 for Llama-2 (d=128, b=1e4, L0=4096) at s=16, and a.
GOLDENS = [
    ("pi", {}, 1.0, (16, 16, 16, 16)),
    ("ntk", {}, 1.0, (2.41135, 4.08899, 7.24579, 16)),
    ("yarn", {}, 1.277259, (1, 1.76271, 10.14634, 16)),
    ("yarn", {"truncate": False}, 1.277259, (1, 1.75555, 15.73653, 16)),
    ("ntk-by-parts", {}, 1.0, (1, 1.76271, 10.14634, 16)),
    ("llama3", {"high_freq_factor": 32}, 1.0, (1, 4.35911, 15.97005, 16)),
    ("llama3", {}, 1.0, (1, 1, 15.69582, 16)),
]


@pytest.mark.parametrize(("method", "parameters", "temperature", "expected"), GOLDENS)
def test_golden_divisors(method: str, parameters: dict, temperature: float, expected: tuple[float, ...]) -> None:
    plan = make_plan(understand(LLAMA2), find_method(method), 65536, parameters=parameters)
    rotation = plan.groups[0].rotation
    assert rotation.temperature == pytest.approx(temperature, abs=1e-6)
    assert [rotation.divisors[i] for i in (20, 32, 45, 63)] == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    ("scale", "base", "temperature"),
    [
        (2, 20221.26, 1.06931),
        (4, 40889.94, 1.13863),
        (8, 82684.62, 1.20794),
        (16, 167198.74, 1.27726),
        (32, 338096.95, 1.34657),
        (64, 683674.68, 1.41589),
    ],
)
def test_golden_bases_and_temperatures(scale: int, base: float, temperature: float) -> None:
    geometry = understand(LLAMA2)
    ntk = make_plan(geometry, find_method("ntk"), 4096 * scale).groups[0].rotation
    assert ntk.form is not None
    assert ntk.form.parameters["rope_theta"] == pytest.approx(base, rel=1e-6)
    yarn = make_plan(geometry, find_method("yarn"), 4096 * scale).groups[0].rotation
    assert yarn.temperature == pytest.approx(temperature, abs=1e-5)


# name, head_dim, base, L0, c(32), c(1): the ramp's ends.
CORRECTION_DIMS = [
    ("Llama-2", 128, 1e4, 4096, 20.94, 45.03),
    ("Llama-3", 128, 5e5, 8192, 18.08, 34.98),
    ("Llama-3.2", 64, 5e5, 8192, 9.04, 17.49),
    ("Mistral-v0.1", 128, 1e4, 8192, 25.76, 49.84),
    ("Qwen2.5", 128, 1e6, 32768, 23.60, 39.65),
    ("Phi-3-mini", 96, 1e4, 2048, 12.10, 30.16),
]


@pytest.mark.parametrize(("name", "d", "base", "length", "fast", "slow"), CORRECTION_DIMS)
def test_golden_correction_dims(name: str, d: int, base: float, length: int, fast: float, slow: float) -> None:
    from ctxforge.rope.spectrum import Spectrum

    spectrum = Spectrum(d, base, (1.0,) * (d // 2))
    assert spectrum.pair_at_rotations(32, length) == pytest.approx(fast, abs=0.006)
    assert spectrum.pair_at_rotations(1, length) == pytest.approx(slow, abs=0.006)


GEOMETRIES = [
    ("llama", 128, 1e4, 4096, 1.0),
    ("llama", 64, 5e5, 8192, 1.0),
    ("qwen2", 128, 1e6, 32768, 1.0),
    ("gpt_neox", 64, 1e4, 2048, 0.25),
    ("stablelm", 80, 1e4, 4096, 0.25),
    ("mistral", 96, 1e6, 32768, 1.0),
]


@pytest.mark.parametrize(("model_type", "head_dim", "base", "length", "fraction"), GEOMETRIES)
@pytest.mark.parametrize("scale", [2.0, 4.5, 32.0])
@pytest.mark.parametrize(
    ("method", "parameters", "entries"),
    [
        ("pi", {}, {"rope_type": "linear"}),
        ("yarn", {}, {"rope_type": "yarn"}),
        (
            "yarn",
            {"beta_fast": 128, "beta_slow": 2, "truncate": False},
            {"rope_type": "yarn", "beta_fast": 128.0, "beta_slow": 2.0, "truncate": False},
        ),
        ("llama3", {}, {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ],
)
def test_methods_equal_transformers(
    model_type: str,
    head_dim: int,
    base: float,
    length: int,
    fraction: float,
    scale: float,
    method: str,
    parameters: dict,
    entries: dict,
) -> None:
    sizes = {"hidden_size": head_dim * 4, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
    legacy = {"rotary_pct": fraction, "rotary_emb_base": base} if model_type == "gpt_neox" else {"rope_theta": base}
    if model_type == "stablelm":
        legacy["partial_rotary_factor"] = fraction
    source = {"model_type": model_type, "max_position_embeddings": length, **sizes, **legacy}
    target = int(length * scale)
    plan = make_plan(understand(source), find_method(method), target, parameters=parameters)
    group = plan.groups[0]
    ours = torch.tensor(
        [group.base ** (-2 * i / group.rotated_dims) / d for i, d in enumerate(group.rotation.divisors)],
        dtype=torch.float64,
    )
    dictionary = {**entries, "factor": scale, "rope_theta": base, "partial_rotary_factor": fraction}
    if entries["rope_type"] != "linear":
        dictionary["original_max_position_embeddings"] = length
    config = AutoConfig.for_model(model_type, **sizes, max_position_embeddings=target, rope_parameters=dictionary)
    theirs, temperature = ROPE_INIT_FUNCTIONS[entries["rope_type"]](config, torch.device("cpu"))
    assert theirs.shape == ours.shape
    # Their float32 blend (1 - t)/s + t cancels as s grows; ours is float64. Up to s = 16 the bound is 1e-6.
    torch.testing.assert_close(theirs.double(), ours, rtol=1e-6 * max(1.0, scale / 16), atol=0)
    assert group.rotation.temperature == pytest.approx(temperature, rel=1e-12)


def test_dynamic_equals_transformers_at_the_target() -> None:
    source = {**LLAMA2}
    plan = make_plan(understand(source), find_method("dynamic-ntk"), 16384)
    config = AutoConfig.for_model(
        **{key: value for key, value in LLAMA2.items() if key != "rope_theta"},
        rope_parameters={"rope_type": "dynamic", "factor": 1.0, "rope_theta": 1e4},
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=16384)
    group = plan.groups[0]
    ours = [group.base ** (-2 * i / 128) / d for i, d in enumerate(group.rotation.divisors)]
    torch.testing.assert_close(theirs.double(), torch.tensor(ours, dtype=torch.float64), rtol=1e-6, atol=0)


def test_abf_is_a_new_base() -> None:
    rotation = make_plan(understand(LLAMA2), find_method("abf"), 32768).groups[0].rotation
    for i in (1, 17, 63):
        assert 1e4 ** (-2 * i / 128) / rotation.divisors[i] == pytest.approx(5e5 ** (-2 * i / 128), rel=1e-12)


@pytest.mark.parametrize(
    ("method", "parameters", "word"),
    [
        ("yarn", {"beta_quick": 1}, "no parameter"),
        ("yarn", {"beta_fast": "many"}, "not a positive number"),
        ("yarn", {"beta_fast": 1, "beta_slow": 2}, "not above"),
        ("yarn", {"truncate": 3}, "not true or false"),
        ("llama3", {"high_freq_factor": 0.5}, "not above"),
        ("abf", {"base": 100}, "not above"),
        ("pi", {"factor": 2}, "no parameter"),
    ],
)
def test_wrong_parameters_are_refused(method: str, parameters: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        make_plan(understand(LLAMA2), find_method(method), 65536, parameters=parameters)


def test_unknown_method_offers_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find_method("yran")
    assert "yarn" in caught.value.remedy


def test_every_method_explains_itself() -> None:
    for method in METHODS.values():
        assert method.title
        assert method.reference
        assert method.summary
        assert method.evidence
        assert method.compute.__doc__
