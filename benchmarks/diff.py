"""`ctxforge diff` of two checkpoint folders, beside a loop that loads every tensor and compares it with numpy.

    python benchmarks/diff.py [--gigabytes 1] [--runs 3]

Three pairs of one synthetic model: the same bytes in other files; a conversion that folds a temperature into the query
weights; and all weights changed. The peer opens each shard with safetensors, loads one tensor after the other (float16,
since its numpy reader has no bfloat16) and computes the same three figures in float32. Before a number is printed, both
have found the same tensors changed, and the same shares and largest differences. Each run is a process of its own, the
variants interleaved, the cache warm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEER = """
import json, pathlib, sys
import numpy as np
from safetensors import safe_open
one, other, out = map(pathlib.Path, sys.argv[1:])
found = {}
for path in sorted(one.glob("*.safetensors")):
    with safe_open(path, framework="np") as a, safe_open(other / path.name, framework="np") as b:
        for name in a.keys():
            x, y = a.get_tensor(name), b.get_tensor(name)
            if np.array_equal(x.view(np.uint16), y.view(np.uint16)):
                continue
            changed = int((x.view(np.uint16) != y.view(np.uint16)).sum())
            x, y = x.astype(np.float32), y.astype(np.float32)
            apart = np.abs(y - x)
            scale = np.maximum(np.abs(x), np.abs(y))
            relative = np.divide(apart, scale, out=np.zeros_like(apart), where=scale > 0)
            found[name] = (changed, float(apart.max()), float(relative.max()))
out.write_text(json.dumps(found))
"""
MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from ctxforge.checkpoint import read_checkpoint
# float16 in the place of bfloat16: the same bytes under another name, the header's length kept.
root = Path(sys.argv[2])
for path in root.glob("*.safetensors"):
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length).replace(b'"BF16"', b'"F16"')
        file.seek(8)
        file.write(text + b" " * (length - len(text)))
if len(sys.argv) > 3:
    checkpoint = read_checkpoint(root)
    for name, info in checkpoint.tensors.items():
        if sys.argv[3] not in name:
            continue
        data = np.memmap(root / info.file, np.float16, "r+", offset=info.start, shape=(info.nbytes // 2,))
        for start in range(0, len(data), 1 << 20):
            data[start : start + (1 << 20)] *= np.float16(1.25)
        data.flush()
"""


def make(work: Path, gigabytes: float) -> dict[str, tuple[Path, Path]]:
    """The source, and what it is compared with."""
    source = work / "source"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    maker = [sys.executable, str(ROOT / "benchmarks" / "synthetic.py"), str(source), "--gigabytes", str(gigabytes)]
    subprocess.run(maker, check=True, stdout=subprocess.DEVNULL, env=environment)
    subprocess.run([sys.executable, "-c", MAKE, str(ROOT), str(source)], check=True)
    pairs = {"equal, other files": work / "equal", "query weights": work / "folded", "all weights": work / "all"}
    for name, part in zip(pairs, (None, "q_proj", "weight"), strict=True):
        shutil.copytree(source, pairs[name])
        if part is not None:
            subprocess.run([sys.executable, "-c", MAKE, str(ROOT), str(pairs[name]), part], check=True)
    return {name: (source, path) for name, path in pairs.items()}


def measure(command: list[str], out: Path) -> tuple[float, float, float]:
    """Wall and processor seconds, and peak memory in MB, of a process whose stdout goes to `out`."""
    with out.open("wb") as file:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=file, env={**os.environ, "PYTHONPATH": str(ROOT)})
        _, status, usage = os.wait4(child.pid, 0)
        took = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{command} failed")
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def agree(ours: Path, theirs: Path) -> int:
    """Assert that both found the same; how many tensors changed."""
    peer = json.loads(theirs.read_text())
    found = {one["name"]: one["amounts"] for one in json.loads(ours.read_text())["tensors"]}
    if found.keys() != peer.keys():
        raise SystemExit("other tensors changed than the peer says")
    for name, (changed, largest, relative) in peer.items():
        one = found[name]
        close = abs(one["largest"] - largest) <= 1e-6 * largest
        close = close and abs(one["largest_relative"] - relative) <= 1e-6 * max(relative, 1e-30)
        if one["changed"] != changed or not close:
            raise SystemExit(f"{name}: {one} against {changed, largest, relative}")
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"{options.runs} runs, load {os.getloadavg()[0]:.1f} at the start\n")
    print("| pair | tensors changed | variant | median s | min s | CPU s | peak MB | x numpy |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="ctxforge-diff-") as temporary:
        work = Path(temporary)
        for pair, (one, other) in make(work, options.gigabytes).items():
            ours, theirs = work / "ours.json", work / "theirs.json"
            variants = {
                "numpy loop": [sys.executable, "-c", PEER, str(one), str(other), str(theirs)],
                "ctxforge diff": [sys.executable, "-m", "ctxforge", "diff", str(one), str(other), "--json"],
            }
            measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
            for _ in range(options.runs + 1):
                for name, command in variants.items():
                    measured[name].append(measure(command, work / "nothing" if name == "numpy loop" else ours))
            count = agree(ours, theirs)
            peer = statistics.median(run[0] for run in measured["numpy loop"][1:])
            for name, runs in measured.items():
                walls = [run[0] for run in runs[1:]]
                print(
                    f"| {pair} | {count} | {name} | {statistics.median(walls):.3f} | {min(walls):.3f}"
                    f" | {statistics.median(run[1] for run in runs[1:]):.3f} | {max(run[2] for run in runs):.0f}"
                    f" | {statistics.median(walls) / peer:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
