"""What a calibration gains: methods at several factors, untuned and tuned by PoSE, full length, LongLoRA and `quick`.

    python benchmarks/calibration_quality.py --out quality                      # the bundled model at 4x and 8x
    python benchmarks/calibration_quality.py --out quality --factors 4 --methods pi --tunings untuned pose
    python benchmarks/calibration_quality.py --out quality --source FOLDER --data FILE --text FILE --trained-length 8192
    python benchmarks/calibration_quality.py --out quality --only-print

Every case is what a user would type: `ctxforge extend`, `ctxforge calibrate`, `ctxforge verify --tier quick`, each a
process of its own. The tuned cases of one method have the same number of tokens, all from the same documents. The
output folder gets a JSON document a case and `calibration-quality.md`; the same command goes on after the cases that
are in there.

Columns: loss of the tokens beyond L0 against the source cut to its last L0 tokens (positive: the far context helps),
what short text lost, needles found and the loss of their answers at the target length, each with its 95 % interval as
`ctxforge verify` gives it, and the gates that fail.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS = ("pi", "ntk", "yarn", "xpos-abf")
TUNINGS = ("untuned", "pose", "full", "longlora", "quick")
# `quick` as it comes; `pose` is the same without restoration, and with chunks from anywhere in a text, as published.
PUBLISHED_POSE = ("objective.restoration=0", "rows.content=sampled", "rows.reach=5")
RECIPES = {
    "pose": ("quick", PUBLISHED_POSE),
    "full": ("full", ()),
    "longlora": ("longlora", ()),
    "quick": ("quick", ()),
}
REMOTE = ("xpos", "xpos-abf")
TABLE = "calibration-quality.md"


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    method: str
    factor: int
    tuning: str

    @property
    def name(self) -> str:
        """A file's name."""
        return f"{self.method}-{self.factor}x-{self.tuning}"


def ctxforge(*arguments: str, threads: int) -> dict[str, Any]:
    """Run a command and give its JSON document.

    Raises:
        RuntimeError: it failed otherwise than by its gates.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CTXFORGE_NO_PROGRESS": "1"}
    command = [sys.executable, "-m", "ctxforge", *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 3) or not done.stdout:
        raise RuntimeError(f"{' '.join(arguments)}: {done.returncode}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Convert, tune and judge one case."""
    folder = options.out / "checkpoints"
    extended, tuned = folder / f"{case.method}-{case.factor}x", folder / case.name
    if not extended.exists():
        ctxforge(
            *("extend", options.source, "--method", case.method, "--to", f"{case.factor}x", "--out", str(extended)),
            threads=options.threads,
        )
    trust = ("--trust-remote-code",) if case.method in REMOTE else ()
    found: dict[str, Any] = {"case": [case.method, case.factor, case.tuning]}
    if case.tuning != "untuned" and not tuned.exists():
        began = time.monotonic()
        rows = options.tokens_per_step // options.trained_length
        # The same number of tokens a step: rows of L0 are as many more as they are shorter.
        length = options.trained_length * (1 if case.tuning in ("pose", "quick") else case.factor)
        recipe, changes = RECIPES[case.tuning]
        arguments = [str(extended), "--recipe", recipe, "--steps", str(options.steps), "--out", str(tuned)]
        arguments += ["--dtype", options.dtype]
        arguments += ["--set", f"rows.count={max(1, rows * options.trained_length // length)}"]
        arguments += ["--set", "held_out.patience=none", *(x for d in options.data for x in ("--data", d)), *trust]
        arguments += [x for change in (*changes, *options.changes) for x in ("--set", change)]
        document = ctxforge("calibrate", *arguments, threads=options.threads)
        if "calibration" not in document:
            return {**found, "refused": document["error"]["cause"]}
        found["calibration"] = document["calibration"]
        found["seconds"] = time.monotonic() - began
    shown = extended if case.tuning == "untuned" else tuned
    arguments = [
        str(shown),
        "--source",
        options.source,
        "--windows",
        str(options.windows),
        "--seeds",
        str(options.seeds),
    ]
    arguments += ["--text", str(options.text)] if options.text is not None else []
    found["report"] = ctxforge("verify", *arguments, *trust, threads=options.threads)["report"]
    return found


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The table, by factor and method."""
    lines = []
    order = {name: number for number, name in enumerate(TUNINGS)}
    for factor in sorted({record["case"][1] for record in records}):
        lines += [f"### {factor}x", ""]
        lines += [
            "| method | tuning | tokens | kept step | far context | short text | answers found | answer loss | fails |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        chosen = [record for record in records if record["case"][1] == factor]
        for record in sorted(chosen, key=lambda one: (place_of(one["case"][0]), order[one["case"][2]])):
            lines.append(_row(record))
        lines.append("")
    return "\n".join(lines)


def place_of(name: str) -> tuple[int, str]:
    """Known methods first, in the order of the papers."""
    return (METHODS.index(name) if name in METHODS else len(METHODS), name)


def _row(record: Mapping[str, Any]) -> str:
    if "refused" in record:
        method, _factor, tuning = record["case"]
        return f"| {method} | {tuning} | - | - | refused: {record['refused']} | - | - | - | - |"
    gates = {gate["name"]: gate for gate in record["report"]["judgement"]["gates"]}
    calibration = record.get("calibration")
    tokens = "-" if calibration is None else f"{calibration['tokens'] / 1000:.0f}k"
    step = "-" if calibration is None else f"{calibration['best_step']} of {calibration['steps']}"
    failing = [name for name, gate in gates.items() if gate["verdict"] == "fail"]
    method, _factor, tuning = record["case"]
    cells = [
        *(method, tuning, tokens, step),
        *(_value(gates.get(name), sign) for name, sign in (("use", "+"), ("short_nll", "+"), ("retrieval", ""))),
        _value(gates.get("retrieval_nll"), "+"),
        ", ".join(failing) or "-",
    ]
    return f"| {' | '.join(cells)} |"


def _value(gate: Mapping[str, Any] | None, sign: str) -> str:
    if gate is None or gate.get("interval") is None:
        return "-"
    found = gate["interval"]
    if found["low"] is None:
        return f"{found['value']:{sign}.3f}"
    return f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", default="bundled")
    parser.add_argument("--trained-length", type=int, default=512)
    parser.add_argument("--data", nargs="*", default=[])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--tunings", nargs="+", default=list(TUNINGS), choices=TUNINGS)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--set", dest="changes", nargs="*", default=[], help="Changes of every recipe.")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only-print", action="store_true")
    options = parser.parse_args()
    (options.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    cases = [
        Case(method, factor, tuning)
        for factor in options.factors
        for method in options.methods
        for tuning in options.tunings
    ]

    def kept(case: Case) -> None:
        path = options.out / f"{case.name}.json"
        if not path.exists() and not options.only_print:
            try:
                path.write_text(json.dumps(run(case, options)), encoding="utf-8")
            except RuntimeError as error:
                print(f"{case.name} failed: {error}", file=sys.stderr)
                return
            print(f"{case.name} done", file=sys.stderr)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(kept, cases))
    paths = [options.out / f"{case.name}.json" for case in cases]
    table = render([json.loads(path.read_text("utf-8")) for path in paths if path.exists()])
    (options.out / TABLE).write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
