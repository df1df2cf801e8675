"""Emitted checkpoints of every architecture compute the planned rotation: logits against a model rotated by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ctxforge
from tests.tiny_models import TINY, TRAINED, load, logits, save_tiny, set_rotation

LENGTH = 160
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("pi", {}),
    ("ntk", {}),
    ("abf", {"parameters": {"base": 4e6}}),
    ("yarn", {}),
    ("yarn", {"temperature": 1.2}),
    ("yarn", {"parameters": {"truncate": False, "beta_fast": 8}}),
    ("ntk-by-parts", {}),
    ("llama3", {}),
]


@pytest.fixture(scope="module", params=list(TINY))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param) / "source")


@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda value: str(value))
def test_logits_equal_the_planned_rotation(source: Path, tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    converted = ctxforge.extend(source, method=method, to=4 * TRAINED, out=tmp_path / "out", **options)
    plan = converted.conversion.plan
    emitted = logits(load(converted.out), LENGTH)
    reference = load(source)
    unmodified = logits(reference, LENGTH)
    for group in plan.groups:
        frequencies = [group.base ** (-2 * i / group.rotated_dims) / d for i, d in enumerate(group.rotation.divisors)]
        set_rotation(reference, group.layer_type, frequencies, group.rotation.temperature)
    expected = logits(reference, LENGTH)
    scale = expected.abs().max()
    assert (emitted - expected).abs().max() / scale < 1e-5
    # Negative controls: the unmodified model, and the plan with its temperature dropped, must both show.
    assert (unmodified - expected).abs().max() / scale > 1e-3
    if plan.groups[0].rotation.temperature != 1.0:
        for group in plan.groups:
            frequencies = [
                group.base ** (-2 * i / group.rotated_dims) / d for i, d in enumerate(group.rotation.divisors)
            ]
            set_rotation(reference, group.layer_type, frequencies, 1.0)
        assert (logits(reference, LENGTH) - expected).abs().max() / scale > 1e-3


def test_full_forward_equals_cached_decoding(source: Path, tmp_path: Path) -> None:
    out = ctxforge.extend(source, method="yarn", to=4 * TRAINED, out=tmp_path / "out").out
    model = load(out)
    ids = torch.randint(3, 96, (1, 150), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        full = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :140], use_cache=True)
        cache = (
            first.past_key_values
            if hasattr(first, "past_key_values") and first.past_key_values is not None
            else first.cache
        )
        name = "cache" if "cache" in first else "past_key_values"
        steps = []
        for position in range(140, 150):
            step = model(input_ids=ids[:, position : position + 1], use_cache=True, **{name: cache})
            steps.append(step.logits)
    cached = torch.cat(steps, dim=1)
    assert (cached - full[:, 140:]).abs().max() / full.abs().max() < 1e-5


def test_windowed_tables_of_their_own_are_left_alone(tmp_path: Path) -> None:
    source = save_tiny("gemma3_text", tmp_path / "source")
    converted = ctxforge.extend(source, method="yarn", to=4 * TRAINED, out=tmp_path / "out")
    by_type = {group.layer_type: group for group in converted.conversion.plan.groups}
    assert by_type["full_attention"].changed
    assert not by_type["sliding_attention"].changed
    assert any("keep their own RoPE" in line for line in converted.conversion.plan.warnings)
    edited = {edit.tensor for edit in converted.conversion.edits.tensors}
    assert not edited
    converted = ctxforge.extend(source, method="ntk-by-parts", to=4 * TRAINED, out=tmp_path / "out2")
    assert {edit.tensor for edit in converted.conversion.edits.tensors} == {"model.layers.2.self_attn.q_norm.weight"}
