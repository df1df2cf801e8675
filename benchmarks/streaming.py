"""Streaming with an evicting cache: one token after another, and neither memory nor time may grow.

    python benchmarks/streaming.py [SYSTEM ...] [--tokens 100000] [--threads 1] [--full 4096] [--check]

SYSTEM is an attachment (default: `streaming-llm:window=1020,sinks=4` and `lm-infinite:window=1014,sinks=10`). A random
Llama of 2 layers (hidden 128, 4 heads, 2 key heads, trained length 2048) is converted by each and fed one token at a
time through forward and its own cache. Every tenth of the run is measured: processor time a token, resident memory of
the process, and the bytes that the cache holds. The first tenth fills the cache and counts for nothing.

The peer is the stock model with a dynamic cache, for as many tokens as `--full` says: it shows what grows otherwise.

The last token's logits must be those of one pass over the last tokens that layers can reach back to (the window, once a
layer, and the sinks), or the run fails.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ctxforge  # noqa: E402

SYSTEMS = ("streaming-llm:window=1020,sinks=4", "lm-infinite:window=1014,sinks=10")
MEMORY_GOAL, TIME_GOAL = 0.05, 0.10
PARTS, LAYERS = 10, 2
TOLERANCE = 1e-3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", type=int, default=4096, help="tokens of the stock model, whose cache grows")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    missed = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        models = load(options.systems, folder)
        print(f"CPU, {options.threads} threads; after each tenth: ms a token (processor), MB resident, MB of cache\n")
        print("| model | tokens | " + " | ".join(f"{part + 1}/{PARTS}" for part in range(PARTS)) + " | time | memory |")
        print("|---|---|" + "---|" * (PARTS + 2))
        for name, model in models.items():
            count = options.full if name == "stock" else options.tokens
            ids = torch.randint(3, 256, (count,), generator=torch.Generator().manual_seed(1))
            rows, last = stream(model, ids)
            if name != "stock":
                check_last(model, ids, last)
            spread = [
                (max(column) - min(column)) / statistics.median(column)
                for column in zip(*[row[:2] for row in rows[1:]], strict=True)
            ]
            cells = " | ".join(f"{row[0]:.2f}, {row[1]:.0f}, {row[2]:.1f}" for row in rows)
            print(f"| {name} | {count} | {cells} | {spread[0]:.1%} | {spread[1]:.1%} |", flush=True)
            if name != "stock" and (spread[0] > TIME_GOAL or spread[1] > MEMORY_GOAL):
                missed.append(name)
    print(f"\ngoals: time flat to {TIME_GOAL:.0%}, memory to {MEMORY_GOAL:.0%}: {missed or 'met'}")
    return 1 if options.check and missed else 0


def load(systems: list[str], folder: Path) -> dict[str, Any]:
    """The stock model and each system's, by name."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "stock")
    found = {"stock": AutoModelForCausalLM.from_pretrained(folder / "stock").eval()}
    for number, name in enumerate(systems):
        ctxforge.extend(folder / "stock", attach=name, to="64x", out=folder / str(number))
        found[name] = AutoModelForCausalLM.from_pretrained(
            folder / str(number), trust_remote_code=True, dtype=torch.float32
        ).eval()
    return found


def stream(model: Any, ids: torch.Tensor) -> tuple[list[tuple[float, float, float]], torch.Tensor]:
    """Milliseconds a token, MB resident and MB of cache after each tenth, and the last token's logits."""
    rows = []
    step: Any = {}
    name, size = "", len(ids) // PARTS
    for part in range(PARTS):
        gc.collect()
        start = time.process_time()
        for at in range(part * size, (part + 1) * size):
            given = {name: step[name]} if name else {}
            step = model(input_ids=ids[at].view(1, 1), position_ids=torch.tensor([[at]]), use_cache=True, **given)
            name = name or ("cache" if "cache" in step else "past_key_values")
        spent = time.process_time() - start
        rows.append((1000 * spent / size, resident() / 1e6, cached(step[name]) / 1e6))
    return rows, step.logits[0, -1]


def check_last(model: Any, ids: torch.Tensor, last: torch.Tensor) -> None:
    """The last logits are those of one pass over what the layers can reach, at the same positions."""
    ids = ids[: len(ids) // PARTS * PARTS]
    settings = model.config.ctxforge["parameters"]
    sinks, reach = int(settings["sinks"]), LAYERS * int(settings["window"])
    at = torch.cat((torch.arange(sinks), torch.arange(len(ids) - reach, len(ids))))
    # With a mask: without one, transformers takes a gap in the positions for the border of two packed texts.
    given = {"position_ids": at[None], "attention_mask": torch.ones(1, len(at), dtype=torch.long)}
    whole = model(input_ids=ids[at][None], use_cache=False, **given).logits[0, -1]
    apart = float((whole - last).abs().max() / whole.abs().max())
    assert apart < TOLERANCE, f"the last token's logits are {apart:.2g} from those of one pass"


def resident() -> int:
    """Bytes of the process in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def cached(cache: Any) -> int:
    """Bytes of the keys and values."""
    return sum(states.untyped_storage().nbytes() for layer in cache.layers for states in (layer.keys, layer.values))


if __name__ == "__main__":
    sys.exit(main())
