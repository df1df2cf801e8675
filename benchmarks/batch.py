"""A matrix of 24 config-only jobs against one job, and against a shell loop of `ctxforge extend`, on one source.

    python benchmarks/batch.py [--gigabytes 1] [--runs 3] [--work FOLDER]

Goals: at most 1.5 times the seconds of one job plus 24 times 0.3; memory that does not grow from job to job. Each run
is a fresh process, the two are interleaved, all end with the file system synced, and the page cache is warm. Before a
number is printed, every output of the batch is compared with the loop's, file by file.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("pi", "ntk", "yarn", "abf")
LENGTHS = ("2x", "4x", "6x", "8x", "16x", "32x")
JOBS = len(METHODS) * len(LENGTHS)
ONE, BATCH, LOOP = "one job", f"{JOBS} jobs", f"a loop of {JOBS} `ctxforge extend`"
VARIANTS = (ONE, BATCH, LOOP)
# Prints the resident size after each job on stderr, where the command line itself says nothing with -q.
WATCHED = (
    "import os, sys\n"
    "import ctxforge.batch.running as running\n"
    "from ctxforge.cli import main\n"
    "real = running.Runner._take\n"
    "def take(self, *more):\n"
    "    pages = int(open('/proc/self/statm').read().split()[1])\n"
    "    sys.stderr.write(f'RSS {pages * os.sysconf(\"SC_PAGE_SIZE\")}\\n')\n"
    "    return real(self, *more)\n"
    "running.Runner._take = take\n"
    "main()\n"
)


@dataclass(frozen=True)
class Run:
    """Wall and processor seconds, peak memory in MB, and the resident MB after each job of a batch."""

    seconds: float
    cpu: float
    peak_mb: float
    after_jobs: tuple[float, ...] = ()


def batch_file(path: Path, source: Path, methods: tuple[str, ...], lengths: tuple[str, ...]) -> Path:
    path.write_text(
        f"version: 1\noutput: {path.parent / path.stem}\nmatrix:\n  models: [{source}]\n"
        f"  methods: [{', '.join(methods)}]\n  lengths: [{', '.join(lengths)}]\n"
    )
    return path


def command(variant: str, source: Path, work: Path) -> list[str]:
    if variant == LOOP:
        loop = [
            f"{sys.executable} -m ctxforge extend {source} -m {method} --to {length} -q"
            f" --out {work / 'loop' / f'{source.name}-{method}-{length}'}"
            for method in METHODS
            for length in LENGTHS
        ]
        return ["sh", "-ec", f"mkdir {work / 'loop'}\n" + "\n".join(loop)]
    one = variant == ONE
    name, methods, lengths = ("one", METHODS[:1], LENGTHS[:1]) if one else ("batch", METHODS, LENGTHS)
    file = batch_file(work / f"{name}.yaml", source, methods, lengths)
    return [sys.executable, "-c", WATCHED, "run", str(file), "-q"]


def measure(variant: str, source: Path, work: Path) -> Run:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        script = ["sh", "-c", 'work="$1"; shift; "$@" >/dev/null && sync -f "$work"', "sh", str(work)]
        child = subprocess.Popen([*script, *command(variant, source, work)], env=env, stderr=errors, cwd=work)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if child.returncode != 0:
        raise SystemExit(f"{variant} failed:\n{said[-2000:]}")
    after = tuple(int(found) / 1e6 for found in re.findall(r"^RSS (\d+)$", said, re.MULTILINE))
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, after)


def compare(source: Path, work: Path) -> None:
    """Raises SystemExit where an output of the batch is not the loop's, byte for byte."""
    sys.path.insert(0, str(ROOT))
    from ctxforge.lengths import format_length, parse_length

    trained = int(json.loads((source / "config.json").read_text())["max_position_embeddings"])
    for method in METHODS:
        for length in LENGTHS:
            tokens = format_length(parse_length(length, relative_to=trained))
            ours, theirs = (
                work / "batch" / f"{source.name}-{method}-{tokens}",
                work / "loop" / f"{source.name}-{method}-{length}",
            )
            names = sorted(path.relative_to(theirs).as_posix() for path in theirs.rglob("*") if path.is_file())
            there = sorted(path.relative_to(ours).as_posix() for path in ours.rglob("*") if path.is_file())
            _, different, missing = filecmp.cmpfiles(ours, theirs, names, shallow=False)
            if names != there or different or missing:
                raise SystemExit(f"{ours.name}: {different or missing or there} differ from what extend wrote")


def bench(source: Path, work: Path, runs: int) -> dict[str, list[Run]]:
    """`runs` interleaved measurements of one job and of the batch; the loop, which takes minutes, is measured once."""
    results: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
    for variant in VARIANTS:
        found = measure(variant, source, work)
        if variant == LOOP:
            results[LOOP].append(found)
    compare(source, work)
    clear(work)
    for number in range(runs):
        for variant in (ONE, BATCH) if number % 2 else (BATCH, ONE):
            results[variant].append(measure(variant, source, work))
            clear(work)
    return results


def clear(work: Path) -> None:
    for name in ("one", "batch", "loop"):
        shutil.rmtree(work / name, ignore_errors=True)
    subprocess.run(["sync", "-f", str(work)], check=True)


def table(results: dict[str, list[Run]]) -> list[str]:
    middle = {variant: statistics.median(run.seconds for run in runs) for variant, runs in results.items()}
    lines = ["| variant | median s | min s | CPU s | peak RSS MB |", "|---|---|---|---|---|"]
    for variant, runs in results.items():
        lines.append(
            f"| {variant} | {middle[variant]:.2f} | {min(run.seconds for run in runs):.2f}"
            f" | {statistics.median(run.cpu for run in runs):.2f} | {max(run.peak_mb for run in runs):.1f} |"
        )
    growth = max(max(run.after_jobs[2:]) - run.after_jobs[1] for run in results[BATCH])
    bound = 1.5 * middle[ONE] + 0.3 * JOBS
    lines += ["", "| goal | measured | bound | met |", "|---|---|---|---|"]
    lines.append(
        f"| seconds within 1.5 × one + {JOBS} × 0.3 | {middle[BATCH]:.2f} | ≤ {bound:.2f}"
        f" | {'yes' if middle[BATCH] <= bound else 'NO'} |"
    )
    lines.append(
        f"| MB more after the last job than after the second | {growth:.1f} | ≤ 5 | {'yes' if growth <= 5 else 'NO'} |"
    )
    lines.append(f"| faster than the loop | {middle[LOOP] / middle[BATCH]:.1f} × | | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the synthetic source")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of every variant")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure; kept (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ctxforge-bench-") as temporary:
        work = options.work.resolve() if options.work else Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        source = work / "synthetic"
        if not source.exists():
            maker = [sys.executable, str(ROOT / "benchmarks" / "synthetic.py"), str(source)]
            made = [*maker, "--gigabytes", str(options.gigabytes)]
            subprocess.run(made, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, warm cache, ", end="")
        print(
            f"{options.gigabytes:g} GB in 4 shards, {options.runs} runs, load {os.getloadavg()[0]:.1f} at the start\n"
        )
        print("\n".join(table(bench(source, work, options.runs))))


if __name__ == "__main__":
    main()
