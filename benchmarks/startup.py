"""Start-up: `ctxforge --help`, `plan` and `inspect` against a bare import of the libraries they need.

    python benchmarks/startup.py [--runs N]

Goals: --help at most 150 ms and at most 2 x `python -c "import click, rich"`; plan and inspect at most 400 ms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c 'import click, rich'": ([sys.executable, "-c", "import click, rich"], None),
    "ctxforge --help": ([sys.executable, "-m", "ctxforge", "--help"], 150.0),
    "ctxforge inspect bundled": ([sys.executable, "-m", "ctxforge", "inspect", "bundled"], 400.0),
    "ctxforge plan bundled (yarn 4x)": (
        [sys.executable, "-m", "ctxforge", "plan", "bundled", "-m", "yarn", "--to", "4x"],
        400.0,
    ),
    "ctxforge plan bundled (folded)": (
        [sys.executable, "-m", "ctxforge", "plan", "bundled", "-m", "yarn", "--to", "4x", "--temperature", "1"],
        400.0,
    ),
}


def milliseconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    measured: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, (command, _goal) in COMMANDS.items():
            measured[name].append(milliseconds(command))
    baseline = statistics.median(measured["python -c 'import click, rich'"][1:])
    print("| command | median ms | min ms | ratio to the bare import | goal |")
    print("|---|---|---|---|---|")
    for name, (_command, goal) in COMMANDS.items():
        times = measured[name][1:]
        median = statistics.median(times)
        wanted = "" if goal is None else f"<= {goal:.0f} ms" + (", <= 2.0x" if "--help" in name else "")
        print(f"| `{name}` | {median:.0f} | {min(times):.0f} | {median / baseline:.2f} | {wanted} |")


if __name__ == "__main__":
    main()
