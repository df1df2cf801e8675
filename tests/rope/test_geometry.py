"""Configs as their publishers wrote them, read right: trained length, scaling in force, windows, NoPE."""

from __future__ import annotations

from typing import Any

import pytest

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope import understand

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
}
LLAMA31 = {
    **LLAMA,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}


def test_llama31_is_understood() -> None:
    geometry = understand(LLAMA31)
    assert (geometry.original_length, geometry.trained_length) == (8192, 131072)
    divisors = geometry.groups[0].in_force.divisors
    assert (divisors[0], divisors[-1]) == (1.0, 8.0)


def test_qwen_with_yarn_and_an_unraised_maximum() -> None:
    config = {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
        "sliding_window": 131072,
        "use_sliding_window": False,
    }
    geometry = understand(config)
    assert (geometry.original_length, geometry.trained_length) == (32768, 131072)
    assert geometry.window is None
    assert geometry.groups[0].in_force.temperature == pytest.approx(1.138629, abs=1e-6)


def test_misstated_lengths_are_known() -> None:
    qwen3 = {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
    }
    assert understand(qwen3).trained_length == 32768
    mistral = {**LLAMA, "model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096}
    geometry = understand(mistral)
    assert (geometry.trained_length, geometry.window) == (8192, 4096)
    assert geometry.groups[0].windowed_layers == (0, 1, 2, 3)
    assert understand({**mistral, "sliding_window": None}).trained_length == 32768
    assert understand(mistral, trained_length=16384).trained_length == 16384


def test_linear_without_its_origin_is_not_guessed() -> None:
    geometry = understand({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}})
    assert geometry.trained_length is None
    assert "not decidable" in geometry.evidence


def test_gpt_oss_default_scaling_is_in_force() -> None:
    geometry = understand(
        {"model_type": "gpt_oss", "hidden_size": 2880, "num_attention_heads": 64, "num_hidden_layers": 4}
    )
    assert (geometry.original_length, geometry.trained_length, geometry.window) == (4096, 131072, 128)
    assert geometry.groups[0].windowed_layers == (0, 2)
    assert geometry.groups[0].in_force.temperature == pytest.approx(1.346574, abs=1e-6)


def test_gemma3_has_two_tables() -> None:
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "num_attention_heads": 4,
        "num_hidden_layers": 12,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
    }
    full, sliding = understand(config).groups
    assert (full.layers, full.base, full.extendable) == ((5, 11), 1e6, True)
    assert (sliding.base, sliding.extendable, len(sliding.layers)) == (1e4, False, 10)
    wrapped = {"model_type": "gemma3", "text_config": {**config, "model_type": "gemma3_text"}}
    assert understand(wrapped).groups == understand(config).groups


def test_unrotated_layers_and_partial_rotation() -> None:
    smollm3 = {**LLAMA, "model_type": "smollm3", "num_hidden_layers": 8, "no_rope_layers": [1, 1, 1, 0] * 2}
    geometry = understand(smollm3)
    assert geometry.unrotated_layers == (3, 7)
    assert geometry.groups[0].layers == (0, 1, 2, 4, 5, 6)
    neox = {
        "model_type": "gpt_neox",
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "rotary_emb_base": 20000,
    }
    group = understand(neox).groups[0]
    assert (group.rotated_dims, group.base) == (16, 20000)


def test_phi3_longrope_with_two_lists_is_length_dependent() -> None:
    config = {
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_attention_heads": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0 + i for i in range(48)]},
        "sliding_window": 262144,
    }
    geometry = understand(config)
    rotation = geometry.groups[0].in_force
    assert rotation.length_dependent
    assert rotation.divisors[-1] == 48
    assert rotation.temperature == pytest.approx(1.1902380714238083, abs=1e-12)
    assert (geometry.original_length, geometry.trained_length) == (4096, 131072)


def with_scaling(**scaling: Any) -> dict[str, Any]:
    return {**LLAMA, "rope_scaling": scaling}


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({**LLAMA, "model_type": "mamba"}, "not supported"),
        ({key: value for key, value in LLAMA.items() if key != "model_type"}, "no model_type"),
        ({**LLAMA, "rope_theta": "10000"}, "not a number"),
        ({**LLAMA, "rope_theta": float("nan")}, "not a finite number"),
        ({**LLAMA, "rope_theta": 1e300}, "not between"),
        ({**LLAMA, "hidden_size": 10**400}, "not a finite number"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "outside"),
        ({**LLAMA, "num_attention_heads": True}, "not a number"),
        ({**LLAMA, "max_position_embeddings": 4096.5}, "not a whole number"),
        ({**LLAMA, "max_position_embeddings": -1}, "outside"),
        ({**LLAMA, "head_dim": 63}, "even number"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (with_scaling(rope_type="spiral", factor=2.0), "spiral"),
        (with_scaling(rope_type="yarn", type="linear", factor=2.0), "contradict"),
        (with_scaling(rope_type="linear"), "no factor"),
        (with_scaling(rope_type="linear", factor=0.5), "below 1"),
        (with_scaling(rope_type="longrope", short_factor=[1.0], long_factor=[1.0]), "list of 64"),
        (with_scaling(rope_type="llama3", factor=2.0, low_freq_factor=4, high_freq_factor=1), "below low_freq_factor"),
        ({**LLAMA, "rope_scaling": [1, 2]}, "not an object"),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "contradicts itself"),
        (
            {
                **LLAMA,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            },
            "contradicts itself",
        ),
    ],
)
def test_bad_configs_are_refused_with_a_reason(config: dict[str, Any], word: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedError), match=word) as caught:
        understand(config)
    assert caught.value.remedy
