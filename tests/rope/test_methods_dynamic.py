"""Methods whose table follows the length: what they hand to their modeling files, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ctxforge import rope
from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.rope.clex_ode import clex_frequencies
from ctxforge.rope.methods import find_method
from tests.modeling.reference import dynamic_ntk

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
}
PAIRS = 16


def lowered(method: str, target: int, config: dict[str, Any] | None = None, **parameters: Any) -> dict[str, Any]:
    """The emitted config, proved."""
    config = config or LLAMA
    geometry = rope.understand(config)
    plan = rope.make_plan(geometry, find_method(method), target, parameters=parameters)
    found = rope.lower(plan, geometry, config, {})
    rope.prove(plan, found, found.config)
    return dict(found.config)


def tables(scales: int) -> list[float]:
    """A CLEX model's that has not been trained: NTK-aware by 2t - 1."""
    up, down = [[0.0] * 4] * PAIRS, [[0.0] * PAIRS] * 4
    return [f for t in range(1, scales + 1) for f in clex_frequencies(up, down, 10000.0, t)]


def test_exact_dynamic_ntk_leaves_the_config_plain() -> None:
    config = lowered("dynamic-ntk-exact", 32768, factor=2, steps=4)
    entry = config["ctxforge"]
    assert entry["system"] == "dynamic_ntk_exact"
    assert entry["parameters"] == {"original_length": 4096, "steps": 4, "factor": 2.0}
    assert config.get("rope_scaling") is None
    assert config["rope_theta"] == 10000.0
    assert config["max_position_embeddings"] == 32768
    assert lowered("dynamic-ntk", 32768)["rope_scaling"]["rope_type"] == "dynamic"


@pytest.mark.parametrize("length", [4096, 4608, 8192, 30720])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_reference_table_is_that_of_transformers(length: int, factor: float) -> None:
    """At a length where a step ends, transformers' `dynamic` has the same table for its last query."""
    config = LlamaConfig(
        **{**LLAMA, "rope_parameters": {"rope_type": "dynamic", "factor": factor, "rope_theta": 10000.0}}
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=length)
    plain = 10000.0 ** (-torch.arange(PAIRS, dtype=torch.float64) / PAIRS)
    last = torch.zeros(length, 1, dtype=torch.float64)
    last[-1] = 1e-3  # a distance so small that the phase tells the frequency
    phases = dynamic_ntk(4096, 8, factor)(last, plain)[-1, 0].angle() / 1e-3
    assert phases.tolist() == pytest.approx(theirs.tolist(), rel=1e-5)


def test_tables_of_clex_reach_the_modeling_file(tmp_path: Path) -> None:
    given = tables(4)
    (tmp_path / "tables.json").write_text(json.dumps(given))
    entry = lowered("clex-dynamic", 16384, frequencies=str(tmp_path / "tables.json"))["ctxforge"]
    assert entry["system"] == "clex_dynamic"
    assert entry["parameters"] == {"original_length": 4096, "steps": 1, "tables": given}


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("dynamic-ntk-exact", {"steps": 0}, "steps=0"),
        ("dynamic-ntk-exact", {"factor": -1}, "positive"),
        ("clex-dynamic", {}, "needs frequencies"),
        ("clex-dynamic", {"frequencies": tables(4)[:-1]}, "no whole tables"),
        ("clex-dynamic", {"frequencies": []}, "empty list"),
        ("clex-dynamic", {"frequencies": tables(3)}, "3 tables reach 12288 tokens"),
        ("clex-dynamic", {"frequencies": tables(5)[PAIRS:]}, "not the model's own"),
        ("clex-dynamic", {"frequencies": [*tables(4)[:-1], -1.0]}, "number 15 of frequencies is -1"),
    ],
)
def test_bad_parameters_are_refused(method: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lowered(method, 16384, **parameters)


@pytest.mark.parametrize("method", ["dynamic-ntk-exact", "clex-dynamic"])
def test_a_scaling_in_force_is_refused(method: str) -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096}
    scaled = {**LLAMA, "rope_scaling": scaling, "max_position_embeddings": 8192}
    parameters = {"frequencies": tables(8)} if method == "clex-dynamic" else {}
    with pytest.raises(UnsupportedError, match="multiplied onto a scaling"):
        lowered(method, 32768, scaled, **parameters)


def test_two_rotated_dimensions_have_no_ntk_base() -> None:
    narrow = {**LLAMA, "hidden_size": 16, "head_dim": 2}
    with pytest.raises(UnsupportedError, match="undefined for 2"):
        lowered("dynamic-ntk-exact", 16384, narrow)
