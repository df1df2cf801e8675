"""What `--plan` says of memory is what the run itself estimates, with nothing loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctxforge.calibrate.run import foreseen
from ctxforge.calibrate.run.foreseen import foresee
from ctxforge.errors import ResourceError
from tests.calibrate.run_builders import build, recipe, request, run

ASKED: dict[str, dict[str, Any]] = {
    "whole": {"adapter": "full"},
    "low-rank with restoration": {
        "adapter": {"kind": "lora", "rank": 4, "low_rank": ["attention", "mlp"], "whole": ["norm", "embedding"]},
        "objective": {"restoration": 2.0},
        "rows": {"placement": "pose", "content": "contiguous"},
        "memory": {"checkpointing": "on"},
    },
}


@pytest.mark.parametrize("name", ASKED)
def test_the_plan_s_estimate_is_the_run_s(tmp_path: Path, name: str) -> None:
    build(tmp_path)
    asked = recipe(steps=1, **ASKED[name])
    random = torch.random.get_rng_state()
    found = foresee(request(tmp_path, asked=asked))
    assert torch.equal(random, torch.random.get_rng_state())
    ran = run(tmp_path, asked=asked)
    assert found.options == ran.trained.options
    assert found.estimate == ran.trained.estimate
    weights = sum(p.numel() for p in _model(tmp_path / "source").parameters())
    assert (found.source > 4 * weights) == bool(asked.objective.restoration)
    assert found.total == found.estimate.total + found.source
    assert found.memory is not None


def test_too_little_memory_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path)
    monkeypatch.setattr(foreseen, "memory_of", lambda _device: 200_000)
    with pytest.raises(ResourceError, match="a step on 64 tokens takes about"):
        foresee(request(tmp_path))
    with pytest.raises(ResourceError, match="beside the source's") as held:
        foresee(request(tmp_path, asked=recipe(objective={"restoration": 1.0})))
    assert "objective.restoration=0" in held.value.remedy


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)
