"""Perplexity at several context lengths: one sliced pass against YaRN's protocol, side by side.

    python benchmarks/perplexity.py --model DIR --text FILE

The peer is the single-window protocol of jquesnelle/yarn `eval/perplexity.py` (MIT, commit 995db5b; `--truncate`),
written anew: for every length one forward over the first n tokens with `labels`, so with whole logits. Ours is one
pass over the longest length. Each runs in a process of its own, alternating; wall time is that of the measurement
without loading, peak memory is the process's, from `wait4`. The losses must agree to 1e-4 nats or the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4
GOAL_SPEED, GOAL_MEMORY = 1.6, 1 / 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: SmolLM2-135M from the registry)")
    parser.add_argument("--text", type=Path, help="text file (default: Emma from the registry)")
    parser.add_argument("--lengths", default="1024,2048,4096,8192", help="context lengths, comma-separated")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side; medians are reported")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--ids", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    lengths = sorted({int(part) for part in options.lengths.split(",")})
    if options.worker:
        print(json.dumps(work(options.worker, options, lengths)))
        return 0
    return compare(options, lengths)


def work(side: str, options: argparse.Namespace, lengths: list[int]) -> dict[str, Any]:
    """The measured part, in a fresh process: load, warm up on a short input, measure."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    ids = json.loads(options.ids.read_text())
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), local_files_only=True
    ).eval()
    with torch.no_grad():
        model(torch.tensor([ids[:64]]), use_cache=False)
    start = time.perf_counter()
    losses = SIDES[side](model, ids, lengths)
    return {"seconds": time.perf_counter() - start, "nll": losses}


def ours(model: Any, ids: list[int], lengths: list[int]) -> list[float]:
    """One pass over the longest length, with everything that `verify` does around it."""
    from ctxforge.verification.onepass import OnePass
    from ctxforge.verification.perplexity import by_length

    runner = OnePass(model, longest=lengths[-1])
    if not runner.prefix_invariant or runner.head_kind != "sliced":
        raise SystemExit("this model needs a pass a length or whole logits: nothing to compare")
    window = runner.losses(ids[: lengths[-1]]).numpy()
    return [by_length([window], length).nll for length in lengths]


def peer(model: Any, ids: list[int], lengths: list[int]) -> list[float]:
    """One forward a length with labels: whole logits, the loss of transformers."""
    import torch

    found = []
    for length in lengths:
        window = torch.tensor([ids[:length]])
        with torch.no_grad():
            output = model(window, labels=window.clone(), attention_mask=torch.ones_like(window))
        found.append(float(output.loss))
        del output
    return found


SIDES = {"ours": ours, "peer": peer}


def compare(options: argparse.Namespace, lengths: list[int]) -> int:
    """Run both sides, alternating, and print the table."""
    sys.path.insert(0, str(ROOT))
    if options.model is None or options.text is None:
        from tests import assets

        options.model = options.model or assets.smollm2_folder()
        text = options.text.read_text("utf-8") if options.text else assets.emma_text()
    else:
        text = options.text.read_text("utf-8")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.json"
        _tokenise(options.model, text, lengths[-1], ids)
        for repeat in range(options.repeats):
            for side in SIDES:
                runs[side].append(_run(side, options, ids))
                shown = runs[side][-1]
                print(f"run {repeat + 1}, {side}: {shown['seconds']:.1f} s, {shown['mb']:.0f} MB", file=sys.stderr)
    seconds = {side: statistics.median(run["seconds"] for run in found) for side, found in runs.items()}
    memory = {side: statistics.median(run["mb"] for run in found) for side, found in runs.items()}
    mine, theirs = runs["ours"][0]["nll"], runs["peer"][0]["nll"]
    worst = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    faster, share = seconds["peer"] / seconds["ours"], memory["ours"] / memory["peer"]
    print(f"{options.model.name}, {options.dtype}, {options.threads} threads, {platform.machine()}, ", end="")
    print(f"lengths {', '.join(map(str, lengths))}, median of {options.repeats}\n")
    print("| | seconds | peak MB | " + " | ".join(f"nll at {n}" for n in lengths) + " |")
    print("|---|---|---|" + "---|" * len(lengths))
    for side, label, losses in (("peer", "a forward a length (YaRN's protocol)", theirs), ("ours", "one pass", mine)):
        cells = " | ".join(f"{x:.5f}" for x in losses)
        print(f"| {label} | {seconds[side]:.1f} | {memory[side]:.0f} | {cells} |")
    print(f"| ratio | {faster:.2f} × faster | {share:.2f} of the memory | largest difference {worst:.1e} nats |")
    if options.json:
        figures = {"seconds": seconds, "mb": memory, "faster": faster, "memory": share, "difference": worst}
        options.json.write_text(json.dumps({"lengths": lengths, **figures, "runs": runs}, indent=1))
    limit = TOLERANCE if options.dtype == "float32" else 2e-2
    if worst > limit:
        print(f"FAILED: the losses differ by {worst:.1e} nats, more than {limit:.0e}", file=sys.stderr)
        return 1
    missed = faster < GOAL_SPEED or share > GOAL_MEMORY
    print(f"\ngoals: {GOAL_SPEED} × faster, {GOAL_MEMORY:.2f} of the memory: {'missed' if missed else 'met'}")
    return 1 if missed and options.check else 0


def _tokenise(model: Path, text: str, length: int, out: Path) -> None:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model, local_files_only=True)(text, verbose=False)["input_ids"]
    if len(ids) < length:
        raise SystemExit(f"the text has {len(ids)} tokens and the longest length is {length}")
    out.write_text(json.dumps(ids[:length]))


def _run(side: str, options: argparse.Namespace, ids: Path) -> dict[str, Any]:
    """Run one side in a fresh process; its peak resident memory comes from `wait4`."""
    command = [sys.executable, __file__, "--worker", side, "--model", str(options.model), "--ids", str(ids)]
    command += ["--lengths", options.lengths, "--threads", str(options.threads), "--dtype", options.dtype]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, text=True, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{side} failed with {process.returncode}:\n{errors.read()[-2000:]}")
        out.seek(0)
        result: dict[str, Any] = json.loads(out.read().splitlines()[-1])
    # Linux counts in KiB, macOS in bytes.
    return {**result, "mb": usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)}


if __name__ == "__main__":
    sys.exit(main())
