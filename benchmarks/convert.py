"""Conversion against `cp -r` and against transformers, side by side: `python benchmarks/convert.py --gigabytes 1 8`.

Every run is a fresh process, the variants are interleaved, all end with the file system synced, and the page cache is
warm. Time and peak memory come from wait4, bytes written from /proc/PID/io. Before a number is printed, the outputs are
compared with the source, tensor by tensor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
TRANSFORMERS = (
    "import sys, torch\n"
    "from transformers import AutoModelForCausalLM\n"
    "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)\n"
    "model.config.rope_parameters = {**model.config.rope_parameters, 'rope_type': 'yarn', 'factor': 4.0,"
    " 'original_max_position_embeddings': model.config.max_position_embeddings}\n"
    "model.config.max_position_embeddings *= 4\n"
    "model.save_pretrained(sys.argv[2])\n"
)
COPY, PEER, CONFIG, LINK, FOLD = "cp -r", "transformers", "ctxforge", "ctxforge --link", "ctxforge, folded temperature"
VARIANTS = (COPY, PEER, CONFIG, LINK, FOLD)


@dataclass(frozen=True)
class Run:
    """One process: wall and processor seconds, peak memory in MB, bytes sent to the file system (None: unknown)."""

    seconds: float
    cpu: float
    peak_mb: float
    written: int | None


def command(variant: str, source: Path, out: Path) -> list[str]:
    extend = [
        sys.executable,
        "-m",
        "ctxforge",
        "extend",
        str(source),
        "--method",
        "yarn",
        "--to",
        "4x",
        "--out",
        str(out),
    ]
    return {
        COPY: ["cp", "-r", str(source), str(out)],
        PEER: [sys.executable, "-c", TRANSFORMERS, str(source), str(out)],
        CONFIG: extend,
        LINK: [*extend, "--link"],
        FOLD: [*extend, "--temperature", "1.0"],
    }[variant]


def measure(arguments: list[str], out: Path) -> Run:
    """Run to the end, the output synced. Starts from this small process, or the peak would be the parent's."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = ["sh", "-c", 'out="$1"; shift; "$@" >/dev/null && sync -f "$out"', "sh", str(out), *arguments]
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        child = subprocess.Popen(script, env=env, stderr=errors, cwd=out.parent)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - began
        written = written_bytes(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            errors.seek(0)
            raise SystemExit(f"{' '.join(arguments)} failed:\n{errors.read().decode(errors='replace')[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, written)


def written_bytes(pid: int) -> int | None:
    """What a finished process that isn't reaped yet, and its children, sent to the file system."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), None)


def tensor_hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every tensor's data, by name."""
    from ctxforge.checkpoint import read_checkpoint
    from ctxforge.checkpoint.files import descriptor_sha256

    checkpoint = read_checkpoint(root)
    hashes: dict[str, str] = {}
    for shard in checkpoint.shards:
        file = os.open(root / shard, os.O_RDONLY)
        for info in checkpoint.tensors.values():
            if info.file == shard:
                digest = hashlib.sha256(f"{info.dtype}{info.shape}".encode())
                digest.update(descriptor_sha256(file, info.start, info.end).encode())
                hashes[info.name] = digest.hexdigest()
        os.close(file)
    return hashes


def check(variant: str, source: Path, hashes: Mapping[str, str], out: Path) -> int:
    """Assert that the output is the source with what the variant changes; the bytes of the largest edited tensor."""
    found = tensor_hashes(out)
    if found.keys() != hashes.keys():
        raise SystemExit(f"{variant}: other tensors than the source's")
    changed = {name for name in hashes if found[name] != hashes[name]}
    if variant != FOLD:
        if changed:
            raise SystemExit(f"{variant} changed {sorted(changed)[:3]}")
        return 0
    plan = json.loads((out / "ctxforge.json").read_text())["plan"]
    if changed != set(plan["tensors_edited"]) or not changed:
        raise SystemExit(f"{variant} edited {sorted(changed)[:3]}, planned {plan['tensors_edited'][:3]}")
    return max(check_edit(source, out, name) for name in sorted(changed))


def check_edit(source: Path, out: Path, name: str) -> int:
    """Assert that one edited tensor is the source's times one factor, rounded once; its size in bytes."""
    import numpy as np

    from ctxforge.checkpoint import read_checkpoint, read_tensor

    info = read_checkpoint(source).tensors[name]
    before = read_tensor(source, info).ravel()
    after = read_tensor(out, read_checkpoint(out).tensors[name]).ravel()
    # Each quotient is the factor to within half an ulp of bf16: all the intervals have to share a point.
    usual = np.abs(before) > 1e-30
    ratio = after[usual].astype(np.float64) / before[usual]
    if not (ratio * (1 - 2**-8)).max() <= (ratio * (1 + 2**-8)).min():
        raise SystemExit(f"{name} is not the source's times one factor")
    return info.nbytes


def apart(function: Callable[..., Any], *arguments: object) -> Any:
    """Call in a fresh process, so that this one stays small: a child's peak begins at its parent's size."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def bench(source: Path, work: Path, runs: int) -> tuple[dict[str, list[Run]], int]:
    """`runs` interleaved measurements of every variant, after a warm-up whose outputs are compared with the source."""
    hashes = apart(tensor_hashes, source)
    results: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
    largest = 0
    for number in range(runs + 1):
        # Another order each time, so that no variant always inherits the disk from the same one.
        for variant in VARIANTS[number % len(VARIANTS) :] + VARIANTS[: number % len(VARIANTS)]:
            out = work / "out"
            shutil.rmtree(out, ignore_errors=True)  # left by a run that was stopped
            run = measure(command(variant, source, out), out)
            if number == 0:
                largest = max(largest, apart(check, variant, source, hashes, out))
            else:
                results[variant].append(run)
            shutil.rmtree(out)
            subprocess.run(["sync", "-f", str(work)], check=True)
    return results, largest


def table(title: str, results: Mapping[str, list[Run]], largest: int) -> list[str]:
    """The markdown table of one source, and the goals with what was reached."""
    middle = {variant: statistics.median(run.seconds for run in runs) for variant, runs in results.items()}
    peak = {variant: max(run.peak_mb for run in runs) for variant, runs in results.items()}
    lines = [
        f"### {title}",
        "",
        "| variant | median s | min s | CPU s | peak RSS MB | MB written | × cp | × transformers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, runs in results.items():
        wrote = [run.written for run in runs]
        written = "?" if None in wrote else f"{statistics.median(w for w in wrote if w is not None) / 1e6:.1f}"
        lines.append(
            f"| {variant} | {middle[variant]:.3f} | {min(run.seconds for run in runs):.3f} "
            f"| {statistics.median(run.cpu for run in runs):.3f} | {peak[variant]:.1f} "
            f"| {written} | {middle[variant] / middle[COPY]:.2f} | {middle[variant] / middle[PEER]:.3f} |"
        )
    limit = 3 * largest / 1e6 + 60
    linked = max((run.written or 0) for run in results[LINK]) / 1e6
    goals = [
        ("at least 10 × faster than transformers", middle[PEER] / middle[CONFIG], 10, "≥"),
        ("seconds within 1.15 × cp + 0.25", middle[CONFIG], 1.15 * middle[COPY] + 0.25, "≤"),
        ("peak MB, config only", peak[CONFIG], 60, "≤"),
        ("MB written with --link (no tensor byte)", linked, 1, "≤"),
        ("folded: seconds within 1.4 × cp", middle[FOLD], 1.4 * middle[COPY], "≤"),
        ("folded: peak MB within three tensors + 60", peak[FOLD], limit, "≤"),
    ]
    lines += ["", "| goal | measured | bound | met |", "|---|---|---|---|"]
    for name, value, bound, sign in goals:
        met = value >= bound if sign == "≥" else value <= bound
        lines.append(f"| {name} | {value:.3f} | {sign} {bound:.3f} | {'yes' if met else 'NO'} |")
    return [*lines, ""]


def sources(options: argparse.Namespace, work: Path) -> list[tuple[str, Path]]:
    """The checkpoints to convert: the one given, else synthetic ones of the sizes asked for, made once in a child."""
    found = [(options.source.name, options.source.resolve())] if options.source else []
    for size in options.gigabytes if not options.source else []:
        root = work / f"synthetic-{size:g}"
        if not root.exists():
            maker = [sys.executable, str(ROOT / "benchmarks" / "synthetic.py"), str(root), "--gigabytes", str(size)]
            subprocess.run(maker, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
        found.append((f"synthetic, {size:g} GB, 4 shards", root))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0], help="sizes of synthetic checkpoints")
    parser.add_argument("--source", type=Path, help="a checkpoint folder to convert instead")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of every variant")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure; kept (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ctxforge-bench-") as temporary:
        work = options.work.resolve() if options.work else Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, warm cache, ", end="")
        print(f"{options.runs} runs, load {os.getloadavg()[0]:.1f} at the start\n")
        peaks = {}
        for title, source in sources(options, work):
            results, largest = bench(source, work, options.runs)
            print("\n".join(table(title, results, largest)), flush=True)
            peaks[title] = max(run.peak_mb for run in results[CONFIG])
        if len(peaks) > 1:
            print("Peak RSS of the config-only conversion, by size:", ", ".join(f"{p:.1f} MB" for p in peaks.values()))


if __name__ == "__main__":
    main()
