"""PoSE 2k -> 8k on SmolLM2-135M: ctxforge's step against a full-length step of transformers' Trainer with peft.

    OMP_NUM_THREADS=1 python benchmarks/calibration_pose.py [--check]
    OMP_NUM_THREADS=1 python benchmarks/calibration_pose.py --quality [--steps 8] [--stretch 4]

A PoSE step trains on 2048 tokens at positions up to 8192, Trainer's on all 8192 with checkpointed layers; both with
rank 32 on attention, float32, AdamW and clipping, each in a process of its own. The two do not compute the same, so two
other agreements are demanded first, to 1e-4: PoSE's loss is that of the stock model's own logits at the same positions,
and ctxforge's full-length step has Trainer's loss.

Goals: 4 times as fast in processor time, at most a third of the peak memory, and with `--quality` a held-out NLL at 8k
within 0.05 of full-length training on the same documents for as many steps. SmolLM2 was trained at 8k, so there is
little to learn unless `--stretch` interpolates its positions, which spoils it first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for place in (ROOT, ROOT / "benchmarks"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from calibration_steps import (  # noqa: E402
    LOSS_TOLERANCE,
    OURS,
    SEED,
    TRAINER,
    Job,
    Report,
    emma_ids,
    in_process,
    load_model,
    measure,
    middle,
)

GOAL_SPEED, GOAL_MEMORY, GOAL_NLL = 4.0, 1 / 3, 0.05
FULL, FULL_OURS = f"{TRAINER}, full length", f"{OURS}, full length"


def write_rows(work: Path, documents: Any, window: int, name: str = "rows") -> tuple[str, str]:
    """Files of full-length rows and of PoSE's rows of the same documents [rows, L']."""
    import numpy as np

    from ctxforge.calibrate.placement import pose

    length = documents.shape[1]
    rows = [pose(one, window, length, seed=(SEED, step)) for step, one in enumerate(documents)]
    full, short = str(work / f"{name}-full.npz"), str(work / f"{name}-pose.npz")
    np.savez(full, ids=documents)
    columns = {key: np.stack([getattr(row, key) for row in rows]) for key in ("ids", "positions", "weights")}
    np.savez(short, **columns)
    return full, short


def stock_loss(job: Job, folder: Path) -> float:
    """The first row's loss from the stock model's own logits, all at once, at the row's positions."""
    import numpy as np
    import torch

    with np.load(job.data) as data:
        ids, where, weights = (torch.tensor(data[key][:1]) for key in ("ids", "positions", "weights"))
    model = load_model(job, folder).eval()
    with torch.no_grad():
        # The mask of ones keeps transformers from reading the jump of positions as the start of another text.
        logits = model(ids, position_ids=where, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
        found = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    counted = weights[0, 1:] > 0
    return float(found[counted].mean())


def agree(name: str, one: float, other: float) -> None:
    if not abs(one - other) <= LOSS_TOLERANCE:
        raise SystemExit(f"FAILED: {name}: losses {one:.6f} and {other:.6f} differ")
    print(f"{name}: losses {one:.6f} and {other:.6f} agree")


def speed(options: argparse.Namespace, folder: Path, ids: Any, work: Path) -> bool:
    """Print the table of times and memory; whether the goals are met."""
    import numpy as np

    document = ids[: options.length][None]
    _, pose_rows = write_rows(work, np.repeat(document, options.repeats + 1, axis=0), options.window)
    once, _ = write_rows(work, document, options.window, "once")
    sliced: dict[str, Any] = {"slice_rows": options.slice_rows}
    variants = {
        FULL: Job(TRAINER, once, checkpoint="yes"),
        FULL_OURS: Job(OURS, once, checkpoint="attention", tile=options.tile, **sliced),
        f"{OURS}, PoSE, all kept": Job(OURS, pose_rows, **sliced),
        f"{OURS}, PoSE, checkpointed": Job(OURS, pose_rows, checkpoint="yes", **sliced),
        f"{OURS}, PoSE, checkpointed, attention kept": Job(OURS, pose_rows, checkpoint="attention", **sliced),
        f"{OURS}, PoSE, as above, tiled": Job(OURS, pose_rows, checkpoint="attention", tile=options.tile, **sliced),
    }
    found: dict[str, Report] = {}
    for name, job in variants.items():
        found[name] = measure(job, folder, options.timeout)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    agree("full length, ctxforge and Trainer", found[FULL_OURS].losses[0], found[FULL].losses[0])
    stock = in_process(stock_loss, variants[f"{OURS}, PoSE, all kept"], folder)
    for name, one in found.items():
        if "PoSE" in name:
            agree(f"{name}, and the stock model", one.losses[0], stock)
    print(f"\nSmolLM2-135M, float32, rank 32 on attention, rows of {options.window} tokens at positions up to")
    print(f"{options.length} against rows of {options.length} tokens, one a step; full length: a single step\n")
    print("| | seconds | processor seconds | MB loaded | peak MB | times as fast | of the memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    base, met = found[FULL], False
    for name, one in found.items():
        seconds, processor = middle(one.seconds), middle(one.processor)
        fast, memory = middle(base.processor) / processor, one.peak_mb / base.peak_mb
        met |= "PoSE" in name and fast >= GOAL_SPEED and memory <= GOAL_MEMORY
        print(
            f"| {name} | {seconds:.2f} | {processor:.2f} | {one.loaded_mb:.0f} | {one.peak_mb:.0f} | {fast:.2f} "
            f"| {memory:.2f} |"
        )
    print(f"\ngoals, {GOAL_SPEED:.0f} times as fast in a third of the memory: {'met' if met else 'missed'}")
    return met


def quality(options: argparse.Namespace, folder: Path, ids: Any, work: Path) -> bool:
    """Print held-out NLL untrained, and after as many steps of either kind on the same documents."""
    import numpy as np

    rows = ids.reshape(-1, options.length)
    held_out, none = str(work / "held-out.npz"), str(work / "none.npz")
    np.savez(held_out, ids=rows[options.steps :])
    np.savez(none, ids=rows[:0])
    full, pose_rows = write_rows(work, rows[: options.steps], options.window)
    same: dict[str, Any] = {"stretch": options.stretch, "held_out": held_out}
    jobs = {
        "untrained": Job(OURS, none, **same),
        f"{OURS}, PoSE": Job(OURS, pose_rows, checkpoint="attention", **same),
    }
    if options.full_side == "trainer":
        jobs[FULL] = Job(TRAINER, full, checkpoint="yes", **same)
    else:
        jobs[FULL_OURS] = Job(OURS, full, checkpoint="attention", **same)
    print(f"held-out NLL at {options.length} tokens, {len(rows) - options.steps} rows of Emma, nats a token, after")
    print(f"{options.steps} steps of one row; positions interpolated by {options.stretch:g}\n")
    print("| | NLL | loss at the first and the last step | tokens trained |\n|---|---:|---:|---:|")
    nll: dict[str, float] = {}
    for name, job in jobs.items():
        one = measure(job, folder, options.timeout)
        nll[name] = one.nll or float("nan")
        ends = f"{one.losses[0]:.4f}, {one.losses[-1]:.4f}" if one.losses else "-"
        tokens = np.load(job.data)["ids"].size
        print(f"| {name} | {nll[name]:.4f} | {ends} | {tokens} |", flush=True)
    untrained, short, long = nll.values()
    print(f"\nPoSE less full length: {short - long:+.4f} (goal: at most {GOAL_NLL}); training's gain: ", end="")
    print(f"{untrained - short:.4f} by PoSE, {untrained - long:.4f} by full length")
    return short - long <= GOAL_NLL


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3, help="PoSE steps after one that warms up")
    parser.add_argument("--slice-rows", type=int, help="rows of a slice of ctxforge's loss")
    parser.add_argument("--tile", type=int, default=576, help="tokens of a tile of ctxforge's tiled MLPs")
    parser.add_argument("--quality", action="store_true", help="compare held-out NLL instead of speed")
    parser.add_argument("--steps", type=int, default=8, help="of the quality run, one document each")
    parser.add_argument("--held-out", type=int, default=2, help="rows that the quality run measures on")
    parser.add_argument("--stretch", type=float, default=1.0, help="interpolate positions by this factor first")
    parser.add_argument(
        "--full-side", choices=("trainer", "ctxforge"), default="trainer", help="which does the full-length training"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one side")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    options = parser.parse_args(arguments)
    rows = options.steps + options.held_out if options.quality else 1
    folder, ids = in_process(emma_ids, rows * options.length)
    with tempfile.TemporaryDirectory() as work:
        met = (quality if options.quality else speed)(options, folder, ids, Path(work))
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    raise SystemExit(main())
