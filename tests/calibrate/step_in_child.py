"""A process of its own that estimates a training step's memory, runs it, and prints both: see test_memory_estimate.py.

Resident memory is compared, and not what our meter or torch counts, which could be wrong in the same way.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ctxforge.calibrate.memory.checkpointing import Checkpointing
from ctxforge.calibrate.memory.estimate import Estimator, StepOptions
from ctxforge.calibrate.memory.tiled_mlp import TiledMLPs
from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens

SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}


def build(kind: str, sizes: dict[str, Any], adapters: bool) -> Any:
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SIZES, **sizes}), dtype=torch.float32)
    if adapters:
        import warnings

        from peft import LoraConfig, get_peft_model

        warnings.simplefilter("ignore")
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    return model.train()


def train(model: Any, length: int, options: StepOptions) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
    handles = [Checkpointing(model, keep_attention=options.keep_attention)] if options.checkpoint else []
    if options.tile_tokens:
        handles.append(TiledMLPs(model, options.tile_tokens))
    loss_model = LossModel(model, options.slice_rows)
    ids = torch.arange(length)[None] % model.config.vocab_size
    where = torch.arange(length)[None]
    # The second step finds gradients and the optimiser's states there: that is the peak.
    for _ in range(2):
        loss_model(ids, next_tokens(ids), float(length), position_ids=where).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
    for handle in handles:
        handle.remove()


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    kind, sizes, adapters, length, chosen = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    options = StepOptions(**chosen)
    model = build(kind, sizes, adapters)
    found = Estimator(model).estimate(length, options)
    # Kernels and lazily imported code are there before the baseline is taken.
    train(model, 64, options)
    del model
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    train(build(kind, sizes, adapters), length, options)
    sys.stdout.write(json.dumps({"estimate": found.total, "peak": resident("VmHWM") - before}) + "\n")


if __name__ == "__main__":
    main()
