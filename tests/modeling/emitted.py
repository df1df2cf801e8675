"""Tiny stock models with sharp attention, and the checkpoints with custom code made from them."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ctxforge import positions, rope
from ctxforge.rope.clex_ode import clex_frequencies
from ctxforge.rope.methods import find_method

TRAINED = 64
TARGET = 256
_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Six heads, because ALiBi's slopes are another rule where the heads are no power of two.
_ALIBI = {"hidden_size": 96, "vocab_size": 96, "initializer_range": 0.2, "pad_token_id": 0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_COMMON, "attention_bias": True}),
    "qwen3": ("qwen3", {**_COMMON, "head_dim": 16}),
    "gpt_neox": ("gpt_neox", {**_COMMON, "rotary_pct": 0.5}),
    "glm": ("glm", {**_COMMON, "head_dim": 16, "partial_rotary_factor": 0.5}),
    "gemma2": ("gemma2", {**_COMMON, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}),
    "mistral": ("mistral", {**_COMMON, "sliding_window": 24}),
    "smollm3": ("smollm3", {**_COMMON, "no_rope_layer_interval": 3}),
    "bloom": ("bloom", {**_ALIBI, "n_layer": 3, "n_head": 6, "seq_length": TRAINED}),
    "mpt": ("mpt", {**_ALIBI, "d_model": 96, "n_layers": 3, "n_heads": 6, "max_seq_len": TRAINED}),
    "falcon": (
        "falcon",
        {**_ALIBI, "num_hidden_layers": 3, "num_attention_heads": 6, "alibi": True, "max_position_embeddings": TRAINED},
    ),
    "falcon-grouped": (
        "falcon",
        {
            **_ALIBI,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "alibi": True,
            "max_position_embeddings": TRAINED,
        },
    ),
}


@dataclass(frozen=True)
class Case:
    """A method with parameters on a kind of model."""

    kind: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = {key: "..." if isinstance(value, tuple) else value for key, value in self.parameters.items()}
        options = ",".join(f"{key}={value}" for key, value in shown.items())
        return f"{self.kind}-{self.method}" + (f"[{options}]" if options else "")


def learned_tables(pairs: int) -> tuple[float, ...]:
    """What a CLEX model of these pairs might have learned, for t = 1 to TARGET / TRAINED."""
    draw = np.random.default_rng(5)
    up, down = draw.normal(0, 0.3, (pairs, 16)), draw.normal(0, 0.003, (16, pairs))
    scales = range(1, TARGET // TRAINED + 1)
    return tuple(frequency for t in scales for frequency in clex_frequencies(up, down, 1e4, t, step=0.1))


ROTARY = (
    Case("llama", "xpos"),
    Case("llama", "xpos", {"scale_base": 10, "block_length": 16}),
    Case("llama", "xpos-abf", {"base": 50000}),
    Case("llama", "dynamic-yarn", {"steps": 4}),
    Case("qwen3", "xpos", {"scale_base": 6}),
    Case("qwen3", "dynamic-yarn"),
    Case("gpt_neox", "xpos", {"scale_base": 40}),
    Case("gpt_neox", "dynamic-yarn"),
    Case("glm", "xpos", {"scale_base": 40}),
    Case("glm", "dynamic-yarn"),
    Case("llama", "dynamic-ntk-exact", {"steps": 5}),
    Case("qwen3", "dynamic-ntk-exact", {"factor": 2}),
    Case("gpt_neox", "dynamic-ntk-exact"),
    Case("glm", "dynamic-ntk-exact"),
    Case("gpt_neox", "clex-dynamic", {"frequencies": learned_tables(4)}),
    Case("qwen3", "clex-dynamic", {"frequencies": learned_tables(8)}),
)
SLOPES = (
    Case("bloom", "alibi-interpolation"),
    Case("bloom", "alibi-interpolation", {"dynamic": True}),
    Case("mpt", "alibi-interpolation"),
    Case("mpt", "alibi-interpolation", {"dynamic": True}),
    Case("falcon", "alibi-interpolation"),
    Case("falcon-grouped", "alibi-interpolation", {"dynamic": True}),
)
# Windows, a score cap, layers without RoPE: no dense reference of their own, the rest of the battery holds.
FURTHER = (
    Case("mistral", "dynamic-yarn"),
    Case("gemma2", "xpos"),
    Case("smollm3", "dynamic-yarn"),
    Case("smollm3", "dynamic-ntk-exact"),
)


def save_stock(kind: str, folder: Path) -> Path:
    """A tiny stock model, its norms' weights away from 1."""
    torch.manual_seed(0)
    model_type, options = KINDS[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def convert(case: Case, source: Path, target: Path) -> Path:
    """`source` converted to TARGET tokens, through every stage but the writer's."""
    config = read_config(source)
    stages: Any = rope if positions.scheme(config) == "rope" else positions
    geometry = stages.understand(config)
    plan = stages.make_plan(geometry, find_method(case.method), TARGET, parameters=case.parameters)
    lowered = stages.lower(plan, geometry, config, {})
    stages.prove(plan, lowered, lowered.config)
    shutil.copytree(source, target)
    (target / "config.json").write_text(json.dumps(lowered.config, indent=2))
    for name, content in lowered.files.items():
        (target / name).write_bytes(content)
    return target


def stock(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options}).eval()


def remote(folder: Path, **options: Any) -> Any:
    """The model in `folder`, its code trusted."""
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


def chunked(model: Any, ids: torch.Tensor, size: int, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of `ids` fed `size` tokens at a time through a cache."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache, found = None, []
    with torch.no_grad():
        for start in range(0, ids.shape[1], size):
            part = slice(start, start + size)
            given = {} if positions is None else {"position_ids": positions[:, part]}
            step = model(input_ids=ids[:, part], use_cache=True, **{name: cache}, **given)
            cache = step[name]
            found.append(step.logits)
    return torch.cat(found, dim=1)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest of `wanted`."""
    return float((found - wanted).abs().max() / wanted.abs().max())
