"""Two processes that hold half of every parameter each (FSDP2) do what one process does (gloo, float32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.calibrate.parallel_child import Job
from tests.calibrate.parallel_runs import difference, train
from tests.tiny_models import save_tiny

Found = dict[str, list[dict[str, Any]]]
SHARD = {"shard": True}


def jobs(folder: Path, out: Path) -> list[Job]:
    llama, tied, narrow = (str(folder / name) for name in ("llama", "qwen2", "bf16"))
    return [
        Job("lora", llama, save=str(out / "lora"), options=SHARD),
        Job("lora-bf16", narrow, steps=1, options=SHARD, dtype="bfloat16"),
        Job("plus", tied, recipe="lora+", options=SHARD, weighted=True),
        Job("full", tied, recipe="full", save=str(out / "full"), options=SHARD),
        Job("full-bf16", narrow, recipe="full", dtype="bfloat16", steps=1, options=SHARD),
        Job("clipped", llama, limit=0.05, options=SHARD),
        Job("saving", llama, options=SHARD, checkpointing=True, tile=5),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("shard")
    for kind in ("llama", "qwen2"):
        save_tiny(kind, found / kind)
    save_tiny("qwen2", found / "bf16", dtype=torch.bfloat16)
    return found


@pytest.fixture(scope="module")
def alone(folder: Path) -> Found:
    (folder / "saved1").mkdir()
    return train(jobs(folder, folder / "saved1"), folder / "one", 1)


@pytest.fixture(scope="module")
def two(folder: Path) -> Found:
    (folder / "saved2").mkdir()
    return train(jobs(folder, folder / "saved2"), folder / "two", 2)


@pytest.mark.parametrize("name", ["lora", "plus", "full", "clipped", "saving"])
def test_two_processes_do_what_one_does(name: str, alone: Found, two: Found) -> None:
    (one,), others = alone[name], two[name]
    assert one["kinds"] == ["Parameter"]
    for other in others:
        assert other["kinds"] == ["DTensor"]
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert other["norms"] == pytest.approx(one["norms"], rel=1e-6)
        assert difference(one["gradients"], other["gradients"]) < 1e-6
        assert difference(one["weights"], other["weights"]) < 5e-6


@pytest.mark.parametrize("name", ["lora-bf16", "full-bf16"])
def test_masters_and_16_bit_weights_share_a_group(name: str, alone: Found, two: Found) -> None:
    (one,), other = alone[name], two[name][0]
    assert other["kinds"] == ["DTensor"]
    assert other["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert all(gradient.dtype == torch.float32 for gradient in other["gradients"].values())
    assert difference(one["gradients"], other["gradients"]) < 1e-5
