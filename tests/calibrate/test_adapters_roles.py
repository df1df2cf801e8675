"""Roles come from a model's structure: the awkward architectures, what is left alone, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ctxforge.calibrate.adapters import find_roles, named_recipe
from ctxforge.calibrate.adapters.recipe import AdapterRecipe
from ctxforge.checkpoint import read_checkpoint
from ctxforge.errors import UnsupportedError, UsageError
from tests.architectures.tiny import LAYERS, build

QKVO = {"q_proj", "k_proj", "v_proj", "o_proj"}
# Leaf names of the attention projections, how many feed-forward projections, norms and heads.
EXPECTED: dict[str, tuple[set[str], int, int, int]] = {
    "llama": (QKVO, 3 * LAYERS, 2 * LAYERS + 1, 1),
    "gpt2": ({"c_attn", "c_proj"}, 2 * LAYERS, 2 * LAYERS + 1, 0),
    "gpt_neox": ({"query_key_value", "dense"}, 2 * LAYERS, 2 * LAYERS + 1, 1),
    "falcon": ({"query_key_value", "dense"}, 2 * LAYERS, LAYERS + 1, 0),
    "opt": ({"q_proj", "k_proj", "v_proj", "out_proj"}, 2 * LAYERS, 2 * LAYERS + 1, 0),
    "mpt": ({"Wqkv", "out_proj"}, 2 * LAYERS, 2 * LAYERS + 1, 0),
    "gemma2": (QKVO, 3 * LAYERS, 4 * LAYERS + 1, 0),
    "qwen3": (QKVO, 3 * LAYERS, 4 * LAYERS + 1, 1),
    "mixtral": (QKVO, 0, 2 * LAYERS + 1, 1),
    "qwen3_moe": (QKVO, 0, 4 * LAYERS + 1, 1),
    "deepseek_v2": ({"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}, 0, 4 * LAYERS + 1, 1),
    "olmo": (QKVO, 3 * LAYERS, 0, 1),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_roles_of_an_architecture(kind: str) -> None:
    attention, feed_forward, norms, heads = EXPECTED[kind]
    roles = find_roles(build(kind))
    leaves = Counter(name.rpartition(".")[2] for name in roles.modules["attention"])
    assert leaves == dict.fromkeys(attention, LAYERS)
    counts = [len(roles.modules[role]) for role in ("mlp", "norm", "head", "embedding")]
    assert counts == [feed_forward, norms, heads, 1]
    assert bool(roles.modules["positions"]) == (kind in ("gpt2", "opt"))


def test_experts_and_their_router_are_left_with_the_reason() -> None:
    roles = find_roles(build("qwen2_moe"))
    assert roles.modules["mlp"] == ()
    kept = {name.rpartition(".")[2]: reason for name, reason in roles.left.items()}
    assert {"experts", "gate", "up_proj", "shared_expert_gate"} <= set(kept)
    assert all("experts of a mixture" in kept[name] for name in ("experts", "gate", "up_proj"))


def test_linear_attention_and_state_spaces_are_left() -> None:
    roles = find_roles(build("bamba"))
    assert {name.rpartition(".")[2] for name in roles.modules["attention"]} == QKVO
    assert "mixes tokens without attention" in roles.left[next(n for n in roles.left if n.endswith("mamba.in_proj"))]


def test_a_tower_for_images_is_no_part_of_it() -> None:
    roles = find_roles(build("llama4"))
    assert not any("vision" in name for some in roles.modules.values() for name in some)
    assert len(roles.modules["attention"]) == 4 * LAYERS


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "xlnet"])
def test_a_model_without_attention_is_refused_by_what_was_looked_for(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="class is called Attention, nor a query projection"):
        find_roles(build(kind))


def test_a_linear_layer_that_computes_something_else_is_left() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    class Renamed(nn.Linear):
        pass

    model = build("llama")
    attention = model.model.layers[0].self_attn
    attention.q_proj.__class__, attention.k_proj.__class__ = Doubled, Renamed
    roles = find_roles(model)
    assert "model.layers.0.self_attn.k_proj" in roles.modules["attention"]
    assert roles.left["model.layers.0.self_attn.q_proj"] == "Doubled is not a plain linear layer"


def test_quantised_weights_are_refused() -> None:
    model = build("llama")
    projection = model.model.layers[1].mlp.up_proj
    projection.weight = nn.Parameter(projection.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedError, match=r"quantised .*float8_e4m3fn"):
        find_roles(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "rank of 0"),
        ({"alpha": float("nan")}, "alpha of nan"),
        ({"dropout": 1.0}, "dropout of 1.0"),
        ({"low_rank": ("norm",)}, "norm cannot have a low-rank change"),
        ({"whole": ("attention",)}, "both whole and low-rank"),
        ({"whole": ("router",)}, "no role 'router'"),
        ({"low_rank": ()}, "trains nothing"),
        ({"size": 3}, "cannot be changed so"),
    ],
)
def test_recipes_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        named_recipe("lora", **changes)


def test_recipes_by_name() -> None:
    assert named_recipe("lora", rank=16, alpha=32.0).scale == 2.0
    assert named_recipe("rslora", rank=16, alpha=32.0).scale == 8.0
    assert named_recipe("lora+").whole == ("norm", "embedding")
    for name in ("lora", "rslora", "lora+", "full"):
        recipe = named_recipe(name)
        assert AdapterRecipe.from_document(recipe.document()) == recipe
    with pytest.raises(UsageError, match="no adapter 'dora'"):
        named_recipe("dora")


def test_a_digest_does_not_depend_on_the_files(tmp_path: Path) -> None:
    """A digest is of names and numbers: the same for one file and for two."""
    from ctxforge.calibrate.adapters import weights_digest
    from tests.calibrate.test_merge_checkpoint import shard
    from tests.tiny_models import save_tiny

    base = save_tiny("qwen2", tmp_path / "base")
    found = weights_digest(read_checkpoint(base))
    assert weights_digest(read_checkpoint(shard(base, tmp_path / "shards", 2))) == found
    assert weights_digest(read_checkpoint(save_tiny("qwen2", tmp_path / "other", seed=1))) != found
