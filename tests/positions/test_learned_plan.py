"""Configs of models with learned positions: understood, planned, lowered, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ctxforge
from ctxforge.checkpoint import ResampleRows, TensorInfo
from ctxforge.errors import CheckpointError, CtxforgeError, InternalError, UnsupportedError, UsageError
from ctxforge.positions import lower, make_plan, prove, scheme, understand
from ctxforge.positions.architectures import LEARNED
from ctxforge.rope.methods import find_method

METHOD = find_method("learned-interpolation")

# From the models' public configs: GPT-2 small, GPT-SW3 126m, OPT-6.7b, GPT-Neo 1.3B, SantaCoder's and BioGPT's.
PUBLISHED: dict[str, tuple[dict[str, Any], int, int, int, int]] = {
    "gpt2": ({"n_positions": 1024, "n_ctx": 1024, "n_layer": 12, "n_head": 12}, 1024, 12, 12, 0),
    "gpt-sw3": ({"n_positions": 2048, "n_layer": 12, "n_head": 12}, 2048, 12, 12, 0),
    "opt": ({"max_position_embeddings": 2048, "num_hidden_layers": 32, "num_attention_heads": 32}, 2048, 32, 32, 2),
    "gpt_neo": (
        {
            "max_position_embeddings": 2048,
            "num_layers": 24,
            "num_heads": 16,
            "attention_types": [[["global", "local"], 12]],
            "window_size": 256,
        },
        2048,
        24,
        16,
        0,
    ),
    "gpt_bigcode": ({"n_positions": 2048, "n_layer": 24, "n_head": 16}, 2048, 24, 16, 0),
    "openai-gpt": ({"n_positions": 512, "n_ctx": 512, "n_layer": 12, "n_head": 12}, 512, 12, 12, 0),
    "biogpt": ({"max_position_embeddings": 1024}, 1024, 24, 16, 2),
}


def table(name: str, rows: int, width: int = 8) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", (rows, width), "model.safetensors", 100, 100 + 4 * rows * width)}


@pytest.mark.parametrize("kind", LEARNED)
def test_published_configs(kind: str) -> None:
    config, length, layers, heads, offset = PUBLISHED[kind]
    config = {"model_type": kind, **config}
    assert scheme(config) == "learned"
    found = understand(config)
    assert (found.trained_length, found.original_length, found.max_position_embeddings) == (length, length, length)
    assert (found.layers, found.heads, found.offset) == (layers, heads, offset)
    assert found.windowed_layers == (tuple(range(1, 24, 2)) if kind == "gpt_neo" else ())
    assert found.window == (256 if kind == "gpt_neo" else None)
    for name in LEARNED[kind].tensors:
        plan = make_plan(found, METHOD, 3 * length)
        lowered = lower(plan, found, config, table(name, length + offset))
        assert lowered.tensors == (ResampleRows(name, 3 * length, offset, length),)
        assert list(lowered.config) == list(config) + [key for key in lowered.config if key not in config]
        assert {key for key in lowered.config if lowered.config[key] != config.get(key)} == {
            key for key in ("n_positions", "n_ctx", "max_position_embeddings") if key in config
        }
        assert prove(plan, lowered, lowered.config) == {"table": 0.0}


@pytest.mark.parametrize("kind", LEARNED)
def test_a_silent_config_has_the_class_s_defaults(kind: str) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(kind)
    found = understand({"model_type": kind})
    assert found.max_position_embeddings == theirs.max_position_embeddings
    assert (found.layers, found.heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
    plan = make_plan(found, METHOD, 4096)
    lowered = lower(
        plan, found, {"model_type": kind}, table(LEARNED[kind].tensors[0], found.trained_length + found.offset)
    )
    assert type(theirs).from_dict(lowered.config).max_position_embeddings == 4096


def test_other_models_are_left_to_rope() -> None:
    assert scheme({"model_type": "llama"}) == "rope"
    assert scheme({"model_type": ["gpt2"]}) == "rope"
    assert scheme({}) == "rope"
    assert scheme({"model_type": "falcon"}) == "rope"


@pytest.mark.parametrize(
    ("config", "kind", "cause"),
    [
        ({"n_positions": 1024, "max_position_embeddings": 2048}, CheckpointError, "n_positions=1024 and max_position"),
        ({"n_positions": "1024"}, CheckpointError, "not a number"),
        ({"n_positions": 1}, CheckpointError, "outside 2"),
        ({"n_positions": -3}, CheckpointError, "outside 2"),
        ({"n_positions": 10.5}, CheckpointError, "not a whole number"),
        ({"n_layer": 10**9}, CheckpointError, "outside"),
        ({"model_type": "gpt_neo", "attention_types": [[["local"], 3]]}, CheckpointError, "each of 24 layers"),
        ({"model_type": "gpt_neo", "attention_types": "local"}, CheckpointError, "each of 24 layers"),
        ({"model_type": "gpt_neo", "attention_types": [["local", 24]]}, CheckpointError, "each of 24 layers"),
        ({"model_type": "gpt_neo", "attention_types": [[["local"], 10**12]]}, CheckpointError, "each of 24 layers"),
    ],
)
def test_malformed_configs(config: dict[str, Any], kind: type[CtxforgeError], cause: str) -> None:
    with pytest.raises(kind, match=cause) as caught:
        understand({"model_type": "gpt2", **config})
    assert caught.value.remedy


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
KEYS = ["n_positions", "n_ctx", "max_position_embeddings", "n_layer", "num_layers", "n_head", "attention_types"]


@given(st.sampled_from(sorted(LEARNED)), st.dictionaries(st.sampled_from([*KEYS, "window_size"]), JSON, max_size=4))
def test_any_config_ends_in_a_geometry_or_in_an_error_with_a_remedy(kind: str, config: dict[str, Any]) -> None:
    config = {"model_type": kind, **config}
    try:
        found = understand(config)
        plan = make_plan(found, METHOD, 2 * found.max_position_embeddings)
        name = LEARNED[kind].tensors[0]
        lowered = lower(plan, found, config, table(name, found.max_position_embeddings + found.offset))
        prove(plan, lowered, lowered.config)
    except (CheckpointError, UsageError) as error:
        told = error.remedy and "\n" not in error.cause
        if not told:
            raise AssertionError(error.cause, error.remedy) from error


@given(st.integers(2, 5000), st.integers(1, 300_000))
def test_every_length_is_proved(original: int, more: int) -> None:
    config = {"model_type": "opt", "max_position_embeddings": original}
    found = understand(config)
    target = original + more
    if target > 4096 * original:
        with pytest.raises(UsageError, match="times the trained length"):
            make_plan(found, METHOD, target)
        return
    plan = make_plan(found, METHOD, target)
    assert plan.scale == target / original
    lowered = lower(plan, found, config, table("decoder.embed_positions.weight", original + 2))
    assert prove(plan, lowered, lowered.config)["table"] == 0


def test_proof_catches_what_is_wrong() -> None:
    from dataclasses import replace

    config = {"model_type": "opt", "max_position_embeddings": 64}
    found = understand(config)
    plan = make_plan(found, METHOD, 256)
    lowered = lower(plan, found, config, table("model.decoder.embed_positions.weight", 66))
    name = "model.decoder.embed_positions.weight"
    for edits in (
        (),
        (ResampleRows(name, 256, 0, 64),),
        (ResampleRows(name, 258, 2, 64),),
        (ResampleRows(name, 256, 2, 63),),
        (ResampleRows("lm_head.weight", 256, 2, 64),),
        lowered.tensors * 2,
    ):
        with pytest.raises(InternalError):
            prove(plan, replace(lowered, tensors=edits), lowered.config)
    with pytest.raises(InternalError, match="256 positions"):
        prove(plan, lowered, {**lowered.config, "max_position_embeddings": 128})


def test_refusals() -> None:
    gpt2 = understand({"model_type": "gpt2"})
    with pytest.raises(UnsupportedError, match="yarn changes rotary positions") as caught:
        make_plan(gpt2, find_method("yarn"), 4096)
    assert "learned-interpolation" in caught.value.remedy
    with pytest.raises(UsageError, match="no temperature"):
        make_plan(gpt2, METHOD, 4096, temperature=1.1)
    with pytest.raises(UsageError, match="no parameter"):
        make_plan(gpt2, METHOD, 4096, parameters={"factor": 2})
    with pytest.raises(UsageError, match="cannot be taken back to 512"):
        make_plan(gpt2, METHOD, 4096, original_length=512)
    with pytest.raises(UsageError, match="not longer than the 1024"):
        make_plan(gpt2, METHOD, 1024)
    with pytest.raises(UsageError, match="no target length"):
        make_plan(gpt2, METHOD, None)
    with pytest.raises(UsageError, match="does not fit a table of 1024"):
        understand({"model_type": "gpt2"}, trained_length=2048)
    with pytest.raises(CheckpointError, match="no table of positions"):
        lower(make_plan(gpt2, METHOD, 4096), gpt2, {"model_type": "gpt2"}, {})
    both = {**table("wpe.weight", 1024), **table("transformer.wpe.weight", 1024)}
    with pytest.raises(CheckpointError, match="two tables"):
        lower(make_plan(gpt2, METHOD, 4096), gpt2, {"model_type": "gpt2"}, both)
    with pytest.raises(CheckpointError, match=r"has shape \[1026, 8\], but the config counts 1024 rows"):
        lower(make_plan(gpt2, METHOD, 4096), gpt2, {"model_type": "gpt2"}, table("wpe.weight", 1026))
    assert make_plan(gpt2, METHOD, 4096, original_length=1024).original_length == 1024


def test_a_rope_model_refuses_the_method() -> None:
    with pytest.raises(UnsupportedError, match="learned"):
        ctxforge.plan("bundled", method="learned-interpolation", to="2x")


def test_warnings() -> None:
    gpt2 = understand({"model_type": "gpt2"})
    lines = make_plan(gpt2, METHOD, 2500).warnings
    assert "needs a fine-tune" in lines[0]
    assert lines[1] == "the last 2 of the 2500 positions share one embedding, that of position 1023"
    neo = make_plan(understand({"model_type": "gpt_neo"}), METHOD, 16384).warnings
    assert any("12 of 24 layers attend to a window of 256 tokens" in line and "spans 32 of" in line for line in neo)
    assert neo[-1].endswith("builds 24 causal masks of 16384 x 16384 for this model: 6 GiB")
    again = understand({"model_type": "gpt2"}, recorded={"plan": {"original_length": 256, "target_length": 1024}})
    assert again.original_length == 256
    assert "extended it from 256" in again.evidence
    assert any("already stretched from 256 to 1024" in line for line in make_plan(again, METHOD, 2048).warnings)
    part = understand({"model_type": "gpt2"}, trained_length=1000)
    assert any("last 24 rows" in line for line in make_plan(part, METHOD, 2048).warnings)


def test_equal_rows_at_the_end_are_as_many_as_the_warning_says() -> None:
    from ctxforge.checkpoint.resample import sample

    for original, target in ((64, 128), (64, 150), (1024, 2500), (7, 100)):
        found = understand({"model_type": "gpt2", "n_positions": original})
        line = make_plan(found, METHOD, target).warnings[1]
        equal = sum(sample(p, original, target)[0] == original - 1 for p in range(target))
        assert line.startswith(f"the last {equal} of the {target} positions")


def test_none_changes_nothing(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_positions": 64}
    found = understand(config)
    plan = make_plan(found, find_method("none"), None)
    assert not plan.changed
    lowered = lower(plan, found, config, {})
    assert (lowered.config, lowered.tensors) == (config, ())
