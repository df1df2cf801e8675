"""Configs of well-known published long-context models: `inspect` and `check` give the right verdict on each."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

import ctxforge
from ctxforge.rope import RopeGeometry
from tests.llama_folder import safetensors_bytes
from tests.published.configs import PUBLISHED, Published


def _folder(entry: Published, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(entry.config, indent=2))
    (folder / "model.safetensors").write_bytes(safetensors_bytes())
    return folder


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_inspect_and_check(name: str, tmp_path: Path) -> None:
    entry = PUBLISHED[name]
    folder = _folder(entry, tmp_path / "model")
    geometry = ctxforge.inspect(folder).geometry
    assert isinstance(geometry, RopeGeometry)
    assert (geometry.trained_length, geometry.original_length) == (entry.trained_length, entry.original_length)
    group = next((group for group in geometry.groups if group.extendable), geometry.groups[0])
    assert (group.rotated_dims, group.base) == (entry.rotated_dims, entry.base)
    assert (group.in_force.divisors[0], group.in_force.divisors[-1]) == pytest.approx(entry.divisors, rel=1e-6)
    assert group.in_force.temperature == pytest.approx(entry.temperature, rel=1e-9)
    report = ctxforge.check(folder)
    assert tuple(check.name for check in report.checks if check.verdict == "fail") == entry.fails
    assert report.passed == entry.passes


@pytest.mark.parametrize("name", ["Llama-2-7b-longlora-32k-ft", "gemma-3-4b-it"])
def test_a_linear_scaling_without_an_origin_needs_the_length(name: str, tmp_path: Path) -> None:
    folder = _folder(PUBLISHED[name], tmp_path / "model")
    with pytest.raises(ctxforge.errors.UnsupportedError) as refusal:
        ctxforge.plan(folder, method="ntk", to="256k")
    assert "--trained-length" in refusal.value.remedy
    plan = ctxforge.plan(folder, method="ntk", to="256k", trained_length="32k", portability="exact").plan
    group = next(group for group in plan.groups if group.changed)
    # Multiplied onto the 8 in force: the slowest pair ends at 8 * (256k / 32k).
    assert group.rotation.divisors[0] == pytest.approx(8)
    assert group.rotation.divisors[-1] == pytest.approx(64)


def test_chunked_attention_beside_layers_without_rope_has_nothing_to_extend(tmp_path: Path) -> None:
    folder = _folder(PUBLISHED["Llama-4-Scout-17B-16E"], tmp_path / "model")
    with pytest.raises(ctxforge.errors.UnsupportedError, match="nothing to extend"):
        ctxforge.plan(folder, method="yarn", to="20M")


SCALED = ["Llama-3.1-8B", "Qwen2.5-7B-Instruct, YaRN as its card says", "DeepSeek-V3", "Phi-3-mini-128k-instruct"]
SCALED += ["gpt-oss-20b", "Yarn-Llama-2-7b-64k", "Phi-4-mini-instruct"]


def _sparse_query_weights(path: Path, config: dict[str, Any]) -> None:
    """Phi-3's fused projections as a sparse file: a fold is planned from headers, their data is never read."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    rows = hidden * (1 + 2 * config["num_key_value_heads"] // config["num_attention_heads"]) + hidden
    header: dict[str, Any] = {}
    for layer in range(layers):
        start = layer * rows * hidden * 2
        entry = {"dtype": "BF16", "shape": [rows, hidden], "data_offsets": [start, start + rows * hidden * 2]}
        header[f"model.layers.{layer}.self_attn.qkv_proj.weight"] = entry
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + layers * rows * hidden * 2)


@pytest.mark.parametrize("name", SCALED)
def test_a_scaled_source_composes_or_restarts(name: str, tmp_path: Path) -> None:
    """Nothing is multiplied twice, nothing is dropped unless --original-length says so."""
    entry = PUBLISHED[name]
    folder = _folder(entry, tmp_path / "model")
    assert entry.trained_length is not None
    assert entry.original_length is not None
    target = 2 * entry.trained_length
    # Phi-3's class in 4.57 admits no temperature key: there it must go into the weights.
    portability = "exact"
    if entry.config["model_type"] == "phi3":
        portability = "widest"
        _sparse_query_weights(folder / "model.safetensors", entry.config)
    in_force = next(group for group in ctxforge.inspect(folder).geometry.groups if group.extendable).in_force
    # NTK's own divisors at s = 2, whatever base the table has: 2^(2i/(d-2)).
    d = entry.rotated_dims
    ntk = [2 ** (2 * i / (d - 2)) for i in range(d // 2)]
    composed = ctxforge.plan(folder, method="ntk", to=target, portability=portability)
    rotation = next(group for group in composed.plan.groups if group.changed).rotation
    assert composed.plan.composed
    wanted = [one * two for one, two in zip(ntk, in_force.divisors, strict=True)]
    assert list(rotation.divisors) == pytest.approx(wanted, rel=1e-12)
    assert rotation.temperature == pytest.approx(entry.temperature, rel=1e-12)
    # What is emitted reads back as exactly that, and its length as the target.
    emitted = tmp_path / "emitted"
    emitted.mkdir()
    (emitted / "config.json").write_bytes(composed.edits.files["config.json"])
    (emitted / "model.safetensors").write_bytes(safetensors_bytes())
    again = ctxforge.inspect(emitted).geometry
    read = next(group for group in again.groups if group.extendable).in_force
    assert list(read.divisors) == pytest.approx(wanted, rel=1e-9)
    factor = next(iter(composed.lowered.folded.values())) ** 0.5
    assert read.temperature * factor == pytest.approx(entry.temperature, rel=1e-9)
    assert again.trained_length == target
    restarted = ctxforge.plan(
        folder,
        method="ntk",
        to=2 * entry.original_length,
        original_length=entry.original_length,
        portability=portability,
    ).plan
    fresh = next(group for group in restarted.groups if group.changed).rotation
    assert not restarted.composed
    assert list(fresh.divisors) == pytest.approx(ntk, rel=1e-12)
    assert fresh.temperature == 1.0
    assert any("is dropped" in line for line in restarted.warnings)
