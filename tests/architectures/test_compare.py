"""The comparison's controls: what the sweep would miss if it were blind must show here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import ctxforge
from ctxforge.pipeline import Conversion
from ctxforge.rope import understand
from tests.architectures.compare import against_geometry, against_plan, temperatures
from tests.architectures.convert import Source, make_source, positions
from tests.architectures.measure import measure
from tests.architectures.replay import replay


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source("llama", tmp_path_factory.mktemp("llama") / "source")


@pytest.fixture(scope="module")
def conversion(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    out = tmp_path_factory.mktemp("converted") / "out"
    return ctxforge.extend(source.folder, method="ntk-by-parts", to=256, out=out).conversion


@pytest.fixture
def model(source: Source, tmp_path: Path) -> Any:
    out = ctxforge.extend(source.folder, method="ntk-by-parts", to=256, out=tmp_path / "out").out
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def found(model: Any, source: Source, conversion: Conversion) -> list[str]:
    replayed = replay(model, source.recording, positions("llama", 256), None)
    measured = measure(model)
    plan = conversion.plan
    return against_plan(measured, plan.groups, "half-split") + temperatures(measured, replayed, plan.groups)


def test_an_honest_conversion_has_nothing_to_report(model: Any, source: Source, conversion: Conversion) -> None:
    assert conversion.lowered.folded[None] != 1.0
    assert found(model, source, conversion) == []


def test_a_fold_that_missed_a_layer_shows(model: Any, source: Source, conversion: Conversion) -> None:
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.div_(conversion.lowered.folded[None])
    (line,) = found(model, source, conversion)
    # The yarn type's own temperature, which this method does not want and the weights had undone.
    assert line.startswith("layer 1 self_attn has temperature 1.13863 ")


def test_a_fold_off_by_a_hundredth_shows(model: Any, source: Source, conversion: Conversion) -> None:
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight.mul_(1.01)
    (line,) = found(model, source, conversion)
    assert line.startswith("layer 2 self_attn has temperature")


def test_a_fold_into_keys_too_shows(model: Any, source: Source, conversion: Conversion) -> None:
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(1.1)
    (line,) = found(model, source, conversion)
    assert "scales both q and k" in line


def test_a_fold_into_some_dimensions_shows(model: Any, source: Source, conversion: Conversion) -> None:
    with torch.no_grad():
        model.model.layers[3].self_attn.q_proj.weight.view(4, 16, 64)[:, 3].mul_(1.1)
    (line,) = found(model, source, conversion)
    assert line.startswith("layer 3 self_attn scales q or k by")


def test_a_table_that_is_off_shows(model: Any, source: Source, conversion: Conversion) -> None:
    model.model.rotary_emb.inv_freq[5] *= 1.0001
    assert [line.split(" by ")[0] for line in found(model, source, conversion)] == [
        f"layer {layer} turns pair 5" for layer in range(4)
    ]


def test_a_wrong_reading_of_the_source_shows(source: Source) -> None:
    geometry = understand(source.config)
    assert against_geometry(source.measured, geometry) == []
    (group,) = geometry.groups
    assert len(against_geometry(source.measured, dataclasses.replace(geometry, layers=5))) == 1
    fewer = dataclasses.replace(group, layers=(0, 1, 3))
    assert against_geometry(source.measured, dataclasses.replace(geometry, groups=(fewer,))) == [
        "layer 2 is rotated (d=16), said not to be"
    ]
    other = dataclasses.replace(group, base=group.base * 1.001)
    assert len(against_geometry(source.measured, dataclasses.replace(geometry, groups=(other,)))) == 4
    hotter = dataclasses.replace(group, in_force=dataclasses.replace(group.in_force, temperature=1.001))
    assert len(against_geometry(source.measured, dataclasses.replace(geometry, groups=(hotter,)))) == 4


def test_a_wrong_layout_shows(source: Source, conversion: Conversion, model: Any) -> None:
    assert len(against_plan(measure(model), conversion.plan.groups, "interleaved")) == 4
