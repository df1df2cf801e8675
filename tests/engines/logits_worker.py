"""Run by another environment's Python: logits of fixed tokens for each folder named on the command line."""

from __future__ import annotations

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM


def main() -> None:
    out, length, *folders = sys.argv[1:]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 96, (1, int(length)), generator=generator)
    results = {}
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            results[folder] = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    torch.save(results, out)
    sys.stdout.write(json.dumps({"transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
