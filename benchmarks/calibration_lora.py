"""LoRA steps on SmolLM2-135M: ctxforge against transformers' Trainer + peft and TRL's SFTTrainer, on the same rows.

    OMP_NUM_THREADS=1 python benchmarks/calibration_lora.py [--trl FOLDER] [--check]

Rows of *Emma*, rank 32 on attention with the same initial values, float32, AdamW, clipping: each step's loss must be
the same on all sides to 1e-4, or the run fails. Every side is a process of its own and takes one step to warm up. Rows
come with and without checkpointed layers, because the peers differ in what they do by default: Trainer keeps all
activations, SFTTrainer checkpoints. `--trl` is a folder with TRL and what it needs, where it is not installed.

Goals: at least the tokens/s of either peer, and at most 0.6 of its peak memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for place in (ROOT, ROOT / "benchmarks"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from calibration_steps import (  # noqa: E402
    LOSS_TOLERANCE,
    OURS,
    TRAINER,
    TRL,
    Job,
    Report,
    disagreement,
    emma_ids,
    has_trl,
    in_process,
    measure,
    steps_of,
)

GOAL_MEMORY = 0.6


def jobs(data: str, options: argparse.Namespace) -> dict[str, Job]:
    """The variants, in the order in which they are run."""
    found = {}
    for side in (TRAINER, TRL):
        for name, how in (("all kept", "no"), ("checkpointed", "yes")):
            found[f"{side}, {name}"] = Job(side, data, options.batch, how)
    kept = {"all kept": ("no", None), "checkpointed": ("yes", None)}
    kept["checkpointed, attention kept"] = ("attention", None)
    kept["checkpointed, attention kept, tiled"] = ("attention", options.tile)
    for name, (how, tile) in kept.items():
        found[f"{OURS}, {name}"] = Job(OURS, data, options.batch, how, tile=tile, slice_rows=options.slice_rows)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="after one that warms up")
    parser.add_argument("--tile", type=int, default=576, help="tokens of a tile of ctxforge's tiled MLPs")
    parser.add_argument("--slice-rows", type=int, help="rows of a slice of ctxforge's loss")
    parser.add_argument("--trl", type=Path, help="a folder with TRL, for its process alone")
    parser.add_argument("--only", nargs="*", help="variants whose name contains one of these")
    parser.add_argument("--timeout", type=float, default=540, help="seconds for one side")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    options = parser.parse_args()
    import numpy as np

    rows = (options.steps + 1) * options.batch
    folder, ids = in_process(emma_ids, rows * options.length)
    with tempfile.TemporaryDirectory() as work:
        data = str(Path(work) / "rows.npz")
        np.savez(data, ids=ids.reshape(rows, options.length))
        chosen = jobs(data, options)
        if not has_trl(options.trl):
            print("TRL cannot be imported: left out (--trl FOLDER)\n")
            chosen = {name: job for name, job in chosen.items() if job.side != TRL}
        if options.only:
            chosen = {name: job for name, job in chosen.items() if any(part in name for part in options.only)}
        found = {}
        for name, job in chosen.items():
            found[name] = measure(job, folder, options.timeout, options.trl)
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    apart = disagreement(list(found.values()))
    if not apart <= LOSS_TOLERANCE:
        raise SystemExit(f"FAILED: the sides' losses differ by {apart:.1e}: not the same work")
    tokens = options.batch * options.length
    print(f"SmolLM2-135M, float32, rank 32 on attention, {options.batch} rows of {options.length} tokens a step,")
    print(f"median of {options.steps} steps; losses of all steps agree to {apart:.0e}\n")
    print("| | tokens a processor second | tokens/s | MB loaded | peak MB |\n|---|---:|---:|---:|---:|")
    for name, seconds, processor, loaded, peak in steps_of(found):
        print(f"| {name} | {tokens / processor:.1f} | {tokens / seconds:.1f} | {loaded:.0f} | {peak:.0f} |")
    met = compare(found)
    return 1 if options.check and not met else 0


def compare(found: dict[str, Report]) -> bool:
    """Print ctxforge's variants as ratios to each peer's; whether one of them meets both goals against all peers."""
    figures = {name: (processor, peak) for name, _, processor, _, peak in steps_of(found)}
    theirs = [name for name in figures if not name.startswith(OURS)]
    if not theirs:
        return True
    print("\nratio of tokens a processor second, and of peak memory (goals: >= 1 and <= 0.6)\n")
    mine = [name for name in figures if name.startswith(OURS)]
    print(f"| | {' | '.join(name.removeprefix(OURS + ', ') for name in mine)} |\n|---|{'---:|' * len(mine)}")
    met = dict.fromkeys(mine, True)
    for peer in theirs:
        cells = []
        for name in mine:
            speed, memory = figures[peer][0] / figures[name][0], figures[name][1] / figures[peer][1]
            met[name] &= speed >= 1 and memory <= GOAL_MEMORY
            cells.append(f"{speed:.2f}, {memory:.2f}")
        print(f"| {peer} | {' | '.join(cells)} |")
    return any(met.values())


if __name__ == "__main__":
    raise SystemExit(main())
