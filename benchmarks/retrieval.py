"""The retrieval grid: every cell from one forward against one prompt a cell, side by side.

    python benchmarks/retrieval.py [--model DIR --text FILE] [--generate] [--check]

The peer is the protocol of jzhang38/EasyContext `eval_needle.py` (Apache-2.0, commit 6b0d310), written anew: each cell
is one forward without a cache over context, question and answer, with whole logits, and the answer is found where the
argmax says so at each of its tokens. `--generate` adds the protocol of jquesnelle/yarn `eval/passkey.py` (MIT, commit
995db5b): ten new tokens a cell, greedily, through transformers' `generate`. Ours is `choose_way` and `answers`, with
all the checks that `verify` makes around them. All sides get the same needles in the same contexts.

Each side runs in a process of its own, alternating; wall time is that of the measurement without loading, peak memory
is the process's, from `wait4`. Seconds of processor time stand beside it, since they tell what a run cost on a machine
that others use too. In float32 each cell's loss must agree to 1e-4 nats and each verdict exactly, or the run
fails. Goal: 10 times as fast as one prompt a cell.
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
GOAL = 10.0
NEW_TOKENS = 10
# bfloat16 rounds a loss of a few nats by a few hundredths, differently in every order of summation.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: SmolLM2-135M from the registry)")
    parser.add_argument("--text", type=Path, help="text file (default: Emma from the registry)")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192", help="context lengths, comma-separated")
    parser.add_argument("--depths", type=int, default=10, help="depth strata of each length")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side; medians are reported")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=tuple(TOLERANCE))
    parser.add_argument("--generate", action="store_true", help="compare with greedy generation too")
    parser.add_argument("--check", action="store_true", help="exit 1 when the goal is missed")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(work(options.worker, options)))
        return 0
    return compare(options)


def work(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """The measured part, in a fresh process: load, warm up on a short input, then plant and measure on the clock."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ctxforge.verification.needles import plant
    from ctxforge.verification.text import tokenize

    torch.set_num_threads(options.threads)
    lengths = sorted({int(part) for part in options.lengths.split(",")})
    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    text = tokenize(tokenizer, options.text.read_text("utf-8"), length=lengths[-1], windows=1)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), local_files_only=True
    ).eval()
    with torch.no_grad():
        model(torch.tensor([text.body[:64]]), use_cache=False)
    start, processor = time.perf_counter(), time.process_time()
    stack = plant(tokenizer, text.body, lengths=lengths, strata=options.depths, seed=0, prefix=text.prefix)
    found = SIDES[side](model, stack)
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - processor, **found}


def ours(model: Any, stack: Any) -> dict[str, Any]:
    """The whole grid as `verify` computes it."""
    from ctxforge.verification.onepass import OnePass
    from ctxforge.verification.retrieval import answers, choose_way

    runner = OnePass(model, longest=len(stack.ids))
    way = choose_way(runner)
    found = answers(runner, stack, way)
    return {"way": way, "cells": [_cell(stack, a.cell, a.nll, a.exact) for a in found]}


def one_prompt_a_cell(model: Any, stack: Any) -> dict[str, Any]:
    """EasyContext's protocol; the losses are read off the logits that it has anyway."""
    import torch

    cells = []
    for cell in _in_order(stack):
        needle = stack.needles[cell.needle]
        prompt = [*stack.ids[: cell.length], *needle.question]
        ids = torch.tensor([[*prompt, *needle.answer]])
        answer = ids[0, len(prompt) :]
        with torch.inference_mode():
            logits = model(ids, position_ids=torch.arange(ids.shape[1])[None], use_cache=False).logits
            rows = logits[0, len(prompt) - 1 : -1]
            exact = bool((rows.argmax(-1) == answer).all())
            nll = float(torch.nn.functional.cross_entropy(rows.float(), answer))
        del logits, rows
        cells.append(_cell(stack, cell, nll, exact))
    return {"way": "one prompt a cell", "cells": cells}


def generation(model: Any, stack: Any) -> dict[str, Any]:
    """YaRN's passkey protocol: greedy tokens from a cache; an answer that is longer than them has no verdict."""
    import torch

    cells = []
    for cell in _in_order(stack):
        needle = stack.needles[cell.needle]
        prompt = torch.tensor([[*stack.ids[: cell.length], *needle.question]])
        with torch.inference_mode():
            made = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )[0, prompt.shape[1] :].tolist()
        exact = made[: len(needle.answer)] == list(needle.answer) if len(needle.answer) <= NEW_TOKENS else None
        cells.append(_cell(stack, cell, None, exact))
    return {"way": "greedy generation", "cells": cells}


SIDES = {"ours": ours, "prompts": one_prompt_a_cell, "generation": generation}


def compare(options: argparse.Namespace) -> int:
    """Run the sides, alternating, and print the table."""
    sides = [side for side in SIDES if side != "generation" or options.generate]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        _fill_in(options, Path(folder))
        for repeat in range(options.repeats):
            for side in sides:
                runs[side].append(_run(side, options))
                shown = runs[side][-1]
                print(f"run {repeat + 1}, {side}: {shown['seconds']:.1f} s, {shown['mb']:.0f} MB", file=sys.stderr)
    first = {side: found[0] for side, found in runs.items()}
    seconds, cpu, memory = (
        {side: statistics.median(run[what] for run in found) for side, found in runs.items()}
        for what in ("seconds", "cpu", "mb")
    )
    faster = {side: seconds[side] / seconds["ours"] for side in sides[1:]}
    problems, worst = disagreements(first, TOLERANCE[options.dtype], exactly=options.dtype == "float32")
    _table(options, first, {"seconds": seconds, "cpu": cpu, "mb": memory}, worst)
    if options.json:
        figures = {
            "seconds": seconds,
            "cpu": cpu,
            "mb": memory,
            "faster": faster,
            "difference": worst,
            "problems": problems,
        }
        options.json.write_text(json.dumps({**figures, "runs": runs}, indent=1))
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if problems:
        return 1
    missed = faster["prompts"] < GOAL
    print(f"\ngoal: {GOAL:.0f} × faster than one prompt a cell: {'missed' if missed else 'met'}")
    return 1 if missed and options.check else 0


def disagreements(sides: dict[str, dict[str, Any]], limit: float, *, exactly: bool) -> tuple[list[str], float]:
    """What the sides do not agree on, one line each, and the largest difference of a cell's loss in nats.

    `exactly` says whether a differing verdict counts: between orders of summation in bfloat16 an argmax may turn.
    """
    mine, theirs = sides["ours"]["cells"], sides["prompts"]["cells"]
    problems: list[str] = []
    for side, result in sides.items():
        if [c["at"] for c in result["cells"]] != [c["at"] for c in mine] or not mine:
            return [f"{side} did not score the same cells as ours"], float("nan")
        turned = [c["at"] for c, m in zip(result["cells"], mine, strict=True) if c["exact"] not in (None, m["exact"])]
        if turned and exactly:
            problems.append(f"{side} and ours differ on whether {len(turned)} answers are found, first {turned[0]}")
    differences = [abs(m["nll"] - t["nll"]) for m, t in zip(mine, theirs, strict=True)]
    # A loss that is no number compares false with everything, and must not pass for it.
    worst = max(differences, key=lambda x: x if x == x else float("inf"))
    if not worst <= limit:
        problems.append(f"the losses differ by {worst:.1e} nats, more than {limit:.0e}")
    return problems, worst


def _table(
    options: argparse.Namespace,
    sides: dict[str, dict[str, Any]],
    costs: dict[str, dict[str, float]],
    worst: float,
) -> None:
    cells = sides["ours"]["cells"]
    lengths = sorted({cell["at"][0] for cell in cells})
    print(f"{options.model.name}, {options.dtype}, {options.threads} threads, {platform.machine()}, ", end="")
    print(f"{len(cells)} cells of {options.depths} depths, median of {options.repeats}\n")
    print("| | seconds | cpu s | peak MB | answers found | " + " | ".join(f"nll at {n}" for n in lengths) + " |")
    print("|---|---|---|---|---|" + "---|" * len(lengths))
    for side in reversed(sides):
        found = sides[side]["cells"]
        losses = [[c["nll"] for c in found if c["at"][0] == n] for n in lengths]
        means = " | ".join("" if None in part else f"{statistics.fmean(part):.5f}" for part in losses)
        label = f"ctxforge, {sides[side]['way']}" if side == "ours" else sides[side]["way"]
        exact = sum(bool(c["exact"]) for c in found)
        spent = f"{costs['seconds'][side]:.1f} | {costs['cpu'][side]:.1f} | {costs['mb'][side]:.0f}"
        print(f"| {label} | {spent} | {exact} of {len(found)} | {means} |")
    for side in list(sides)[1:]:
        wall, cpu, memory = (cost[side] / cost["ours"] for cost in costs.values())
        print(f"\n{wall:.2f} × faster than {sides[side]['way']}, {cpu:.2f} in processor time; ", end="")
        print(f"{1 / memory:.2f} of its memory")
    print(f"\nlargest difference of a cell: {worst:.1e} nats")


def _in_order(stack: Any) -> list[Any]:
    return sorted(stack.cells, key=lambda cell: (cell.length, cell.stratum))


def _cell(stack: Any, cell: Any, nll: float | None, exact: bool | None) -> dict[str, Any]:
    return {"at": [cell.length, cell.stratum, stack.needles[cell.needle].word], "nll": nll, "exact": exact}


def _fill_in(options: argparse.Namespace, folder: Path) -> None:
    """The model and the text that were not named, from the registry."""
    sys.path.insert(0, str(ROOT))
    from tests import assets

    options.model = options.model or assets.smollm2_folder()
    if options.text is None:
        options.text = folder / "text.txt"
        options.text.write_text(assets.emma_text(), "utf-8")


def _run(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a fresh process; its peak resident memory comes from `wait4`."""
    command = [sys.executable, __file__, "--worker", side]
    for name in ("model", "text", "lengths", "depths", "threads", "dtype"):
        command += [f"--{name}", str(getattr(options, name))]
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
