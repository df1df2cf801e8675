"""Two processes that share the rows of a step do what one process does (gloo, float32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.calibrate.parallel_child import LENGTHS, Job, model_of, rows_of
from tests.calibrate.parallel_runs import difference, train
from tests.tiny_models import save_tiny

Found = dict[str, list[dict[str, Any]]]


def jobs(folder: Path, out: Path) -> list[Job]:
    llama, tied = str(folder / "llama"), str(folder / "qwen2")
    return [
        Job("lora", llama, save=str(out / "lora")),
        Job("lora-weighted", llama, weighted=True),
        Job("full", tied, recipe="full", save=str(out / "full")),
        Job("full-bf16", str(folder / "bf16"), recipe="full", dtype="bfloat16", steps=1),
        Job("clipped", llama, limit=0.05),
        Job("uneven", llama, uneven=True),
        Job("empty", llama, empty=True),
        Job("means", llama, own=True, steps=1),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("parallel")
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


@pytest.mark.parametrize("name", ["lora", "lora-weighted", "full", "clipped", "uneven", "empty"])
def test_two_processes_do_what_one_does(name: str, alone: Found, two: Found) -> None:
    (one,), others = alone[name], two[name]
    for other in others:
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert other["norms"] == pytest.approx(one["norms"], rel=1e-6)
        assert difference(one["gradients"], other["gradients"]) < 1e-6
        # AdamW divides by the gradient's size, which enlarges what rounding left of small ones.
        assert difference(one["weights"], other["weights"]) < 5e-6
    assert difference(others[0]["weights"], others[1]["weights"]) == 0


def test_processes_may_cut_their_rows_differently(two: Found) -> None:
    assert [one["micro"] for one in two["uneven"]] == [6, 2]
    assert [one["most"] for one in two["uneven"]] == [6, 6]


def test_the_mean_of_means_is_something_else(alone: Found, two: Found) -> None:
    assert difference(alone["means"][0]["gradients"], two["means"][0]["gradients"]) > 0.05


def test_one_process_has_the_gradient_of_the_models_own_loss(folder: Path, alone: Found) -> None:
    model, trained = model_of(Job("", str(folder / "llama")))
    total, tokens = 0.0, sum(LENGTHS) - len(LENGTHS)
    for row in rows_of(0):
        ids = torch.tensor(row.ids)[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
        loss = F.cross_entropy(logits, ids[0, 1:], reduction="sum")
        (loss / tokens).backward()
        total += float(loss.detach())
    assert alone["lora"][0]["losses"][0] == pytest.approx(total, rel=1e-6)
    expected = {name: p.grad for name, p in trained.tensors() if p.grad is not None}
    assert difference(expected, alone["lora"][0]["gradients"]) < 1e-5
