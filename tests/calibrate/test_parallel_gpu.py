"""Shared sequences and sharding on GPUs: the kernel that only GPUs have, and NCCL where there are two of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ctxforge.calibrate.parallel.shared_sequence import _last_rows
from tests.calibrate.parallel_child import Job
from tests.calibrate.parallel_runs import difference, found_in, train
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_the_last_rows_of_a_causal_mask_by_name(kind: str) -> None:
    dtype = getattr(torch, kind)
    draw = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, length, 64, generator=draw, device="cuda", dtype=dtype).requires_grad_()
        for heads, length in ((8, 128), (2, 512), (2, 512))
    )
    mask = torch.ones(128, 512, dtype=torch.bool, device="cuda").tril(384)
    found = []
    for where in (_last_rows(128, 512, query.device), mask):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=where, enable_gqa=True)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), (query, key, value))))
    limit = 1e-4 if kind == "float32" else 3e-2
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= limit * float(other.abs().max())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_do_what_one_does(tmp_path: Path) -> None:
    base = str(save_tiny("qwen2", tmp_path / "base"))
    plain = Job("plus", base, "lora+", weighted=True, options={"cpu": False})
    ways = {
        "rows": {},
        "shard": {"shard": True},
        "ring": {"context": 2},
        "ulysses": {"context": 2, "context_backend": "ulysses", "shard": True},
    }
    train([plain], tmp_path / "one", 1)
    train([replace(plain, name=way, options={"cpu": False, **ways[way]}) for way in ways], tmp_path / "two", 2)
    (one,), found = found_in(tmp_path / "one")["plus"], found_in(tmp_path / "two")
    for way in ways:
        for other in found[way]:
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
            assert difference(one["gradients"], other["gradients"]) < 1e-4
