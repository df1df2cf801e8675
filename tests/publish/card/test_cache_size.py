"""The size of a KV cache from the config alone, against caches that transformers fills."""

from __future__ import annotations

from typing import Any

import pytest

from ctxforge.publish.card.cache_size import cache_size
from tests.publish.card.builders import card, conversion, part

COMMON = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "num_hidden_layers": 3, "num_key_value_heads": 2},
    "qwen3": {**COMMON, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16},
    "gpt_neox": {**COMMON, "num_hidden_layers": 2},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mistral": {**COMMON, "num_hidden_layers": 2, "num_key_value_heads": 2, "sliding_window": 8},
    "gemma3_text": {
        **COMMON,
        **{"num_hidden_layers": 6, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8},
    },
}
TOKENS = 24


@pytest.mark.parametrize("model_type", MODELS)
def test_as_large_as_a_cache_that_is_full(model_type: str) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

    config = CONFIG_MAPPING[model_type](**MODELS[model_type])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.arange(TOKENS)[None] % 64, cache=cache, use_cache=True)
    kept = [layer.keys for layer in cache.layers]
    counted = sum(2 * keys.numel() * keys.element_size() for keys in kept)
    found = cache_size({**config.to_dict(), "dtype": "float32"}, TOKENS)
    assert found is not None
    # transformers' sliding layers keep the window less the token that comes next.
    windowed = sum(keys.shape[-2] < TOKENS for keys in kept)
    assert found.windowed == windowed
    assert found.layers == len(kept) - windowed
    assert found.bytes == counted + windowed * 2 * found.heads * found.head_dim * found.element


def test_other_kinds_of_cache_are_not_guessed() -> None:
    latent = {"model_type": "deepseek_v3", "num_hidden_layers": 2, "kv_lora_rank": 8, "qk_rope_head_dim": 4}
    assert cache_size({**COMMON, **latent}, 64) is None
    assert cache_size({"model_type": "mamba"}, 64) is None
    assert cache_size({}, 64) is None
    shared = {**MODELS["llama"], "model_type": "llama", "num_kv_shared_layers": 2}
    assert cache_size(shared, 64) is None


def test_in_the_card() -> None:
    """2 x 5 layers x 2 heads x 64 x 2 bytes a token: 5 MiB at 2048. A window's cost is told in its own words."""
    limits = part(card().text, "Limits")
    assert "the KV cache of one sequence of 2k tokens takes 5 MiB at 16 bits a number: 5 layers, 2 heads" in limits
    found = cache_size(conversion().emitted_config, 2048)
    assert found is not None
    assert found.bytes == 5 * 2**20
    attached = part(card("none", "lm-infinite").text, "Limits")
    assert "KV cache of one sequence" not in attached
    assert "a cache of G + W - 1 tokens" in attached
