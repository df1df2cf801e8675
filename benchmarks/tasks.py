"""500 needle prompts of 8k tokens built: ours against lm-eval's RULER generator, with the same tokenizer.

    python benchmarks/tasks.py --peer-python ENV/bin/python [--tokenizer DIR] [--check]

The peer is `lm_eval.tasks.ruler` (MIT) in an environment of its own (`pip install "lm_eval[ruler]" transformers`): its
`generate_samples` for niah_single_1, one needle in the repeated "noise" haystack, which needs no download. Ours is task
`passkey`: one needle in filler that never repeats, in token ids, cold (tokenising the filler is part of the time).
Each side runs in a process of its own, one tokenizer thread; imports, their garbage and loading the tokenizer are not
timed. Both are held to the budget and to one needle a prompt, ours to the exact length and to the depth that was asked
for. Without `--peer-python` there is nothing to compare with, and the run says so. Goal: 20 times as fast.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GOAL = 20.0
STRATA = 10
# Runs in the peer's environment, where this package is not installed.
PEER = """
import contextlib, gc, importlib.metadata, json, sys, time
tokenizer, length, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with contextlib.redirect_stdout(sys.stderr):
    from lm_eval.tasks.ruler.common_utils import get_tokenizer
    from lm_eval.tasks.ruler.niah_utils import TEMPLATE
    from lm_eval.tasks.ruler.prepare_niah import generate_samples, get_haystack
    loaded = get_tokenizer(pretrained=tokenizer)
    loaded("warm up")
    gc.collect()
    start = time.perf_counter()
    made = generate_samples(
        get_haystack(type_haystack="repeat"), max_seq_length=length, template=TEMPLATE, type_haystack="repeat",
        type_needle_k="words", type_needle_v="numbers", num_samples=count, TOKENIZER=loaded,
    )
    seconds = time.perf_counter() - start
print(json.dumps({
    "seconds": seconds, "prompts": len(made), "version": importlib.metadata.version("lm_eval"),
    "shortest": min(m["length"] for m in made), "longest": max(m["length"] for m in made),
    "needles": sorted({m["input"].count(m["outputs"][0]) for m in made}),
}))
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with lm_eval[ruler]")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder (default: SmolLM2-135M from the registry)")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, alternating; medians are reported")
    parser.add_argument("--check", action="store_true", help="exit 1 when the goal is missed")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(build_prompts(options.tokenizer, options.length, options.prompts)))
        return 0
    folder = options.tokenizer or _smollm2()
    mine, theirs = [], []
    for _ in range(options.repeats):
        mine.append(_run([sys.executable, __file__, "--worker", "--tokenizer", folder, *_sizes(options)]))
        if options.peer_python:
            theirs.append(_run([options.peer_python, "-c", PEER, folder, options.length, options.prompts]))
    ours = statistics.median(run["seconds"] for run in mine)
    print(f"{options.prompts} prompts of {options.length} tokens, tokenizer {folder.name}, one thread, medians")
    print(f"  ctxforge passkey       {ours:8.2f} s   {options.length} tokens each, one needle at the depth asked for")
    if not theirs:
        print("  lm-eval skipped: give --peer-python, the Python of an environment with `lm_eval[ruler]`")
        return 0
    for run in theirs:
        assert run["prompts"] == options.prompts, run
        assert run["longest"] <= options.length, run
        assert run["needles"] == [1], run
    peer = statistics.median(run["seconds"] for run in theirs)
    shortest, longest = theirs[0]["shortest"], theirs[0]["longest"]
    print(
        f"  lm-eval {theirs[0]['version']:<8} RULER {peer:8.2f} s   {shortest} to {longest} tokens, one needle anywhere"
    )
    print(f"  ratio {peer / ours:.1f} (goal {GOAL:.0f})")
    if options.json:
        figures = {"length": options.length, "prompts": options.prompts, "ours": mine, "peer": theirs}
        options.json.write_text(json.dumps({**figures, "ratio": peer / ours}, indent=2) + "\n")
    return int(options.check and peer / ours < GOAL)


def build_prompts(folder: Path, length: int, count: int) -> dict[str, Any]:
    """Build `count` prompts from nothing, then hold every one to what was asked for."""
    sys.path.insert(0, str(ROOT))
    from transformers import AutoTokenizer

    from ctxforge.verification.tasks import Frame, build

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer("warm up")
    gc.collect()
    start = time.perf_counter()
    frame = Frame(tokenizer)
    prompts = [build("passkey", frame, length, depth=n % STRATA, seed=n // STRATA) for n in range(count)]
    seconds = time.perf_counter() - start
    for number, prompt in enumerate(prompts):
        assert prompt.tokens == length
        assert frame.encode.decode(prompt.context).count(prompt.references[0]) == 1
        assert prompt.position is not None
        low, high = prompt.haystack
        share = (prompt.position - low) / (high - low)
        assert number % STRATA - 0.1 <= share * STRATA <= number % STRATA + 1.1
    return {"seconds": seconds, "prompts": count}


def _sizes(options: argparse.Namespace) -> list[str]:
    return ["--length", str(options.length), "--prompts", str(options.prompts)]


def _run(command: list[Any]) -> dict[str, Any]:
    threads = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **threads}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _smollm2() -> Path:
    sys.path.insert(0, str(ROOT))
    from tests.assets import smollm2_folder

    return smollm2_folder()


if __name__ == "__main__":
    raise SystemExit(main())
