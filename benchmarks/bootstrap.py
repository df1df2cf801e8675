"""Paired bootstrap of 64 documents x 8 buckets, 10 000 resamples: ours against scipy and against a plain loop.

    python benchmarks/bootstrap.py [--check]

All draw the same resamples (numpy's PCG64, one seed), so the bounds must agree to 1e-9 or the run fails. scipy takes
part where it is installed; it is no dependency. The sides run in turn and their medians are compared. Goal: 100 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics as medians
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ctxforge.verification.statistics import paired_bootstrap  # noqa: E402

GOAL_MILLISECONDS = 100.0
TOLERANCE = 1e-9
SEED = 1
Bounds = np.ndarray


def ours(values: np.ndarray, resamples: int) -> Bounds:
    found = paired_bootstrap(values, resamples=resamples, seed=SEED, widen=False)
    return np.array([interval.bounds for interval in found])


def loop(values: np.ndarray, resamples: int) -> Bounds:
    """One resample at a time, as it is written by hand."""
    generator = np.random.default_rng(SEED)
    units = len(values)
    means = np.array([values[generator.integers(0, units, size=units)].mean(0) for _ in range(resamples)])
    return np.percentile(means, [2.5, 97.5], axis=0).T


def scipy_bootstrap(values: np.ndarray, resamples: int) -> Bounds:
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, axis=0, n_resamples=resamples, method="percentile", random_state=np.random.default_rng(SEED)
    )
    return np.array([found.confidence_interval.low, found.confidence_interval.high]).T


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--buckets", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="exit 1 when the goal is missed")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    # In the order that ours puts units into, so that a resample means the same documents to every side.
    values = np.random.default_rng(0).normal(2.5, 0.4, size=(options.documents, options.buckets))
    values = values[np.lexsort(values.T[::-1])]
    sides: dict[str, Callable[[np.ndarray, int], Bounds]] = {"ctxforge": ours, "plain loop": loop}
    try:
        import scipy.stats  # noqa: F401
    except ImportError:
        print("scipy is not installed: compared with the loop alone\n")
    else:
        sides["scipy.stats.bootstrap"] = scipy_bootstrap
    times: dict[str, list[float]] = {name: [] for name in sides}
    bounds: dict[str, Bounds] = {}
    for _ in range(options.repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            bounds[name] = side(values, options.resamples)
            times[name].append(1000 * (time.perf_counter() - start))
    medians_ms = {name: medians.median(taken[1:]) for name, taken in times.items()}
    print(f"{options.documents} documents x {options.buckets} buckets, {options.resamples} resamples\n")
    print("| | median ms | min ms | times ours | largest difference of a bound |")
    print("|---|---|---|---|---|")
    worst = 0.0
    for name, taken in times.items():
        difference = float(np.abs(bounds[name] - bounds["ctxforge"]).max())
        worst = max(worst, difference)
        ratio = medians_ms[name] / medians_ms["ctxforge"]
        print(f"| {name} | {medians_ms[name]:.1f} | {min(taken[1:]):.1f} | {ratio:.1f} | {difference:.1e} |")
    if options.json:
        options.json.write_text(json.dumps({"median_ms": medians_ms, "largest_difference": worst}, indent=2) + "\n")
    if not worst <= TOLERANCE:
        print(f"\nthe bounds differ by {worst:.3e}, more than {TOLERANCE:g}")
        return 1
    met = medians_ms["ctxforge"] <= GOAL_MILLISECONDS
    print(f"\ngoal of {GOAL_MILLISECONDS:.0f} ms: {'met' if met else 'missed'}")
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
