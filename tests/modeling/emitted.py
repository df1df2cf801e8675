"""Tiny stock models and the checkpoints with custom code made from them."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ctxforge.rope.custom_code import attach
from ctxforge.rope.geometry import understand
from ctxforge.rope.types import CustomCode
from tests.tiny_models import save_tiny


def read_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def emit(source: Path, target: Path, code: CustomCode) -> Path:
    """A copy of `source` that runs `code`, as a conversion would write it."""
    config = read_config(source)
    changed, files, _notes = attach(code, config, understand(config))
    return write(source, target, changed, files)


def write(source: Path, target: Path, config: dict[str, Any], files: dict[str, bytes]) -> Path:
    shutil.copytree(source, target)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    for name, content in files.items():
        (target / name).write_bytes(content)
    return target


def stock(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options}).eval()


def remote(folder: Path, **options: Any) -> Any:
    """The model in `folder`, our code trusted."""
    options = {"dtype": torch.float32, "trust_remote_code": True, **options}
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (rows, length), generator=generator)


def whole(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits of one pass without a cache."""
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return output


def chunked(model: Any, ids: torch.Tensor, size: int, **options: Any) -> torch.Tensor:
    """Logits of `ids` fed `size` tokens at a time through a cache."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache, found = None, []
    with torch.no_grad():
        for start in range(0, ids.shape[1], size):
            step = model(input_ids=ids[:, start : start + size], use_cache=True, **{name: cache}, **options)
            cache = step[name]
            found.append(step.logits)
    return torch.cat(found, dim=1)


__all__ = ["chunked", "emit", "read_config", "remote", "save_tiny", "stock", "tokens", "whole", "write"]
