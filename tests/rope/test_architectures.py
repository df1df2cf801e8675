"""The table of architectures against the installed transformers: a verdict for every type, the classes' defaults."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ctxforge.errors import CheckpointError, CtxforgeError, UnsupportedError
from ctxforge.positions.architectures import ALIBI, LEARNED
from ctxforge.rope import understand
from ctxforge.rope.architectures import ARCHITECTURES, REFUSED
from ctxforge.rope.geometry import find_architecture

PAGE_TYPES = Path(__file__).parents[2] / "docs" / "causal_lm_types.json"
# Keys that a config class fills in by itself: without them the table's defaults must give the same geometry.
FILLED_IN = {
    "rope_parameters",
    "rope_theta",
    "compress_rope_theta",
    "partial_rotary_factor",
    "max_position_embeddings",
    "model_max_length",
    "max_seq_len",
    "head_dim",
    "kv_channels",
    "attention_head_dim",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "no_rope_layers",
    "layer_rope_theta",
    "cross_attention_layers",
    "per_layer_config",
    "sliding_window",
    "attention_chunk_size",
    "local_attention",
    "use_sliding_window",
    "max_window_layers",
}
# What the two majors assume apart is refused until the config says it.
ASSUMED_APART = {"cohere", "falcon_h1", "fuyu", "olmo3", "persimmon"}
# The class's own defaults describe no usable model: no attention layers, no layer_types, an odd count of dimensions.
WITHOUT_USABLE_DEFAULTS = {
    "bamba": "no layer",
    "cohere_compass_text": "no rope dict",
    "glm4_moe": "even number",
    "granitemoehybrid": "no positions",
    "lfm2_moe": "no layer_types",
    "zamba2": "no positions",
}
# Wrappers whose defaults hold only while text_config is absent altogether; a class without usable defaults.
SKIPPED = {"got_ocr2", "moss_transcribe_diarize", "gemma4_assistant"}


@pytest.fixture(scope="module")
def installed() -> dict[str, Any]:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    return {name: CONFIG_MAPPING[name] for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}


def test_every_type_has_a_verdict(installed: dict[str, Any]) -> None:
    known = {*ARCHITECTURES, *LEARNED, *ALIBI}
    assert known & set(REFUSED) == set()
    assert [name for name in installed if name not in known and name not in REFUSED] == []
    assert json.loads(PAGE_TYPES.read_text("utf-8")) == sorted(installed)


def test_defaults_are_the_class_s_own(installed: dict[str, Any]) -> None:
    """A config that names its sizes alone is understood like the same one with everything that its class fills in."""
    wrong, compared = [], 0
    for name, cls in installed.items():
        if name not in ARCHITECTURES or name in SKIPPED:
            continue
        full = json.loads(json.dumps(cls().to_dict(), default=str))
        if name in WITHOUT_USABLE_DEFAULTS:
            with pytest.raises(CtxforgeError, match=WITHOUT_USABLE_DEFAULTS[name]):
                understand(full)
            continue
        if name in ASSUMED_APART:
            with pytest.raises(CheckpointError, match="transformers 5 assumes"):
                understand(_bare(name, full))
            continue
        spelled, silent = understand(full), understand(_bare(name, full))
        compared += 1
        for field in (
            "head_dim",
            "layers",
            "groups",
            "unrotated_layers",
            "window",
            "original_length",
            "trained_length",
        ):
            if getattr(spelled, field) != getattr(silent, field):
                wrong.append(f"{name}: {field} {getattr(silent, field)!s:.90}, the class says otherwise")
    assert wrong == []
    assert compared > 110


def _bare(name: str, config: dict[str, Any]) -> dict[str, Any]:
    row = ARCHITECTURES[name]
    listed = {"layer_types", "layers_block_type"} if row.layers.rule == "listed" else set()
    if row.config_path:
        (key,) = row.config_path
        return {**config, key: _without(config[key], FILLED_IN - listed)}
    return _without(config, FILLED_IN - listed)


def _without(config: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_refused_type_says_why(model_type: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        find_architecture({"model_type": model_type})
    assert REFUSED[model_type] in caught.value.cause
    assert "\n" not in caught.value.cause


def test_a_type_that_transformers_lacks_gets_the_nearest_name() -> None:
    with pytest.raises(UnsupportedError, match=r"qwen3_6.*nearest: qwen3"):
        find_architecture({"model_type": "qwen3_6"})
