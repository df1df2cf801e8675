"""The bundled model, plain and extended, and documents from its held-out text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from ctxforge.pipeline import extend
from ctxforge.recipe import ConversionRecipe, OutputOptions, parse_method
from ctxforge.sources import BUNDLED, bundled_model, bundled_text

TRAINED = 512
BOS, EOS = 256, 257


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@cache
def plain() -> Any:
    return load(bundled_model())


@cache
def extended(method: str = "yarn", to: str = "2k") -> Any:
    with TemporaryDirectory() as folder:
        recipe = ConversionRecipe(source=BUNDLED, method=parse_method(method), to=to)
        return load(extend(recipe, OutputOptions(out=Path(folder) / "out")).out)


def windowed(model: Any, window: int) -> Any:
    """The same weights with sliding-window attention of `window` tokens in every layer."""
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    values = {name: getattr(model.config, name) for name in (*shared, *more, "rope_parameters")}
    other = MistralForCausalLM(MistralConfig(**values, sliding_window=window)).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    return other


def texts(count: int, characters: int, *, apart: int = 8000) -> list[str]:
    """Stretches of the held-out text, which is English prose; its tokens are bytes."""
    text = bundled_text()
    return [text[i * apart : i * apart + characters] for i in range(count)]


def documents(count: int, tokens: int, *, apart: int = 8000) -> list[list[int]]:
    return [list(text.encode()[:tokens]) for text in texts(count, tokens, apart=apart)]
