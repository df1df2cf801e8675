"""Configs of well-known published long-context models: `inspect` and `check` give the right verdict on each."""

from __future__ import annotations

import json
from pathlib import Path

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
    group = next(group for group in geometry.groups if group.extendable)
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
