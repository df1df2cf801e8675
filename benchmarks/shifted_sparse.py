"""S2-Attn against full attention in training: attention's share of a step, forward and backward.

    python benchmarks/shifted_sparse.py [--length 8192] [--group 2048] [--repeats 3] [--threads 1] [--check]

One attention layer with SmolLM2's shape (9 heads, 3 key heads, 64 dimensions), between its projections, in training
mode: the stock layer with SDPA, and the same layer inside `shifted_sparse_attention`. Forward and backward are timed
together, in turn, on the same states. In evaluation mode both must give the same output, and in training mode the
sparse one must give its dense reference's, or the run fails whatever its speed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from window_attention import Table  # noqa: E402

from ctxforge.attention.reference import dense_attention  # noqa: E402
from ctxforge.attention.shifted_sparse import pattern, shifted_sparse_attention  # noqa: E402

GOAL = 0.35
HEADS, KEY_HEADS, DIMENSIONS = 9, 3, 64
TOLERANCE = 1e-4


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--group", type=int, help="default: a quarter of the length")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit 1 when the goal is missed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    group = options.group or options.length // 4
    model = build()
    check(model, 1024, 256)
    spent: dict[str, list[float]] = {"full": [], "s2": []}
    for repeat in range(options.repeats + 1):
        for side in spent:
            seconds = step(model, options.length, group if side == "s2" else None)
            if repeat:
                spent[side].append(seconds)
    full, sparse = (statistics.median(seconds) for seconds in spent.values())
    print(f"CPU, {options.threads} threads, float32, {options.length} tokens, groups of {group}, processor seconds:")
    print(f"full {full:.3f}, S2-Attn {sparse:.3f}, ratio {sparse / full:.3f} (goal {GOAL})")
    return 1 if options.check and sparse / full > GOAL else 0


def build() -> Any:
    """A random Llama of one layer, SDPA, in training mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=HEADS * DIMENSIONS,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=8192,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).train()
    layer = model.model.layers[0].self_attn
    layer.o_proj = torch.nn.Identity()
    return model


def states_of(length: int) -> list[torch.Tensor]:
    """Query, key and value [1, L, heads * D] that want gradients."""
    generator = torch.Generator().manual_seed(length)
    sizes = ((HEADS, 2.0), (KEY_HEADS, 1.0), (KEY_HEADS, 1.0))
    return [
        (scale * torch.randn(1, length, heads * DIMENSIONS, generator=generator)).requires_grad_()
        for heads, scale in sizes
    ]


def attend(model: Any, states: list[torch.Tensor]) -> torch.Tensor:
    """The layer's output between its projections."""
    layer, length = model.model.layers[0].self_attn, states[0].shape[1]
    layer.q_proj, layer.k_proj, layer.v_proj = (Table(part) for part in states)
    positions = torch.arange(length)[None]
    turned = model.model.rotary_emb(states[0], positions)
    hidden = torch.empty(1, length, 1).expand(1, length, HEADS * DIMENSIONS)
    output: torch.Tensor = layer(
        hidden_states=hidden, position_embeddings=turned, attention_mask=None, position_ids=positions
    )[0]
    return output


def step(model: Any, length: int, group: int | None) -> float:
    """Processor seconds of one forward and backward; `group` None for full attention."""
    states = states_of(length)

    def run() -> float:
        start = time.process_time()
        attend(model, states).sum().backward()
        return time.process_time() - start

    if group is None:
        return run()
    with shifted_sparse_attention(model, group):
        return run()


@torch.no_grad()
def check(model: Any, length: int, group: int) -> None:
    """Full attention in evaluation mode, the dense reference in training mode, or the run ends here."""
    states = states_of(length)
    full = attend(model.eval(), states)
    with shifted_sparse_attention(model, group):
        same = attend(model, states)
        sparse = attend(model.train(), states)
    query, key, value = (part.double().view(1, length, -1, DIMENSIONS).transpose(1, 2) for part in states)
    wanted = dense_attention(
        query,
        key,
        value,
        model.model.rotary_emb.inv_freq.double(),
        pattern({"group": group}, length, HEADS),
        scaling=DIMENSIONS**-0.5,
    )
    wanted = wanted.transpose(1, 2).reshape(1, length, -1).float()
    largest = float(full.abs().max())
    assert float((full - same).abs().max()) < TOLERANCE * largest
    assert float((sparse - wanted).abs().max()) < TOLERANCE * largest
    assert float((sparse - full).abs().max()) > 100 * TOLERANCE * largest


if __name__ == "__main__":
    sys.exit(main())
