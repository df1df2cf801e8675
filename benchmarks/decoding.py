"""Systems that rotate keys themselves against the stock model with full SDPA: prefill, and each decoded token.

    python benchmarks/decoding.py [SYSTEM ...] [--contexts 4096,16384] [--tokens 64] [--repeats 3] [--check]

SYSTEM is a method with custom code (dynamic-yarn, dynamic-ntk-exact, xpos, or with parameters
`xpos:scale_base=1024`) or an attachment (`self-extend`, `dual-chunk:...`, `string@yarn`: see `ctxforge attachments`);
without any, the methods. One random Llama of 4 layers (hidden 512, 8 heads, 4 key heads) is converted by each, from a
trained length of a quarter of the longest context. All sides have the same weights and run in turn within each repeat.

- prefill: one pass over the context with a cache, the last token's logits;
- decode: mean over the tokens after it, the first one included, which makes the kept keys of a prefill that crossed
  changes of table.

Ratios are of medians over the repeats, of wall clock and of processor time; on a shared machine the wall clock says
little. Outputs must be finite, and those of the dynamic methods up to the trained length the stock model's, or the run
fails whatever its speed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ctxforge  # noqa: E402
from ctxforge.rope.methods import METHODS  # noqa: E402

PREFILL_GOAL = 2.5
DECODE_GOAL = 1.5
# Relative to the largest logit, float32.
TOLERANCE = 1e-4
DYNAMIC = ("dynamic-yarn", "dynamic-ntk-exact")
CONFIG = {
    "vocab_size": 256,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "initializer_range": 0.05,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Spent = tuple[float, float]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=[*DYNAMIC, "xpos"])
    parser.add_argument("--contexts", default="4096,16384")
    parser.add_argument("--tokens", type=int, default=64, help="decoded tokens after each prefill")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    contexts = [int(length) for length in options.contexts.split(",")]
    trained = max(contexts) // 4
    with tempfile.TemporaryDirectory() as folder:
        sides = load(options.systems, trained, 2 * max(contexts), Path(folder))
        check_short(sides, min(trained, 1024))
        print(
            f"trained length {trained}, {options.threads} threads, median of {options.repeats}, {options.tokens} tokens"
        )
        print("\n| context | system | prefill s | x stock | decode ms/token | x stock | goals |")
        print("|---|---|---|---|---|---|---|")
        missed = [name for length in contexts for name in compare(sides, length, options.tokens, options.repeats)]
    print(f"\ngoals: prefill at most {PREFILL_GOAL} x, decode at most {DECODE_GOAL} x, by processor time")
    return 1 if options.check and missed else 0


def load(systems: list[str], trained: int, target: int, folder: Path) -> dict[str, Any]:
    """The stock model and each system's, by name."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG, max_position_embeddings=trained)).save_pretrained(
        folder / "stock"
    )
    found = {"stock": AutoModelForCausalLM.from_pretrained(folder / "stock", attn_implementation="sdpa").eval()}
    for number, system in enumerate(systems):
        name, _, settings = system.partition(":")
        out = folder / str(number)
        if name in METHODS:
            parameters = dict(entry.split("=", 1) for entry in settings.split(",") if entry)
            ctxforge.extend(folder / "stock", method=name, parameters=parameters, to=target, out=out)
        else:
            attach, _, method = system.partition("@")
            ctxforge.extend(folder / "stock", attach=attach, method=method or "none", to=target, out=out)
        found[system] = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype=torch.float32).eval()
    return found


def check_short(sides: dict[str, Any], length: int) -> None:
    """Within the trained length a dynamic method is the stock model, or the run ends here."""
    ids = torch.randint(3, 256, (1, length), generator=torch.Generator().manual_seed(1))
    wanted = sides["stock"](input_ids=ids, use_cache=False).logits
    for name, model in sides.items():
        found = model(input_ids=ids, use_cache=False).logits
        apart = float((found - wanted).abs().max() / wanted.abs().max())
        assert found.isfinite().all(), f"{name}: not finite"
        if name.partition(":")[0] in DYNAMIC:
            assert apart < TOLERANCE, f"{name}: {apart:.2g} from the stock model at {length} tokens"


def compare(sides: dict[str, Any], length: int, tokens: int, repeats: int) -> list[str]:
    """Time all sides in turn, print a row each; returns those that missed a goal."""
    ids = torch.randint(3, 256, (1, length + tokens), generator=torch.Generator().manual_seed(2))
    prefill: dict[str, list[Spent]] = {name: [] for name in sides}
    decode: dict[str, list[Spent]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, model in sides.items():
            spent, step = timed(lambda model=model: model(input_ids=ids[:, :length], use_cache=True, logits_to_keep=1))
            prefill[name].append(spent)
            spent, logits = timed(lambda model=model, step=step: decoded(model, ids, length, step))
            decode[name].append(spent)
            assert logits.isfinite().all(), f"{name}: not finite"
    missed = []
    for name in sides:
        seconds, ratio, busy = against(prefill, name)
        per_token, slower, busier = against(decode, name)
        met = busy <= PREFILL_GOAL and busier <= DECODE_GOAL
        missed += [] if met else [name]
        print(
            f"| {length} | {name} | {seconds:.2f} | {ratio:.2f} ({busy:.2f}) | {1000 * per_token / tokens:.2f} |"
            f" {slower:.2f} ({busier:.2f}) | {'met' if met else 'missed'} |",
            flush=True,
        )
    return missed


def decoded(model: Any, ids: torch.Tensor, start: int, step: Any) -> torch.Tensor:
    """The last token's logits, the tokens of `ids` from `start` on fed one at a time."""
    name = "cache" if "cache" in step else "past_key_values"
    for at in range(start, ids.shape[1]):
        step = model(input_ids=ids[:, at : at + 1], use_cache=True, **{name: step[name]})
    logits: torch.Tensor = step.logits
    return logits


def timed(compute: Callable[[], Any]) -> tuple[Spent, Any]:
    """Seconds of wall clock and of processor, and the result."""
    wall, processor = time.perf_counter(), time.process_time()
    found = compute()
    return (time.perf_counter() - wall, time.process_time() - processor), found


def against(times: dict[str, list[Spent]], name: str) -> tuple[float, float, float]:
    """Median seconds of wall clock, and the ratios to the stock model's: wall clock, processor."""
    (wall, processor), (stock_wall, stock_processor) = (
        tuple(statistics.median(column) for column in zip(*times[side], strict=True)) for side in (name, "stock")
    )
    return wall, wall / stock_wall, processor / stock_processor


if __name__ == "__main__":
    sys.exit(main())
