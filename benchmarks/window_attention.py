"""Systems whose cost is linear in the length against full causal SDPA: one layer's attention, growth and memory.

    python benchmarks/window_attention.py [SYSTEM ...] [--lengths 4096,8192,16384,32768,65536] [--repeats 3]
        [--shape smollm2|8b] [--dtype float32|bfloat16] [--device cpu|cuda] [--threads 1] [--largest-full 32768]
        [--check]

SYSTEM is an attachment (`lm-infinite:window=2038,sinks=10`); without any, LM-Infinite, StreamingLLM, blockwise causal
attention and LongNet, each with a reach of 2048 tokens (LongNet: with segments that cost about as much). A random layer
with SmolLM2's attention (9 heads, 3 key heads, 64 dimensions) or an 8B Llama's (32, 8, 128) is converted by each. A
layer's projections are replaced by tables, so what is timed is what the layer does between them: rotation and
attention, of the stock layer with SDPA and of the converted one, in turn, on the same states.

Reported: median seconds, the ratio to full attention at the same length, the exponent p of time ~ L^p (least squares
over all lengths), and the most bytes that tensors held beyond what came in, for each number of the query. Seconds are
the processor's on a CPU (the wall clock of a shared machine says little) and the clock's on a GPU.

At 3072 tokens, outputs at the borders of windows and blocks must be those of the dense reference of ctxforge/attention
(InfLLM: within its window, those of full attention), or the run fails whatever its speed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ctxforge  # noqa: E402
from ctxforge.attention import find_attachment  # noqa: E402
from ctxforge.attention.reference import dense_attention  # noqa: E402

EXPONENT_GOAL = 1.1
RATIO_GOAL = 1 / 6
# What may be held beyond the states themselves, in bytes a number of the query: a mask of T x T booleans is 114 at 64k.
MEMORY_GOAL = 16
SYSTEMS = (
    "lm-infinite:window=2038,sinks=10",
    "streaming-llm:window=2044,sinks=4",
    "blockwise-causal:block=1024",
    "longnet:segments=2048/4096/8192/16384,dilations=1/2/4/8",
)
# Relative to the largest output.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
CHECKED = 3072
Spent = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """Query heads, key heads, and dimensions of a head."""

    heads: int
    key_heads: int
    dimensions: int


SHAPES = {"smollm2": Shape(9, 3, 64), "8b": Shape(32, 8, 128)}
TRAINED = 8192


@dataclass
class Side:
    """One attention layer between its projections.

    Attributes:
        layer: the attention module, its projections replaced.
        rotary: the model's rotary module.
        folder: the checkpoint.
    """

    layer: Any
    rotary: Any
    folder: Path

    def run(self, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Output [1, L, H * D] for query, key and value [1, L, heads * D]."""
        length = states[0].shape[1]
        self.layer.q_proj, self.layer.k_proj, self.layer.v_proj = (Table(part) for part in states)
        positions = torch.arange(length, device=states[0].device)[None]
        hidden = states[0].new_empty(1, length, 1).expand_as(states[0])
        turned = self.rotary(states[0], positions)
        output: torch.Tensor = self.layer(
            hidden_states=hidden, position_embeddings=turned, attention_mask=None, position_ids=positions
        )[0]
        return output


class Table(torch.nn.Module):
    """A projection that hands out what it was given."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, _hidden: torch.Tensor) -> torch.Tensor:
        return self.states


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--lengths", default="4096,8192,16384,32768,65536")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", default="smollm2", choices=tuple(SHAPES))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--largest-full", type=int, default=32768, help="no full attention beyond this length")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    dtype, shape = getattr(torch, options.dtype), SHAPES[options.shape]
    lengths = [int(length) for length in options.lengths.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        sides = load(options.systems, max(lengths), Path(folder), options.device, dtype, shape)
        for name in options.systems:
            check_numbers(name, sides, options.device, dtype, shape)
        where = torch.cuda.get_device_name() if options.device != "cpu" else f"CPU, {options.threads} threads"
        print(f"{where}, {options.shape}, {options.dtype}, median of {options.repeats}; seconds (of full attention)\n")
        times = measure(sides, lengths, options, dtype, shape)
        held = {name: most_held(side, lengths[-1], options.device, dtype, shape) for name, side in sides.items()}
    missed = report(times, held, lengths)
    return 1 if options.check and missed else 0


def load(
    systems: list[str], target: int, folder: Path, device: str, dtype: torch.dtype, shape: Shape
) -> dict[str, Side]:
    """The stock layer and each system's."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=shape.heads * shape.dimensions,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=TRAINED,
        rope_theta=100000.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "full")
    found = {}
    for name in ("full", *systems):
        out = folder / name.partition(":")[0]
        if name != "full":
            ctxforge.extend(folder / "full", attach=name, to=target, out=out)
        remote = {"trust_remote_code": True} if name != "full" else {"attn_implementation": "sdpa"}
        model = AutoModelForCausalLM.from_pretrained(out, dtype=dtype, **remote).eval().to(device)
        layer = model.model.layers[0].self_attn
        layer.o_proj = torch.nn.Identity()
        found[name] = Side(layer, model.model.rotary_emb, out)
    return found


def states_of(length: int, device: str, dtype: torch.dtype, shape: Shape) -> tuple[torch.Tensor, ...]:
    """Query, key and value [1, L, heads * D], sharp enough that a wrong mask shows."""
    generator = torch.Generator().manual_seed(length)
    scales = ((shape.heads, 2.0), (shape.key_heads, 1.0), (shape.key_heads, 1.0))
    return tuple(
        (scale * torch.randn(1, length, heads * shape.dimensions, generator=generator)).to(device, dtype)
        for heads, scale in scales
    )


def check_numbers(name: str, sides: dict[str, Side], device: str, dtype: torch.dtype, shape: Shape) -> None:
    """The system's output is the dense reference's, or the run ends here."""
    import json

    states = states_of(CHECKED, device, dtype, shape)
    found = sides[name].run(states).float().cpu()
    attachment = find_attachment(name.partition(":")[0])
    settings = json.loads((sides[name].folder / "config.json").read_text())["ctxforge"]
    if attachment.pattern is None:  # who sees whom depends on the states: within the window it is full attention
        window = int(settings["parameters"]["window"])
        wanted = sides["full"].run(states)[0, :window].float().cpu()
        apart = float((found[0, :window] - wanted).abs().max() / wanted.abs().max())
        assert apart < TOLERANCE[dtype], f"{name}: {apart:.2g} from full attention within its window"
        return
    pattern = attachment.pattern(settings["parameters"], CHECKED, shape.heads)
    query, key, value = (part.float().cpu().view(1, CHECKED, -1, shape.dimensions).transpose(1, 2) for part in states)
    frequencies = sides["full"].rotary.inv_freq.float().cpu()
    # A few queries are enough, at the borders of blocks and windows.
    rows = sorted({0, 1, 2037, 2038, 2047, 2048, CHECKED - 1})
    wanted = reference_rows(pattern, rows, query, key, value, frequencies)
    apart = float((found[0, rows] - wanted).abs().max() / wanted.abs().max())
    assert apart < TOLERANCE[dtype], f"{name}: {apart:.2g} from the dense reference"


def reference_rows(
    pattern: Any,
    rows: list[int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    frequencies: torch.Tensor,
) -> torch.Tensor:
    """The dense reference's output [rows, H * D] for these queries alone."""
    from dataclasses import replace

    def chosen(part: Any) -> Any:
        return part[:, rows] if isinstance(part, torch.Tensor) and part.ndim == 3 else part

    bias = getattr(pattern, "bias", None)
    seen = replace(
        pattern,
        visible=chosen(pattern.visible),
        distance=chosen(pattern.distance),
        **({"bias": chosen(bias)} if bias is not None else {}),
    )
    output = dense_attention(
        query[:, :, rows].double(),
        key.double(),
        value.double(),
        frequencies.double(),
        seen,
        scaling=query.shape[3] ** -0.5,
    )
    return output.transpose(1, 2).reshape(len(rows), -1).float()


def measure(
    sides: dict[str, Side], lengths: list[int], options: argparse.Namespace, dtype: torch.dtype, shape: Shape
) -> dict[str, dict[int, float]]:
    """Median seconds of each side and length, all sides in turn within a repeat."""
    spent: dict[str, dict[int, list[float]]] = {name: {length: [] for length in lengths} for name in sides}
    for length in lengths:
        states = states_of(length, options.device, dtype, shape)
        for repeat in range(options.repeats + 1):
            for name, side in sides.items():
                if name == "full" and length > options.largest_full:
                    continue
                seconds = timed(lambda side=side, states=states: side.run(states), options.device)
                if repeat:
                    spent[name][length].append(seconds)
    return {
        name: {length: statistics.median(seconds) for length, seconds in rows.items() if seconds}
        for name, rows in spent.items()
    }


def timed(compute: Callable[[], Any], device: str) -> float:
    """Seconds: of the processor on a CPU, of the clock on a GPU."""
    if device == "cpu":
        start = time.process_time()
        compute()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    compute()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def most_held(side: Side, length: int, device: str, dtype: torch.dtype, shape: Shape) -> float:
    """The most bytes, for each number of the query, that tensors hold at once in a run beyond what came in."""
    states = states_of(length, device, dtype, shape)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side.run(states)
        return (torch.cuda.max_memory_allocated() - before) / states[0].numel()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        side.run(states)
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / states[0].numel()


def report(times: dict[str, dict[int, float]], held: dict[str, float], lengths: list[int]) -> list[str]:
    """Print the table and what was missed, and return the latter."""
    print(f"| attention | {' | '.join(str(length) for length in lengths)} | exponent | bytes |")
    print(f"|---|{'---|' * len(lengths)}---|---|")
    missed = []
    for name, rows in times.items():
        cells = []
        for length in lengths:
            full = times["full"].get(length)
            cells.append(
                "-"
                if length not in rows
                else f"{rows[length]:.3f}" + (f" ({rows[length] / full:.3f})" if full and name != "full" else "")
            )
        power = exponent(rows)
        print(f"| {name} | {' | '.join(cells)} | {power:.2f} | {held[name]:.1f} |")
        if name == "full":
            continue
        if power > EXPONENT_GOAL:
            missed.append(f"{name}: grows as L^{power:.2f}")
        if 32768 in rows and 32768 in times["full"] and rows[32768] > RATIO_GOAL * times["full"][32768]:
            missed.append(f"{name}: {rows[32768] / times['full'][32768]:.3f} of full attention at 32768")
        if held[name] > MEMORY_GOAL:
            missed.append(f"{name}: {held[name]:.1f} bytes")
    print(f"\ngoals: L^{EXPONENT_GOAL}, {RATIO_GOAL:.3f} at 32768, {MEMORY_GOAL} bytes: {missed or 'met'}")
    return missed


def exponent(rows: dict[int, float]) -> float:
    """p of time ~ L^p, by least squares on the logarithms."""
    if len(rows) < 2:
        return math.nan
    points = [(math.log(length), math.log(seconds)) for length, seconds in rows.items()]
    middle = [statistics.mean(column) for column in zip(*points, strict=True)]
    rise = sum((x - middle[0]) * (y - middle[1]) for x, y in points)
    return rise / sum((x - middle[0]) ** 2 for x, _ in points)


if __name__ == "__main__":
    sys.exit(main())
