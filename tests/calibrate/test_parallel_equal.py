"""Two processes do what one does (gloo, float32): rows shared, parameters split, sequences shared.

Rows have 29 to 5 tokens that count, and the first process has the long ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.calibrate.parallel_child import LENGTHS, Job, model_of, rows_of
from tests.calibrate.parallel_runs import Found, difference, found_in, made_once, train
from tests.tiny_models import save_tiny

SHARD, RING = {"shard": True}, {"context": 2}
ULYSSES = {"context": 2, "context_backend": "ulysses"}
# What each way of sharing is tried on: names of `plain_jobs`.
TRIED = {
    "rows": ({}, ("lora", "weighted", "full", "full-bf16", "clipped", "uneven", "empty", "means")),
    "shard": (SHARD, ("lora", "lora-bf16", "plus", "full", "full-bf16", "clipped", "saving")),
    "ring": (RING, ("lora", "weighted", "full", "saving")),
    "ulysses": (ULYSSES, ("lora", "weighted", "full", "saving")),
    "ring+shard": ({**RING, **SHARD}, ("plus",)),
    "ulysses+shard": ({**ULYSSES, **SHARD}, ("plus",)),
}
CASES = [(way, name) for way, (_, names) in TRIED.items() for name in names if name != "means"]


def plain_jobs(folder: Path) -> list[Job]:
    llama, tied, narrow = (str(folder / name) for name in ("llama", "qwen2", "bf16"))
    return [
        Job("lora", llama),
        Job("weighted", llama, weighted=True),
        Job("clipped", llama, limit=0.05),
        Job("plus", tied, "lora+", weighted=True),
        Job("full", tied, "full"),
        Job("lora-bf16", narrow, steps=1, dtype="bfloat16"),
        Job("full-bf16", narrow, "full", steps=1, dtype="bfloat16"),
        Job("saving", llama, checkpointing=True, tile=5),
        Job("uneven", llama, uneven=True),
        Job("empty", llama, empty=True),
        Job("means", llama, own=True, steps=1),
    ]


def run_all(folder: Path) -> None:
    for kind in ("llama", "qwen2"):
        save_tiny(kind, folder / kind)
    save_tiny("qwen2", folder / "bf16", dtype=torch.bfloat16)
    plain = {job.name: job for job in plain_jobs(folder)}
    train(list(plain.values()), folder / "one", 1)
    train(
        [
            replace(plain[name], name=f"{way} {name}", options=options)
            for way, (options, names) in TRIED.items()
            for name in names
        ],
        folder / "two",
        2,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "parallel-equal", run_all)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Found:
    return found_in(folder / "one")


@pytest.fixture(scope="module")
def two(folder: Path) -> Found:
    return found_in(folder / "two")


@pytest.mark.parametrize(("way", "name"), CASES)
def test_two_processes_do_what_one_does(way: str, name: str, alone: Found, two: Found) -> None:
    (one,), others = alone[name], two[f"{way} {name}"]
    # A shared sequence's attention adds up in another order, which float32 rounds otherwise.
    rounding = 1e-5 if "ring" in way or "ulysses" in way else 1e-6
    for other in others:
        assert other["kinds"] == (["DTensor"] if "shard" in way else ["Parameter"])
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert [other["before"], other["after"]] == pytest.approx([one["before"], one["after"]], rel=1e-6)
        assert other["norms"] == pytest.approx(one["norms"], rel=rounding)
        assert all(gradient.dtype == torch.float32 for gradient in other["gradients"].values())
        assert difference(one["gradients"], other["gradients"]) < rounding
        # AdamW divides by the gradient's size, which enlarges what rounding left of small ones.
        assert difference(one["weights"], other["weights"]) < max(5e-6, 3 * rounding)
    assert difference(others[0]["weights"], others[1]["weights"]) == 0
    assert one["before"] != pytest.approx(one["after"], rel=1e-4)


def test_processes_may_cut_their_rows_differently(two: Found) -> None:
    assert [one["micro"] for one in two["rows uneven"]] == [6, 2]
    assert [one["most"] for one in two["rows uneven"]] == [6, 6]
    assert [one["micro"] for one in two["rows empty"]] == [2, 2]


def test_the_mean_of_means_is_something_else(alone: Found, two: Found) -> None:
    assert difference(alone["means"][0]["gradients"], two["rows means"][0]["gradients"]) > 0.05


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
