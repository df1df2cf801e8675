"""Configs as published models have them: what their RoPE really is, and what is written for them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope import find_method, lower, make_plan, prove, read_rotations, understand
from ctxforge.rope.reader import dialect_differences, legacy_note, legacy_refusal
from ctxforge.rope.types import UNROTATED

SIZES = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 4096}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_hidden_layers": 2,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
}


def tensors(**shapes: tuple[int, ...]) -> Any:
    """A tensor index; `__` in a name stands for a dot."""
    return {name.replace("__", "."): SimpleNamespace(dtype="BF16", shape=shape) for name, shape in shapes.items()}


def convert(config: dict[str, Any], method: str, target: int, index: Any, **options: Any) -> Any:
    """Plan, lower, prove and read back."""
    geometry = understand(config)
    plan = make_plan(geometry, find_method(method), target, **options)
    lowered = lower(plan, geometry, config, index)
    prove(plan, lowered, lowered.config)
    return lowered


def test_deepseek_v3_keeps_its_softmax_scale() -> None:
    geometry = understand(DEEPSEEK_V3)
    (group,) = geometry.groups
    assert (geometry.head_dim, group.rotated_dims, group.first_rotated, geometry.layout) == (
        192,
        64,
        128,
        "interleaved",
    )
    assert (geometry.original_length, geometry.trained_length) == (4096, 163840)
    # mscale = mscale_all_dim: cos and sin carry nothing, the softmax scale (0.1 ln 40 + 1)^2.
    assert group.in_force.temperature == pytest.approx(1.0)
    assert group.softmax_scale == pytest.approx((0.1 * math.log(40) + 1) ** 2, abs=1e-12)
    index = tensors(
        model__layers__0__self_attn__q_b_proj__weight=(128 * 192, 1536),
        model__layers__1__self_attn__q_b_proj__weight=(128 * 192, 1536),
    )
    lowered = convert(DEEPSEEK_V3, "yarn", 4 * 163840, index)
    for dialect in ("transformers 5", "transformers 4"):
        (table,) = read_rotations(lowered.config, "deepseek_v3", dialect).values()
        assert table.softmax_scale == pytest.approx(group.softmax_scale, rel=1e-12)
    # Only the rotated slice of each head is scaled.
    assert lowered.tensors[0].rows[:2] == ((128, 192), (320, 384))
    restarted = convert(DEEPSEEK_V3, "yarn", 4 * 163840, index, original_length=4096)
    assert "mscale_all_dim" not in restarted.config["rope_parameters"]


def test_pairing_that_the_config_decides() -> None:
    assert understand({**DEEPSEEK_V3, "rope_interleave": False}).layout == "half-split"


def test_deepseek_v2_differs_between_the_majors() -> None:
    """transformers 4.57 forgot DeepSeek-V2's softmax scale (huggingface/transformers#47435)."""
    lines = dialect_differences({**DEEPSEEK_V3, "model_type": "deepseek_v2"}, "deepseek_v2")
    assert any("softmax scale" in line for line in lines)


GEMMA4 = {
    "model_type": "gemma4_text",
    "hidden_size": 2304,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "head_dim": 256,
    "global_head_dim": 512,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    },
    "sliding_window": 512,
}


def test_proportional_rotates_the_first_pairs_of_the_whole_head() -> None:
    full, sliding = understand(GEMMA4).groups
    assert (full.rotated_dims, full.head_dim, full.layers) == (512, 512, (5,))
    assert full.in_force.divisors == (1.0,) * 64 + (UNROTATED,) * 192
    assert (sliding.rotated_dims, sliding.extendable) == (256, False)
    assert understand(GEMMA4).trained_length == 131072
    halved = {**GEMMA4["rope_parameters"]["full_attention"], "factor": 2.0}  # type: ignore[index]
    scaled = {**GEMMA4, "rope_parameters": {**GEMMA4["rope_parameters"], "full_attention": halved}}  # type: ignore[dict-item]
    assert understand(scaled).groups[0].in_force.divisors[:65] == (2.0,) * 64 + (UNROTATED,)


def test_gemma4_is_interpolated_in_its_own_type() -> None:
    """longrope lists don't load where head_dim differs by layer (transformers 5.24)."""
    lowered = convert(GEMMA4, "pi", 4 * 131072, {})
    written = lowered.config["rope_parameters"]
    assert written["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}
    assert written["full_attention"] == {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "factor": 4.0,
        "rope_theta": 1e6,
    }
    assert "rope_scaling" not in lowered.config
    based = convert(GEMMA4, "ntk", 4 * 131072, {}).config["rope_parameters"]["full_attention"]
    assert based["rope_type"] == "proportional"
    assert based["rope_theta"] > 1e6
    # Its slowest rotating pair makes hundreds of turns within the trained length: YaRN leaves all of them alone.
    yarn = convert(GEMMA4, "yarn", 4 * 131072, tensors(model__layers__5__self_attn__q_norm__weight=(512,)))
    assert yarn.config["rope_parameters"]["full_attention"]["rope_type"] == "proportional"
    assert yarn.tensors[0].rows == ((0, 512),)


def test_an_emitted_list_keeps_unrotated_pairs_still() -> None:
    config = {**SIZES, "model_type": "lfm3", "head_dim": 64}
    index = tensors(model__layers__2__self_attn__q_norm__weight=(64,))
    lowered = convert(config, "yarn", 16384, index)
    written = lowered.config["rope_parameters"]["full_attention"]
    assert written["rope_type"] == "longrope"
    assert "partial_rotary_factor" not in written
    table = read_rotations(lowered.config, "lfm3", "transformers 5")["full_attention"]
    assert table.rotation.divisors[16:] == (UNROTATED,) * 16
    assert table.rotation.divisors[0] == 1.0
    assert 1.0 < table.rotation.divisors[15] <= 4.0


def test_proportional_is_unknown_to_the_older_major() -> None:
    config = {**SIZES, "model_type": "llama", "rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}
    assert legacy_refusal(config, "llama") == "proportional"
    assert "load with 5.x" in str(legacy_note(config, "llama"))
    half = {**config, "rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": 0.5}}  # type: ignore[dict-item]
    assert understand(half).groups[0].in_force.divisors == (1.0,) * 16 + (UNROTATED,) * 16


def test_mrope_keys_are_carried_over() -> None:
    rope = {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    }
    text = {**SIZES, "model_type": "qwen3_5_text", "head_dim": 256, "rope_parameters": rope}
    config = {"model_type": "qwen3_5", "text_config": text}
    index = tensors(model__language_model__layers__3__self_attn__q_norm__weight=(256,))
    lowered = convert(config, "yarn", 16384, index)
    inner = lowered.config["text_config"]
    for holder in (inner["rope_parameters"], inner["rope_scaling"]):
        assert (holder["mrope_section"], holder["mrope_interleaved"]) == ([11, 11, 10], True)
        assert holder["rope_type"] == "yarn"
    assert understand(config).groups[0].layers == (3,)
    assert understand(config).groups[0].rotated_dims == 64


def test_query_temperature_by_position_keeps_its_length() -> None:
    ministral3 = {**SIZES, "model_type": "ministral3", "head_dim": 64, "max_position_embeddings": 262144}
    geometry = understand(ministral3)
    assert (geometry.original_length, geometry.trained_length) == (16384, 262144)
    assert geometry.groups[0].in_force.temperature == pytest.approx(1.0)
    assert any("llama_4_scaling_beta" in line for line in geometry.notes)
    index = {
        f"model.layers.{i}.self_attn.q_proj.weight": SimpleNamespace(dtype="BF16", shape=(256, 256)) for i in range(4)
    }
    lowered = convert(ministral3, "yarn", 4 * 262144, index)
    written = lowered.config["rope_parameters"]
    assert (written["llama_4_scaling_beta"], written["original_max_position_embeddings"]) == (0.1, 16384)
    assert written["rope_type"] == "longrope"


@pytest.mark.parametrize("model_type", ["cohere2", "exaone4", "afmoe", "llama4_text", "kolibri1", "beam", "lara_mini"])
def test_rope_in_windowed_layers_alone_is_not_extended(model_type: str) -> None:
    geometry = understand({**SIZES, "model_type": model_type, "num_hidden_layers": 6})
    assert geometry.nothing_to_extend is not None
    with pytest.raises(UnsupportedError, match="nothing to extend"):
        make_plan(geometry, find_method("pi"), 16384)
    assert make_plan(geometry, find_method("none"), None).changed is False


def test_exaone4_without_a_window_rotates_everywhere() -> None:
    geometry = understand({**SIZES, "model_type": "exaone4", "sliding_window": None})
    assert geometry.nothing_to_extend is None
    assert geometry.groups[0].layers == (0, 1, 2, 3)


def test_bases_by_layer() -> None:
    config = {**SIZES, "model_type": "granite_swa", "layer_rope_theta": [1e4, 0.0, 1e4, 1e4]}
    assert understand(config).groups[0].layers == (0, 2, 3)
    with pytest.raises(UnsupportedError, match="different bases"):
        understand({**config, "layer_rope_theta": [1e4, 1e6, 1e4, 1e4]})
    lowered = convert(config, "abf", 16384, {})
    base = lowered.config["rope_parameters"]["rope_theta"]
    assert lowered.config["layer_rope_theta"] == [base, 0.0, base, base]
    assert base > 1e4


def test_hunyuan_alpha_is_a_fixed_base() -> None:
    config = {
        **SIZES,
        "model_type": "hunyuan_v1_dense",
        "head_dim": 64,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0},
    }
    (group,) = understand(config).groups
    base = 1e4 * 1000 ** (64 / 62)
    wanted = [base ** (-2 * i / 64) for i in range(32)]
    found = [1e4 ** (-2 * i / 64) / divisor for i, divisor in enumerate(group.in_force.divisors)]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert not group.in_force.length_dependent
    assert understand(config).trained_length == 4096


def test_a_norm_after_the_rotation_cancels_a_temperature() -> None:
    config = {**SIZES, "model_type": "hunyuan_v1_dense", "head_dim": 64}
    index = {
        f"model.layers.{i}.self_attn.query_layernorm.weight": SimpleNamespace(dtype="BF16", shape=(64,))
        for i in range(4)
    }
    lowered = convert(config, "yarn", 16384, index)
    a = 0.1 * math.log(4) + 1
    assert lowered.folded[None] == pytest.approx(a * a, rel=1e-12)
    assert len(lowered.tensors) == 4
    with pytest.raises(UnsupportedError, match="no weight of this model can carry it"):
        convert({**SIZES, "model_type": "nanochat"}, "yarn", 16384, {})
    assert convert({**SIZES, "model_type": "nanochat"}, "yarn", 16384, {}, temperature=1.0).tensors == ()


def test_phimoe_writes_its_own_temperature_keys() -> None:
    index = {
        f"model.layers.{i}.self_attn.q_proj.weight": SimpleNamespace(dtype="BF16", shape=(256, 256)) for i in range(4)
    }
    lowered = convert({**SIZES, "model_type": "phimoe"}, "yarn", 16384, index)
    written = lowered.config["rope_parameters"]
    assert written["short_mscale"] == written["long_mscale"] == written["attention_factor"]
    assert dialect_differences(lowered.config, "phimoe") == []


@pytest.mark.parametrize(
    ("extra", "rows"),
    [
        ({"multi_query": True}, ((0, 256),)),
        ({"multi_query": False}, ((0, 64), (192, 256), (384, 448), (576, 640))),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, ((0, 128), (256, 384))),
    ],
)
def test_falcon_rows(extra: dict[str, Any], rows: tuple[tuple[int, int], ...]) -> None:
    config = {**SIZES, "model_type": "falcon", "num_hidden_layers": 1, **extra}
    index = tensors(transformer__h__0__self_attention__query_key_value__weight=(768, 256))
    lowered = convert(config, "mrrope-pro", 16384, index)
    assert lowered.tensors[0].rows == rows
    with pytest.raises(UnsupportedError, match="ALiBi"):
        understand({**config, "alibi": True})


def test_dbrx_bases_that_the_majors_read_apart() -> None:
    config = {
        "model_type": "dbrx",
        "d_model": 256,
        "n_heads": 4,
        "n_layers": 1,
        "max_seq_len": 32768,
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 500000},
    }
    with pytest.raises(CheckpointError, match="transformers 5 assumes 10000, transformers 4 500000"):
        understand(config)
    settled = {**config, "rope_theta": 500000.0}
    lowered = convert(settled, "abf", 65536, {}, parameters={"base": 2e6})
    assert lowered.config["attn_config"]["rope_theta"] == lowered.config["rope_parameters"]["rope_theta"]
    assert lowered.config["max_seq_len"] == 65536
    with pytest.raises(UnsupportedError, match="clamped"):
        convert(settled, "mrrope-pro", 65536, {})


def test_models_without_positions_are_refused_by_their_config() -> None:
    with pytest.raises(UnsupportedError, match="no positions"):
        understand({**SIZES, "model_type": "granitemoehybrid", "layer_types": ["full_attention"] * 4})
    null = {"rope_type": "default", "rope_theta": None}
    with pytest.raises(UnsupportedError, match="no positions"):
        understand({**SIZES, "model_type": "olmo_hybrid", "rope_parameters": null})
    with pytest.raises(UnsupportedError, match="no layer"):
        understand({**SIZES, "model_type": "bamba", "attn_layer_indices": []})


@pytest.mark.parametrize(
    ("scaling", "word"),
    [
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.0}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": -1.5}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": float("nan")}, "not a finite number"),
        ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 31, "long_factor": [1.0] * 32}, "list of 32"),
        (
            {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 32, "long_factor": [-1.0] + [2.0] * 31},
            "not positive",
        ),
        (
            {
                "rope_type": "longrope",
                "factor": 2.0,
                "short_factor": [1.0] * 32,
                "long_factor": [32.0 - i for i in range(32)],
            },
            "wrong order",
        ),
        ({"rope_type": "proportional", "partial_rotary_factor": 1.5}, "above 1"),
    ],
)
def test_bad_scalings_are_one_line(scaling: dict[str, Any], word: str) -> None:
    with pytest.raises(CheckpointError, match=word) as caught:
        understand({**SIZES, "model_type": "llama", "rope_parameters": {"rope_theta": 1e4, **scaling}})
    assert "\n" not in caught.value.cause
    assert caught.value.remedy


def test_mllama_names_its_type_even_when_nothing_is_scaled() -> None:
    """transformers 4.57 looks the type up in rope_scaling without asking whether there is one."""
    text = {**SIZES, "model_type": "mllama_text_model", "cross_attention_layers": [1]}
    config = {"model_type": "mllama", "text_config": text}
    assert understand(config).groups[0].layers == (0, 2, 3)
    written = convert(config, "ntk", 16384, {}).config["text_config"]
    assert written["rope_scaling"] == {"rope_type": "default"}
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] > 500_000
