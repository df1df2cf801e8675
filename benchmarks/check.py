"""`ctxforge check` of a repository with hundreds of shards, beside reading every header with safetensors.

    python benchmarks/check.py [--shards 200] [--runs 5]

The shards are sparse: true headers, data that takes no disk. Two models: a dense one of 126 layers, and a mixture of
experts with 58 layers of 256 experts, whose tensors are forty times as many. The peer opens every shard with
`safe_open` and asks each tensor's shape and dtype; before a number is printed, both have found the same names, shapes
and dtypes. Each run is a process of its own, the variants interleaved, the cache warm.

Goal: 2 s for 200 shards.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL = 2.0
PEER = """
import json, pathlib, sys
from safetensors import safe_open
found = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(path, framework="np") as shard:
        for name in shard.keys():
            part = shard.get_slice(name)
            found[name] = (part.get_dtype(), part.get_shape())
if sys.argv[2:]:
    pathlib.Path(sys.argv[2]).write_text(json.dumps(found))
"""
Spec = tuple[str, tuple[int, ...]]


def dense() -> Iterator[Spec]:
    """The tensors of a dense Llama of 126 layers."""
    yield "model.embed_tokens.weight", (128256, 16384)
    for layer in range(126):
        base = f"model.layers.{layer}"
        for part, rows in (("q", 16384), ("k", 1024), ("v", 1024), ("o", 16384)):
            yield f"{base}.self_attn.{part}_proj.weight", (rows, 16384)
        for part in ("gate", "up"):
            yield f"{base}.mlp.{part}_proj.weight", (53248, 16384)
        yield f"{base}.mlp.down_proj.weight", (16384, 53248)
        for part in ("input", "post_attention"):
            yield f"{base}.{part}_layernorm.weight", (16384,)
    yield "model.norm.weight", (16384,)
    yield "lm_head.weight", (128256, 16384)


def experts() -> Iterator[Spec]:
    """The tensors of a mixture of 256 experts in 58 layers."""
    yield "model.embed_tokens.weight", (129280, 7168)
    for layer in range(58):
        base = f"model.layers.{layer}"
        for part in ("q", "k", "v", "o"):
            yield f"{base}.self_attn.{part}_proj.weight", (7168, 7168)
        for expert in range(256):
            for part in ("gate", "up"):
                yield f"{base}.mlp.experts.{expert}.{part}_proj.weight", (2048, 7168)
            yield f"{base}.mlp.experts.{expert}.down_proj.weight", (7168, 2048)
        for part in ("input", "post_attention"):
            yield f"{base}.{part}_layernorm.weight", (7168,)
    yield "model.norm.weight", (7168,)


def config(hidden: int, layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_attention_heads": hidden // 128,
        "num_hidden_layers": layers,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
    }


def make(root: Path, specs: list[Spec], settings: dict[str, object], shards: int) -> None:
    """Write sparse shards, an index and a config."""
    root.mkdir()
    mapping: dict[str, str] = {}
    total = 0
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor, shape in specs[number * len(specs) // shards : (number + 1) * len(specs) // shards]:
            size = 2
            for side in shape:
                size *= side
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
            mapping[tensor] = name
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (root / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        total += offset
    (root / "config.json").write_text(json.dumps(settings, indent=2))
    index = {"metadata": {"total_size": total}, "weight_map": mapping}
    (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def seconds(command: list[str]) -> tuple[float, float, float]:
    """Wall and processor seconds, and peak memory in MB, of a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    took = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{command} failed")
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def agree(root: Path, work: Path) -> int:
    """Assert that ctxforge's tensors are safetensors'; how many there are."""
    sys.path.insert(0, str(ROOT))
    from ctxforge.checkpoint import read_checkpoint

    subprocess.run([sys.executable, "-c", PEER, str(root), str(work / "peer.json")], check=True)
    peer = json.loads((work / "peer.json").read_text())
    ours = {name: [info.dtype, list(info.shape)] for name, info in read_checkpoint(root).tensors.items()}
    if ours != peer:
        raise SystemExit("ctxforge and safetensors read different tensors")
    return len(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"{options.runs} runs, load {os.getloadavg()[0]:.1f} at the start\n")
    print("| model | tensors | variant | median s | min s | CPU s | peak MB | x safe_open | goal |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="ctxforge-check-") as temporary:
        work = Path(temporary)
        models = {"dense": (list(dense()), config(16384, 126)), "experts": (list(experts()), config(7168, 58))}
        for model, (specs, settings) in models.items():
            root = work / model
            # In a process of its own: the peak of later ones begins at this one's size.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                pool.submit(make, root, specs, settings, options.shards).result()
                count = pool.submit(agree, root, work).result()
            variants = {
                "safe_open": [sys.executable, "-c", PEER, str(root)],
                "ctxforge check": [sys.executable, "-m", "ctxforge", "check", str(root)],
            }
            measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
            for _ in range(options.runs + 1):
                for name, command in variants.items():
                    measured[name].append(seconds(command))
            peer = statistics.median(run[0] for run in measured["safe_open"][1:])
            for name, runs in measured.items():
                walls = [run[0] for run in runs[1:]]
                middle = statistics.median(walls)
                goal = "" if name == "safe_open" else f"<= {GOAL:g} s: {'yes' if middle <= GOAL else 'NO'}"
                print(
                    f"| {model}, {options.shards} shards | {count} | {name} | {middle:.3f} | {min(walls):.3f}"
                    f" | {statistics.median(run[1] for run in runs[1:]):.3f} | {max(run[2] for run in runs):.0f}"
                    f" | {middle / peer:.2f} | {goal} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
