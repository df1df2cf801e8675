"""The verifier against models that are known to be broken: every one must be caught by a named gate.

    python benchmarks/negative_controls.py

On the bundled model at four times its length, tier quick: the source at its own length and a good YaRN must pass;
each broken conversion must fail, and the gate that says so is printed. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctxforge
from ctxforge import pipeline
from ctxforge.sources import bundled_text

Break = Callable[[dict[str, Any]], None]


def lists(divisors: list[float], short: list[float] | None = None) -> Break:
    """Replace the scaling by longrope lists."""

    def edit(config: dict[str, Any]) -> None:
        rope = {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": short or divisors,
            "long_factor": divisors,
            "original_max_position_embeddings": 512,
            "attention_factor": 1.0,
        }
        config["rope_scaling"] = rope
        config["rope_parameters"] = {**rope, "rope_theta": config["rope_theta"]}

    return edit


def theta(value: float) -> Break:
    """Another base under an otherwise right scaling."""

    def edit(config: dict[str, Any]) -> None:
        config["rope_theta"] = value
        config["rope_parameters"]["rope_theta"] = value

    return edit


def window(size: int) -> Break:
    """The same weights behind a sliding window."""

    def edit(config: dict[str, Any]) -> None:
        config["model_type"], config["architectures"] = "mistral", ["MistralForCausalLM"]
        config["sliding_window"] = size

    return edit


def nothing(_config: dict[str, Any]) -> None:
    """Leave it."""


RANDOM = [random.Random(7).uniform(1, 4) for _ in range(32)]
RAMP = [1 + 3 * i / 31 for i in range(32)]
# name, method, target, what is done to the config, whether it must pass
CASES: list[tuple[str, str, str, Break, bool]] = [
    ("the source at its own length", "none", "512", nothing, True),
    ("a good YaRN", "yarn", "4x", nothing, True),
    ("extension lost: unmodified at 4x", "none", "4x", nothing, False),
    ("theta lost: 1000 for 10000", "yarn", "4x", theta(1000.0), False),
    ("PI at 8x, untuned", "pi", "8x", nothing, False),
    ("a sliding window of 128", "yarn", "4x", window(128), False),
    ("random divisors", "yarn", "4x", lists(RANDOM), False),
    ("a longrope switch that breaks the cache", "yarn", "4x", lists(RAMP, [1.0] * 32), False),
    ("temperature off by half", "yarn:temperature", "4x", nothing, False),
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the verdicts here too")
    options = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    wrong = []
    for name, method, target, edit, passes in CASES:
        start = time.perf_counter()
        report = measure(method, target, edit)
        judgement = report.judgement
        assert judgement is not None
        failing = [f"{result.gate.name} {result.interval.value:.3g}" for result in judgement.results
                   if result.verdict == "fail" and result.interval is not None]  # fmt: skip
        row = {"case": name, "verdict": str(judgement.verdict), "gates": failing, "ppl": report.result.lengths[-1].ppl}
        found.append({**row, "seconds": time.perf_counter() - start})
        if (judgement.verdict == "pass") != passes or (not passes and not failing):
            wrong.append(name)
        sys.stderr.write(f"{found[-1]}\n")
    lines = ["| case | verdict | gates that fail (value) | perplexity |", "|---|---|---|---|"]
    lines += [
        f"| {row['case']} | {row['verdict']} | {', '.join(row['gates']) or '-'} | {row['ppl']:.2f} |" for row in found
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    for name in wrong:
        sys.stderr.write(f"not as it must be: {name}\n")
    return 1 if wrong else 0


def measure(method: str, target: str, edit: Break) -> Any:
    """Convert, break, verify."""
    name, _, option = method.partition(":")
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        extra = {"temperature": 0.57} if option else {}
        ctxforge.extend("bundled", method=name, to=target, out=out, **extra)
        config = json.loads((out / "config.json").read_text())
        edit(config)
        (out / "config.json").write_text(json.dumps(config))
        # The recorded hashes would give every edit away: what is tested is what the measurements see.
        (out / "ctxforge.json").unlink()
        length = 512 if target == "512" else 512 * int(target.removesuffix("x"))
        return pipeline.verify(
            out,
            text=bundled_text(),
            source="bundled",
            trained_length=512,
            target_length=length,
            choices={"device": "cpu"},
        )


if __name__ == "__main__":
    sys.exit(main())
