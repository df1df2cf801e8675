"""Attention of a long causal prefill on the CPU: what transformers does against ctxforge's, side by side.

    python benchmarks/attention.py [--length 16384] [--dtype float32|bfloat16] [--layers-only | --model DIR] [--check]

Two kinds of attention on the queries, keys and values of one layer of the real model on a real text:

- `causal`: the layer as it is. Stock SDPA; then the same through ctxforge; then the spike that packs the heads of a
  key head into rows and walks tiles of keys (`--tiles`), for the record;
- `window N`, `sinks`, `soft cap`: the same tensors under Mistral's, gpt-oss's and Gemma 2's kind of attention, through
  the function that transformers takes for them (SDPA with a mask; eager attention).

Without --layers-only also whole forwards without the head, stock and ours, with the losses of all tokens compared
(--sliding N: as a Mistral with that window, where they differ). Sides alternate,
medians are reported with the processor time beside them: on a shared machine the wall clock of two threads says
little. Outputs must agree, or the run fails whatever its speed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ctxforge.verification.cpu_attention import blocked_attention, cpu_attention, plan, worth_it  # noqa: E402

GOAL = 1.7
# Nats, of losses.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Of attention outputs, relative to the largest.
OUTPUT_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
Side = Callable[[], torch.Tensor]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: SmolLM2-135M from the registry)")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--layer", type=int, default=8, help="the layer whose queries, keys and values are taken")
    parser.add_argument("--layers", type=int, help="whole forwards of only so many layers")
    parser.add_argument("--sliding", type=int, help="whole forwards of the weights as a Mistral with this window")
    parser.add_argument("--layers-only", action="store_true", help="attention alone, no whole forwards")
    parser.add_argument("--windows", default="512,1024,4096", help="sliding windows to time")
    parser.add_argument("--eager-length", type=int, default=4096, help="length for eager attention, which is [H, L, L]")
    parser.add_argument("--tiles", action="store_true", help="time the packed tiles of the spike too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="exit 1 when the goal is missed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    model, ids = load(options, dtype)
    torch.set_grad_enabled(False)
    query, key, value = captured(model, ids, options.layer)
    print(f"{options.dtype}, {options.threads} threads, median of {options.repeats}; seconds wall (processor)\n")
    print("| attention of one layer | length | transformers | ctxforge | ratio (wall) | ratio (processor) |")
    print("|---|---|---|---|---|---|")
    scale = query.shape[-1] ** -0.5
    shown = {"stock": lambda: sdpa(query, key, value, None), "ours": lambda: blocked_attention(query, key, value)}
    ratio = row("causal", options.length, shown, options.repeats, dtype)
    if options.tiles:
        sides = {"stock": shown["stock"], "ours": lambda: packed_tiles(query, key, value, scale)}
        row("causal, packed tiles", options.length, sides, options.repeats, dtype)
    for size in map(int, filter(None, options.windows.split(","))):
        row(f"window {size}", options.length, windowed(query, key, value, size), options.repeats, dtype)
    short = [x[:, :, : options.eager_length] for x in (query, key, value)]
    length = short[0].shape[2]
    sinks = torch.linspace(-2, 2, query.shape[1]).to(dtype)
    row("sinks", length, eager_sides(*short, scale, sinks=sinks), options.repeats, dtype)
    row("soft cap", length, eager_sides(*short, scale, softcap=50.0), options.repeats, dtype)
    if not options.layers_only:
        whole(model, ids, dtype, options.repeats)
    print(f"\ngoal: {GOAL} x for plain causal attention: {'missed' if ratio < GOAL else 'met'} ({ratio:.2f} x wall)")
    return 1 if options.check and ratio < GOAL else 0


def load(options: argparse.Namespace, dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
    """The model and the first `length` tokens of Emma."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MistralConfig

    from tests import assets

    folder = options.model or assets.smollm2_folder()
    ids = AutoTokenizer.from_pretrained(folder, local_files_only=True)(assets.emma_text(), verbose=False)["input_ids"]
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if options.sliding:
        # Llama's weights under Mistral's code: the only difference is the window.
        names = set(MistralConfig().to_dict()) - {"model_type", "architectures", "transformers_version"}
        taken = {name: entry for name, entry in config.to_dict().items() if name in names}
        config = MistralConfig(**{**taken, "sliding_window": options.sliding})
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, local_files_only=True).eval()
    if options.layers:
        model.model.layers = model.model.layers[: options.layers]
    assert len(ids) >= options.length, "the text is too short"
    return model, torch.tensor([ids[: options.length]])


def captured(model: Any, ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, ...]:
    """Query, key and value [1, heads, L, d] of one layer as transformers hands them to the attention function."""
    from transformers import AttentionInterface

    class Stop(Exception):  # noqa: N818
        pass

    previous, found = model.config._attn_implementation, []

    def spy(module: Any, query: Any, key: Any, value: Any, *_args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        if module.layer_idx == min(layer, len(model.model.layers) - 1):
            found.extend((query, key, value))
            raise Stop
        return blocked_attention(query, key, value, scale=kwargs.get("scaling")), None

    AttentionInterface.register("benchmark_spy", spy)
    model.set_attn_implementation("benchmark_spy")
    try:
        model.model(ids, use_cache=False)
    except Stop:
        pass
    finally:
        model.set_attn_implementation(previous)
    return tuple(found)


def row(name: str, length: int, sides: dict[str, Side], repeats: int, dtype: torch.dtype) -> float:
    """Time the sides in turn, compare their outputs, print a row; returns the ratio of wall times."""
    wall: dict[str, list[float]] = {side: [] for side in sides}
    processor: dict[str, list[float]] = {side: [] for side in sides}
    outputs = {}
    for repeat in range(repeats + 1):
        for side, compute in sides.items():
            start, spent = time.perf_counter(), time.process_time()
            outputs[side] = compute()
            if repeat:
                wall[side].append(time.perf_counter() - start)
                processor[side].append(time.process_time() - spent)
    stock, ours = outputs["stock"].float(), outputs["ours"].float()
    difference = float((stock - ours).abs().max() / stock.abs().max())
    if not difference <= OUTPUT_TOLERANCE[dtype]:
        raise SystemExit(f"FAILED: {name}: outputs differ by {difference:.1e} of the largest")
    a, b = (statistics.median(wall[side]) for side in ("stock", "ours"))
    c, d = (statistics.median(processor[side]) for side in ("stock", "ours"))
    print(f"| {name} | {length} | {a:.3f} ({c:.3f}) | {b:.3f} ({d:.3f}) | {a / b:.2f} | {c / d:.2f} |", flush=True)
    return a / b


class Layer(torch.nn.Module):
    """What transformers' attention functions read from a module."""

    def __init__(self, groups: int, sinks: torch.Tensor | None = None) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal, self.sinks = groups, True, sinks


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(Layer(query.shape[1] // key.shape[1]), query, key, value, mask)[0]


def windowed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int) -> dict[str, Side]:
    def rule(_b: Any, _h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (k > q - size)

    at = torch.arange(query.shape[2])
    # Both sides make their masks once a forward, not once a layer: left out of the time.
    mask = rule(0, 0, at[:, None], at)[None, None]
    bands = plan(rule, query.shape[2])
    return {
        "stock": lambda: sdpa(query, key, value, mask),
        "ours": lambda: blocked_attention(query, key, value, bands=bands),
    }


def eager_sides(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> dict[str, Side]:
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss

    length = query.shape[2]
    mask = torch.full((length, length), torch.finfo(query.dtype).min, dtype=query.dtype).triu_(1)[None, None]
    layer = Layer(query.shape[1] // key.shape[1], sinks).eval()
    if sinks is not None:
        stock = lambda: gpt_oss(layer, query, key, value, mask, scaling=scale)[0]  # noqa: E731
    else:
        stock = lambda: gemma2(layer, query, key, value, mask, scaling=scale, softcap=softcap)[0]  # noqa: E731
    return {"stock": stock, "ours": lambda: blocked_attention(query, key, value, softcap=softcap, sinks=sinks)}


def packed_tiles(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, rows: int = 128, keys: int = 512
) -> torch.Tensor:
    """The spike: the heads of a key head as rows of one matrix, tiles of keys that stay in the cache, and no maximum.

    exp() of the bare scores: right while they stay within float32's range, which the comparison of outputs checks.
    Small products in a tight loop: one thread, where no other thread must be waited for after each.
    """
    _, heads, length, width = query.shape
    shared = key.shape[1]
    group = heads // shared
    turned, values = key[0].transpose(1, 2).contiguous(), value[0].contiguous()
    scaled = query[0].reshape(shared, group, length, width) * scale
    out = query.new_empty(1, length, shared, group, width)
    for head in range(shared):
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            packed = scaled[head, :, start:stop].reshape(-1, width)
            total = packed.new_zeros(packed.shape[0], 1)
            found = torch.zeros_like(packed)
            for low in range(0, stop, keys):
                high = min(low + keys, stop)
                scores = torch.mm(packed, turned[head, :, low:high]).exp_()
                if high > start:
                    block = scores.view(group, stop - start, -1)[..., max(0, start - low) :]
                    block.tril_(max(0, low - start) * -1)
                total += scores.sum(-1, keepdim=True)
                torch.addmm(found, scores, values[head, low:high], out=found)
            out[0, start:stop, head] = (found / total).view(group, stop - start, width).transpose(0, 1)
    return out.flatten(2, 3)


def token_losses(model: Any, states: torch.Tensor, ids: torch.Tensor, rows: int = 1024) -> torch.Tensor:
    parts = zip(states[:-1].split(rows), ids[1:].split(rows), strict=True)
    return torch.cat([F.cross_entropy(model.lm_head(x).float(), y, reduction="none") for x, y in parts])


def whole(model: Any, ids: torch.Tensor, dtype: torch.dtype, repeats: int) -> None:
    """Whole forwards without the head, and the losses of every token."""

    def ours() -> torch.Tensor:
        with cpu_attention(model):
            return model.model(ids, use_cache=False).last_hidden_state

    sides = {"stock": lambda: model.model(ids, use_cache=False).last_hidden_state, "ours": ours}
    hidden, seconds = {}, {side: [] for side in sides}
    for _ in range(repeats):
        for side, compute in sides.items():
            start = time.perf_counter()
            hidden[side] = compute()
            seconds[side].append(time.perf_counter() - start)
    losses = {side: token_losses(model, states[0], ids[0]) for side, states in hidden.items()}
    difference = float((losses["stock"] - losses["ours"]).mean().abs())
    largest = float((losses["stock"] - losses["ours"]).abs().max())
    a, b = (statistics.median(seconds[side]) for side in ("stock", "ours"))
    print(
        f"\nwhole forward, {len(model.model.layers)} layers: {a:.1f} s stock, {b:.1f} s ours, {a / b:.2f} x; ", end=""
    )
    print(f"mean loss differs by {difference:.1e} nats, one token's by at most {largest:.1e}")
    print(f"worth_it says {worth_it(model, ids.shape[1])}")
    if not difference <= TOLERANCE[dtype]:
        raise SystemExit(f"FAILED: the losses differ by {difference:.1e} nats")


if __name__ == "__main__":
    sys.exit(main())
