"""Methods with custom code through the stages: parameters, configs, composition, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxforge import positions, rope
from ctxforge.errors import CtxforgeError, InternalError, UnsupportedError, UsageError
from ctxforge.positions.alibi_architectures import ALIBI
from ctxforge.rope.custom_code import SERVED, SYSTEMS, base_model_type, detach, find_code
from ctxforge.rope.methods import find_method
from ctxforge.templates_dir import modeling_file, templates_dir
from tests.modeling.emitted import TARGET, read_config

Folders = Callable[[Any], Path]
BLOOM = {"model_type": "bloom", "n_layer": 24, "n_head": 16, "architectures": ["BloomForCausalLM"]}


def llama(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        **changes,
    }


def lowered(config: dict[str, Any], method: str, target: int, **options: Any) -> dict[str, Any]:
    """The emitted config of a conversion, proved."""
    stages: Any = rope if positions.scheme(config) == "rope" else positions
    geometry = stages.understand(config)
    plan = stages.make_plan(geometry, find_method(method), target, **options)
    found = stages.lower(plan, geometry, config, {})
    stages.prove(plan, found, found.config)
    return dict(found.config)


def parameters(config: dict[str, Any]) -> dict[str, Any]:
    return dict(config["ctxforge"]["parameters"])


def test_xpos_of_llama_2() -> None:
    config = lowered(llama(), "xpos", 32768)
    assert parameters(config) == {"scale_base": 16384.0, "block_length": None}
    assert config["max_position_embeddings"] == 32768
    assert config["rope_theta"] == 10000.0
    assert config["model_type"] == "ctxforge_llama"
    assert config["architectures"] == ["CtxforgeLlamaForCausalLM"]
    assert base_model_type(config) == "llama"
    abf = lowered(llama(), "xpos-abf", 32768)
    assert abf["rope_theta"] == 500000.0


def test_dynamic_yarn_of_llama_2() -> None:
    """The ramp of Llama-2 runs from pair 20 to 46 (c(32) = 20.9, c(1) = 45.03); the config keeps plain keys."""
    config = lowered(llama(), "dynamic-yarn", 32768)
    found = parameters(config)
    ramp = found["ramp"]
    assert (found["original_length"], found["steps"], len(ramp)) == (4096, 8, 64)
    low = math.floor(128 * math.log(4096 / (2 * math.pi * 32)) / (2 * math.log(10000)))
    high = math.ceil(128 * math.log(4096 / (2 * math.pi)) / (2 * math.log(10000)))
    assert ramp == pytest.approx([min(max((i - low) / (high - low), 0), 1) for i in range(64)])
    assert config.get("rope_scaling") is None


@pytest.mark.parametrize("method", ["xpos", "dynamic-yarn"])
def test_unserved_architectures_are_refused(method: str) -> None:
    gemma = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "max_position_embeddings": 32768,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "hidden_size": 2304,
    }
    with pytest.raises(UnsupportedError) as refusal:
        lowered(gemma, method, 131072)
    assert "gemma3_text" in refusal.value.cause
    assert "llama" in refusal.value.remedy


def test_other_heads_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="causal language models"):
        lowered(llama(architectures=["LlamaForSequenceClassification"]), "xpos", 8192)


@pytest.mark.parametrize(
    ("method", "given_parameters"),
    [
        ("xpos", {"block_length": 1}),
        ("xpos", {"scale_base": 0}),
        ("xpos-abf", {"base": 5000}),
        ("dynamic-yarn", {"steps": 0}),
        ("dynamic-yarn", {"beta_fast": 1, "beta_slow": 32}),
        ("alibi-interpolation", {"dynamic": "perhaps"}),
    ],
)
def test_bad_parameters_are_refused(method: str, given_parameters: dict[str, Any]) -> None:
    config = BLOOM if method.startswith("alibi") else llama()
    with pytest.raises(UsageError):
        lowered(config, method, 8192, parameters=given_parameters)


def test_code_is_not_multiplied_onto_a_scaling_nor_a_method_onto_code() -> None:
    scaled = llama(rope_scaling={"rope_type": "linear", "factor": 2.0}, max_position_embeddings=8192)
    for method in ("xpos", "dynamic-yarn"):
        with pytest.raises(UnsupportedError, match="scaling"):
            lowered(scaled, method, 32768)
    ours = lowered(llama(), "dynamic-yarn", 32768)
    with pytest.raises(UnsupportedError, match="custom code"):
        lowered(ours, "yarn", 65536)


def test_a_restart_leaves_nothing_of_the_code() -> None:
    ours = lowered(llama(), "dynamic-yarn", 32768)
    config = lowered(ours, "pi", 32768, original_length=4096)
    assert config == lowered(llama(), "pi", 32768)
    assert find_code(ours) is not None
    assert find_code(config) is None
    assert detach(llama()) == llama()


def test_slopes_of_bloom_without_a_stated_length() -> None:
    geometry = positions.understand(BLOOM)
    assert (geometry.trained_length, geometry.layers, geometry.heads) == (2048, 24, 16)
    assert "published models were trained at 2048" in geometry.evidence
    config = lowered(BLOOM, "alibi-interpolation", 4096)
    assert parameters(config) == {"factor": 0.5, "dynamic": False, "original_length": 2048}
    assert config["seq_length"] == 4096
    assert lowered({**BLOOM, "seq_length": 1024}, "alibi-interpolation", 4096)["seq_length"] == 4096


@given(st.integers(2, 4096), st.lists(st.integers(2, 4), min_size=1, max_size=4), st.booleans())
def test_scaled_slopes_compose(length: int, scales: list[int], dynamic: bool) -> None:
    """However many conversions: the factor is L0 over the last target, and restarting gives the same."""
    config: dict[str, Any] = {**BLOOM, "seq_length": length}
    target = length
    for scale in scales:
        target *= scale
        config = lowered(config, "alibi-interpolation", target, parameters={"dynamic": dynamic})
    assert parameters(config) == {"factor": length / target, "dynamic": dynamic, "original_length": length}
    again = lowered(config, "alibi-interpolation", 2 * length, original_length=length)
    assert again == lowered({**BLOOM, "seq_length": length}, "alibi-interpolation", 2 * length)


def test_alibi_refusals() -> None:
    mpt = {"model_type": "mpt", "architectures": ["MPTForCausalLM"], "max_seq_len": 2048, "n_heads": 32, "n_layers": 32}
    assert parameters(lowered(mpt, "alibi-interpolation", 4096))["factor"] == 0.5
    for entry in ({"alibi": False}, {"alibi_bias_max": 16}, {"attn_type": "multiquery_attention"}, {"qk_ln": True}):
        with pytest.raises(UnsupportedError, match=next(iter(entry))):
            lowered({**mpt, "attn_config": entry}, "alibi-interpolation", 4096)
    for method, message in (("yarn", "has ALiBi"), ("learned-interpolation", "has ALiBi")):
        with pytest.raises(UnsupportedError, match=message):
            lowered(mpt, method, 4096)
    with pytest.raises(UsageError, match="no temperature"):
        lowered(mpt, "alibi-interpolation", 4096, temperature=1.1)
    with pytest.raises(UsageError, match="not longer"):
        lowered(mpt, "alibi-interpolation", 2048)
    with pytest.raises(CtxforgeError, match="RoPE"):
        lowered(llama(), "alibi-interpolation", 8192)
    assert positions.scheme({"model_type": "falcon", "alibi": False}) == "rope"
    assert positions.scheme({"model_type": "falcon", "alibi": True}) == "alibi"


def test_the_proof_finds_a_wrong_factor() -> None:
    geometry = positions.understand(BLOOM)
    plan = positions.make_plan(geometry, find_method("alibi-interpolation"), 4096)
    found = positions.lower(plan, geometry, BLOOM, {})
    for change in ({"factor": 0.51}, {"original_length": 4096}):
        entry = {**found.config["ctxforge"], "parameters": {**found.config["ctxforge"]["parameters"], **change}}
        with pytest.raises(InternalError):
            positions.prove(plan, found, {**found.config, "ctxforge": entry})
    with pytest.raises(InternalError):
        positions.prove(plan, found, {**found.config, "seq_length": 2048})


def test_rows_name_classes_and_files_that_exist() -> None:
    import transformers

    prefixes = {**SERVED, **{model_type: row.class_prefix for model_type, row in ALIBI.items()}}
    for model_type, prefix in prefixes.items():
        assert getattr(transformers, f"{prefix}Config").model_type == model_type
        for suffix in ("Model", "ForCausalLM"):
            assert getattr(transformers, f"{prefix}{suffix}").config_class.model_type == model_type
    for system in SYSTEMS.values():
        assert system.attention.encode() in modeling_file(system.file)
    assert (templates_dir() / "recipes").is_dir()


def test_the_whole_command(cli: Callable[..., Any], sources: Folders, tmp_path: Path) -> None:
    """extend, then inspect and check of the result."""
    for kind, method in (("llama", "dynamic-yarn"), ("bloom", "alibi-interpolation")):
        out = tmp_path / kind
        ran = cli("extend", sources(kind), "--method", method, "--to", TARGET, "--out", out)
        assert ran.code == 0, ran.err
        assert (out / "ctxforge_runtime.py").read_bytes() == modeling_file("ctxforge_runtime.py")
        assert read_config(out)["model_type"] == f"ctxforge_{kind}"
        assert cli("inspect", out).code == 0
        assert cli("check", out).code == 0
