"""Composition, restarts, both dialects, key order, folds: what the config and the edits say."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ctxforge.checkpoint import TensorInfo
from ctxforge.errors import CheckpointError, InternalError, UnsupportedError, UsageError
from ctxforge.rope import find_method, lower, make_plan, prove, read_rotations, understand
from tests.rope.test_geometry import LLAMA, LLAMA31


def tensors(dtype: str = "BF16", layers: int = 4) -> dict[str, TensorInfo]:
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(layers)]
    return {name: TensorInfo(name, dtype, (4096, 4096), "model.safetensors", 0, 0) for name in names}


def convert(config: dict[str, Any], method: str, to: int, **options: Any) -> Any:
    geometry = understand(config)
    plan = make_plan(geometry, find_method(method), to, **options)
    lowered = lower(plan, geometry, config, tensors())
    agreement = prove(plan, lowered, lowered.config)
    assert max(agreement.values(), default=0) < 1e-9
    return plan, lowered


def test_both_dialects_are_written_and_agree() -> None:
    _plan, lowered = convert(LLAMA, "yarn", 65536)
    config = lowered.config
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"] == 10000.0
    assert {**config["rope_scaling"], "rope_theta": 10000.0} == config["rope_parameters"]
    assert config["max_position_embeddings"] == 65536
    assert type(config["max_position_embeddings"]) is int
    assert type(config["rope_scaling"]["original_max_position_embeddings"]) is int
    assert type(config["rope_scaling"]["factor"]) is float
    assert "attention_factor" not in config["rope_scaling"]


def test_source_config_is_not_touched_and_key_order_is_kept() -> None:
    before = copy.deepcopy(LLAMA31)
    _plan, lowered = convert(LLAMA31, "ntk", 262144)
    assert before == LLAMA31
    kept = [key for key in lowered.config if key in LLAMA31]
    assert kept == list(LLAMA31)


def test_sorted_configs_stay_sorted() -> None:
    _plan, lowered = convert(dict(sorted(LLAMA.items())), "yarn", 65536)
    assert list(lowered.config) == sorted(lowered.config)


def test_scaling_in_force_is_multiplied() -> None:
    plan, lowered = convert(LLAMA31, "pi", 262144)
    assert plan.composed
    assert plan.scale == 2.0
    old = understand(LLAMA31).groups[0].in_force.divisors
    assert plan.groups[0].rotation.divisors == pytest.approx([2 * d for d in old])
    assert lowered.config["rope_scaling"]["rope_type"] == "longrope"
    assert any("already in force" in line for line in plan.warnings)
    # A config must never say llama3's original length at top level once its type is gone.
    assert "original_max_position_embeddings" not in lowered.config


def test_yarn_on_a_scaled_source_ramps_on_the_frequencies_that_the_weights_know() -> None:
    plan, _ = convert(LLAMA31, "yarn", 262144)
    group = plan.groups[0]
    old = understand(LLAMA31).groups[0].in_force.divisors
    new = [total / before for total, before in zip(group.rotation.divisors, old, strict=True)]
    import math

    for i, divisor in enumerate(new):
        turns = 131072 * 500000.0 ** (-2 * i / 128) / old[i] / (2 * math.pi)
        if turns > 40:
            assert divisor == pytest.approx(1.0)
        if turns < 0.8:
            assert divisor == pytest.approx(2.0)


def test_restart_drops_the_scaling_and_says_so() -> None:
    plan, lowered = convert(LLAMA31, "yarn", 262144, original_length=8192)
    assert not plan.composed
    assert plan.scale == 32.0
    assert lowered.config["rope_scaling"]["rope_type"] == "yarn"
    assert lowered.config["rope_scaling"]["original_max_position_embeddings"] == 8192
    assert any("dropped" in line for line in plan.warnings)


def test_linear_then_linear_is_linear() -> None:
    source = {**LLAMA, "max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}}
    with pytest.raises(UnsupportedError, match="not decidable") as caught:
        convert(source, "pi", 32768)
    assert "--original-length" in caught.value.remedy
    geometry = understand(source, trained_length=16384)
    plan = make_plan(geometry, find_method("pi"), 32768)
    lowered = lower(plan, geometry, source, {})
    assert lowered.config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize("method", ["ntk-by-parts", "yarn"])
def test_temperature_is_folded_on_the_rotated_rows(method: str) -> None:
    options = {"temperature": 1.0} if method == "yarn" else {}
    _plan, lowered = convert(LLAMA, method, 65536, **options)
    assert lowered.config["rope_scaling"]["rope_type"] == "yarn"
    assert lowered.folded[None] == pytest.approx(1 / 1.2772588722239782**2)
    assert [edit.rows for edit in lowered.tensors] == [((0, 4096),)] * 4


def test_fused_and_partial_queries() -> None:
    neox = {
        "model_type": "gpt_neox",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "max_position_embeddings": 2048,
    }
    names = [f"gpt_neox.layers.0.attention.query_key_value.{part}" for part in ("weight", "bias")]
    index = {name: TensorInfo(name, "F16", (768, 256), "model.safetensors", 0, 0) for name in names}
    geometry = understand(neox)
    plan = make_plan(geometry, find_method("ntk-by-parts"), 8192)
    edits = lower(plan, geometry, neox, index).tensors
    assert [edit.tensor for edit in edits] == names
    assert edits[0].rows == ((0, 16), (192, 208), (384, 400), (576, 592))


def test_quantised_weights_refuse_a_fold() -> None:
    geometry = understand(LLAMA)
    plan = make_plan(geometry, find_method("ntk-by-parts"), 65536)
    with pytest.raises(UnsupportedError, match="quantised"):
        lower(plan, geometry, LLAMA, tensors("F8_E4M3"))
    packed = "model.layers.0.self_attn.q_proj.qweight"
    with pytest.raises(UnsupportedError, match="quantised"):
        lower(plan, geometry, LLAMA, {packed: TensorInfo(packed, "I32", (1, 1), "x", 0, 0)})
    with pytest.raises(CheckpointError, match="no tensor"):
        lower(plan, geometry, LLAMA, {"other": TensorInfo("other", "BF16", (1,), "x", 0, 0)})


@pytest.mark.parametrize("target", [4096, 1000, 2**35])
def test_absurd_targets(target: int) -> None:
    with pytest.raises(UsageError):
        make_plan(understand(LLAMA), find_method("yarn"), target)


def test_dynamic_keeps_the_trained_length_and_warns() -> None:
    plan, lowered = convert(LLAMA, "dynamic-ntk", 16384)
    assert lowered.config["max_position_embeddings"] == 4096
    assert any("not reproducible" in line for line in plan.warnings)
    with pytest.raises(UnsupportedError):
        make_plan(understand(LLAMA31), find_method("dynamic-ntk"), 262144)


def test_the_proof_catches_a_wrong_emission() -> None:
    plan, lowered = convert(LLAMA, "yarn", 65536)
    for change in (
        {"rope_theta": 10001.0},
        {"rope_scaling": {**lowered.config["rope_scaling"], "factor": 15.0}},
        {"rope_scaling": {**lowered.config["rope_scaling"], "attention_factor": 1.0}},
        {"rope_scaling": None},
    ):
        with pytest.raises(InternalError):
            prove(plan, lowered, {**lowered.config, **change})


def test_longrope_reads_alike_in_both_majors() -> None:
    """4.x takes another default temperature for longrope: the emitted dict must spell it out."""
    _plan, lowered = convert(LLAMA31, "ntk", 262144)
    scaling = lowered.config["rope_scaling"]
    assert scaling["attention_factor"] == pytest.approx((1 + 0.6931471805599453 / 11.783502069519907) ** 0.5)
    silent = {**lowered.config, "rope_scaling": {k: v for k, v in scaling.items() if k != "attention_factor"}}
    four = read_rotations(silent, "llama", "transformers 4")[None].rotation.temperature
    five = read_rotations(silent, "llama", "transformers 5")[None].rotation.temperature
    assert abs(four - five) > 1e-4


def test_method_none_needs_no_length() -> None:
    source = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}
    plan = make_plan(understand(source), find_method("none"), None)
    assert not plan.changed
    assert lower(plan, understand(source), source, {}).config == source
