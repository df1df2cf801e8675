"""What verification costs on a GPU: an 8B-class model of random weights, one pass and one retrieval grid.

    python benchmarks/gpu.py --lengths 65536,131072

Random weights cost the same time and memory as trained ones. Every pass is checked: losses are finite, and the first
tokens' losses equal those of a short pass of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHORT = 2048


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="65536,131072", help="tokens of a pass, comma-separated")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--grid", type=int, default=65536, help="longest context of the retrieval grid; 0 for none")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    import torch

    from ctxforge.verification.onepass import OnePass

    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    lengths = [int(part) for part in options.lengths.split(",")]
    model = llama(options.layers, max(lengths))
    weights = torch.cuda.memory_allocated()
    runner = OnePass(model, longest=max(lengths))
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "layers": options.layers,
        "weights_gb": weights / 1e9,
        "attention": model.config._attn_implementation,
        "head": runner.head_kind,
        "passes": [one_pass(runner, length) for length in lengths],
    }
    if options.grid:
        found["grid"] = grid(runner, options.grid)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


def llama(layers: int, longest: int) -> Any:
    """Llama 3 8B's shape (arXiv 2407.21783, table 3) with sharp random weights, in bfloat16, made on the GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def one_pass(runner: Any, length: int) -> dict[str, Any]:
    """Time and peak memory of one pass, after a warm-up on a short one."""
    import torch

    ids = torch.randint(0, 128256, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    short = runner.losses(ids[:SHORT])
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    losses = runner.losses(ids)
    seconds = time.perf_counter() - start
    assert bool(torch.isfinite(losses).all())
    difference = float((losses[: SHORT - 1] - short).abs().max())
    # Two kernels of bfloat16 round differently; another attention than a causal one would be nats away.
    assert difference < 0.25, difference
    return {
        "length": length,
        "seconds": seconds,
        "tokens_per_second": length / seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "difference": difference,
    }


def grid(runner: Any, longest: int, lengths: int = 6, depths: int = 10) -> dict[str, Any]:
    """One haystack of the retrieval grid: 6 lengths and 10 depths in one forward."""
    import torch

    from ctxforge.verification import retrieval
    from ctxforge.verification.needles import Cell, Haystack, Needle

    generator = torch.Generator().manual_seed(2)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 128256, (count,), generator=generator).tolist())

    at = [longest >> i for i in range(lengths - 1, -1, -1)]
    needles = tuple(Needle("", "", draw(7), draw(4)) for _ in range(depths))
    cells = tuple(Cell(length, i, depths, i) for length in at for i in range(depths))
    haystack = Haystack(draw(longest), needles, (0,) * depths, cells)
    way = retrieval.choose_way(runner)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    answers = retrieval.answers(runner, haystack, way)
    seconds = time.perf_counter() - start
    one = next(a for a in answers if a.cell.length == at[0])
    alone, _ = retrieval.separate(runner, haystack.ids[: at[0]], needles[one.cell.needle])
    assert abs(one.nll - alone) < 0.25, (one.nll, alone)
    return {
        "longest": longest,
        "cells": len(answers),
        "way": way,
        "seconds": seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "difference": abs(one.nll - alone),
    }


if __name__ == "__main__":
    sys.exit(main())
