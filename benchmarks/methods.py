"""Methods side by side on a real model: perplexity by bucket and retrieval at the target length, nothing trained.

    python benchmarks/methods.py --results methods.json

Converts SmolLM2-135M-Instruct (trained length 8192) to 16 384 tokens with each method, measures each output with the
same protocol as `ctxforge verify` on *Emma*, and prints one table. The model as it is stands first as the control:
its last buckets must be far worse than those of any working method, or the comparison shows nothing. Results are kept
in --results after each method, so that a run that was cut goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

METHODS = (
    "none",
    "pi",
    "ntk",
    "yarn",
    "yarn-paper",
    "mrrope-pro",
    "yarn:critical_shift=5",
    "yarn+resonance",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: SmolLM2-135M from the registry)")
    parser.add_argument("--text", type=Path, help="text file (default: Emma from the registry)")
    parser.add_argument("--to", type=int, default=16384, help="target length")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="as --method of `ctxforge extend`")
    parser.add_argument("--needles", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1, help="haystacks")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--results", type=Path, help="JSON of what was measured so far; read and extended")
    parser.add_argument("--render", action="store_true", help="print the table of --results and measure nothing")
    options = parser.parse_args(arguments)
    done: dict[str, Any] = {}
    if options.results and options.results.exists():
        done = json.loads(options.results.read_text())
    if not options.render:
        measure(options, done)
    sys.stdout.write(table(done))
    return 0


def measure(options: argparse.Namespace, done: dict[str, Any]) -> None:
    """Convert and verify with each method that `done` lacks."""
    from ctxforge import pipeline
    from ctxforge.recipe import ConversionRecipe, OutputOptions, parse_method
    from ctxforge.verification import VerifySettings
    from tests import assets

    model = options.model or assets.smollm2_folder()
    text = options.text.read_text(encoding="utf-8") if options.text else assets.emma_text()

    settings = VerifySettings(
        lengths=(options.to,), needles=options.needles, seeds=options.seeds, dtype=options.dtype, source_curve=False
    )
    for name in options.methods:
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as work:
            recipe = ConversionRecipe(source=str(model), method=parse_method(name), to=options.to)
            converted = pipeline.extend(recipe, OutputOptions(out=Path(work) / "out", link=True))
            start = time.perf_counter()
            report = pipeline.verify(
                converted.out, text=text, trained_length=8192, target_length=options.to, settings=settings
            )
        result = report.to_dict()["result"]
        done[name] = {
            "notes": list(converted.conversion.lowered.notes),
            "buckets": [[entry["start"], entry["end"], entry["ppl"]] for entry in result["buckets"]],
            "perplexity": result["lengths"][-1]["ppl"],
            "retrieval": [entry for entry in result["retrieval"] if entry["length"] == options.to],
            "seconds": time.perf_counter() - start,
            "protocol": report.to_dict()["protocol"],
        }
        if options.results:
            options.results.write_text(json.dumps(done, indent=1))
        sys.stderr.write(f"{name}: {done[name]['perplexity']:.2f} in {done[name]['seconds']:.0f} s\n")


def table(done: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    if not done:
        return "nothing measured\n"
    first = next(iter(done.values()))
    edges = [f"{start // 1024}-{-(-end // 1024)}k" for start, end, _ppl in first["buckets"]]
    lines = ["| method | " + " | ".join(edges) + " | all | answer NLL | exact |", "|---" * (len(edges) + 4) + "|"]
    for name, entry in done.items():
        buckets = " | ".join(f"{ppl:.2f}" for _start, _end, ppl in entry["buckets"])
        count = sum(cell["count"] for cell in entry["retrieval"])
        nll = sum(cell["nll"] * cell["count"] for cell in entry["retrieval"]) / max(count, 1)
        exact = sum(cell["exact"] for cell in entry["retrieval"])
        lines.append(f"| {name} | {buckets} | {entry['perplexity']:.2f} | {nll:.3f} | {exact} of {count} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
