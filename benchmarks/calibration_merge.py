"""Merging LoRA: ours against peft's merge_and_unload and save_pretrained: `python benchmarks/calibration_merge.py`.

A synthetic bf16 Llama in four shards and a rank-32 adapter on its attention, the same numbers in both formats. Every
run is a fresh process, the variants are interleaved, all end with the file system synced, and the page cache is warm.
Before a number is printed, every merged tensor is compared with its float64 value, every other one with the source's.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from convert import Run, apart, measure  # noqa: E402
from synthetic import make  # noqa: E402

PEER = (
    "import sys, torch\n"
    "from peft import PeftModel\n"
    "from transformers import AutoModelForCausalLM\n"
    "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)\n"
    "PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])\n"
)
OURS = "import sys\nfrom ctxforge.calibrate.adapters import merge\nmerge(*sys.argv[1:4])\n"
VARIANTS = {"peft": PEER, "ctxforge": OURS}
RANK, ALPHA = 32, 32.0


def make_adapters(base: Path, ours: Path, peer: Path) -> None:
    """The same random adapter on every attention projection, as ctxforge's folder and as peft's."""
    import numpy as np

    from ctxforge.calibrate.adapters.digest import weights_digest
    from ctxforge.calibrate.adapters.files import RECORD, WEIGHTS, Entry, document
    from ctxforge.calibrate.adapters.recipe import AdapterRecipe
    from ctxforge.checkpoint import read_checkpoint, write_safetensors_stream

    checkpoint = read_checkpoint(base)
    recipe = AdapterRecipe(rank=RANK, alpha=ALPHA)
    chosen = {name: info for name, info in checkpoint.tensors.items() if ".self_attn." in name}
    entries = tuple(
        Entry(name, "attention", (name,), info.shape, "low-rank", recipe.scale) for name, info in chosen.items()
    )
    shapes = {}
    for name, info in chosen.items():
        shapes[f"{name}.lora_A"] = (RANK, info.shape[1])
        shapes[f"{name}.lora_B"] = (info.shape[0], RANK)

    def data(name: str) -> Iterator[bytes]:
        place = list(shapes).index(name)
        size = 0.02 if name.endswith("A") else 0.005
        yield (size * np.random.default_rng(place).standard_normal(shapes[name])).astype("<f4").tobytes()

    ours.mkdir()
    write_safetensors_stream(ours / WEIGHTS, [(name, "F32", shape) for name, shape in shapes.items()], data)
    (ours / RECORD).write_text(json.dumps(document(recipe, str(base), weights_digest(checkpoint), entries, {})))
    peer.mkdir()
    renamed = {f"base_model.model.{name.replace('.weight.lora', '.lora')}.weight": name for name in shapes}
    write_safetensors_stream(
        peer / "adapter_model.safetensors",
        [(theirs, "F32", shapes[name]) for theirs, name in renamed.items()],
        lambda theirs: data(renamed[theirs]),
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "bias": "none",
        "base_model_name_or_path": str(base),
    }
    (peer / "adapter_config.json").write_text(json.dumps(config))


def largest_error(base: Path, adapter: Path, out: Path) -> float:
    """Largest |merged - exact| in units in the last place; tensors without a change must be the source's."""
    import numpy as np

    from ctxforge.calibrate.adapters import read_adapter
    from ctxforge.calibrate.adapters.rounding import FORMATS, ulp_of
    from ctxforge.checkpoint import read_checkpoint, read_tensor, read_tensor_bytes

    source, merged, found = read_checkpoint(base), read_checkpoint(out), read_adapter(adapter)
    if source.tensors.keys() != merged.tensors.keys():
        raise SystemExit(f"{out} has other tensors than the source")
    entries = {entry.tensors[0]: entry for entry in found.entries}
    worst = 0.0
    for name, info in source.tensors.items():
        if name not in entries:
            if read_tensor_bytes(base, info) != read_tensor_bytes(out, merged.tensors[name]):
                raise SystemExit(f"{out} changed {name}")
            continue
        left, right = (found.numbers(f"{name}.lora_{part}").astype(np.float64) for part in "BA")
        exact = read_tensor(base, info) + entries[name].scale * (left @ right)
        got = read_tensor(out, merged.tensors[name])
        worst = max(worst, float(np.max(np.abs(got - exact) / ulp_of(got, FORMATS["BF16"]))))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        work = Path(name)
        base = apart(make, work / "base", options.gigabytes)
        adapters = {"ctxforge": work / "ours", "peft": work / "peft"}
        apart(make_adapters, base, adapters["ctxforge"], adapters["peft"])
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        runs: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
        errors: dict[str, float] = {}
        for number in range(options.runs + 1):  # the first one warms up
            for variant, script in VARIANTS.items():
                out = work / f"out-{variant}"
                arguments = [sys.executable, "-c", script, str(base), str(adapters[variant]), str(out)]
                run = measure(arguments, out)
                if number:
                    runs[variant].append(run)
                else:
                    errors[variant] = apart(largest_error, base, adapters["ctxforge"], out)
                shutil.rmtree(out)
    if errors["ctxforge"] > 0.5:
        raise SystemExit(f"the merge is off by {errors['ctxforge']} ulp")
    print(f"{size / 1e9:.2f} GB bf16, rank {RANK} on attention, {platform.machine()}, median of {options.runs}\n")
    print("| | seconds | processor seconds | peak MB | largest error, ulp |\n|---|---:|---:|---:|---:|")
    middle = {}
    for variant, some in runs.items():
        seconds, cpu, peak = (
            statistics.median(getattr(run, key) for run in some) for key in ("seconds", "cpu", "peak_mb")
        )
        middle[variant] = seconds, cpu, peak
        print(f"| {variant} | {seconds:.2f} | {cpu:.2f} | {peak:.0f} | {errors[variant]:.6f} |")
    ratios = [theirs / ours for theirs, ours in zip(middle["peft"], middle["ctxforge"], strict=True)]
    print(
        f"\nctxforge: {ratios[0]:.1f} times as fast, 1/{ratios[1]:.1f} of the processor time, "
        f"1/{ratios[2]:.1f} of the memory"
    )


if __name__ == "__main__":
    main()
