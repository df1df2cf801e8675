"""Rows of multi-modal wrappers whose text model is a type of its own, and of those text models' own names."""

from __future__ import annotations

from dataclasses import replace

from ctxforge.rope.architectures.llama_like import LLAMA_LIKE
from ctxforge.rope.architectures.partial import PARTIAL
from ctxforge.rope.architectures.shared import WRAPPED
from ctxforge.rope.architectures.types import Architecture
from ctxforge.rope.architectures.windowed import WINDOWED


def _wrapped(text: Architecture) -> Architecture:
    return replace(text, config_path=("text_config",), layer_prefixes=WRAPPED)


_EMU3 = Architecture(default_base=1_000_000.0, default_max_position_embeddings=9216)
_MLLAMA = Architecture(
    default_base=500_000.0,
    legacy_spells_default=True,
    unrotated_indices=("cross_attention_layers", (3, 8, 13, 18, 23, 28, 33, 38)),
    default_layers=40,
    default_heads=32,
    default_hidden=4096,
    default_max_position_embeddings=131072,
)

WRAPPERS: dict[str, Architecture] = {
    "emu3": replace(
        _wrapped(_EMU3),
        layer_prefixes=("text_model.model.layers.{layer}.", "model.text_model.layers.{layer}.", *WRAPPED),
    ),
    "emu3_text_model": _EMU3,
    "fuyu": _wrapped(PARTIAL["persimmon"]),
    "got_ocr2": _wrapped(LLAMA_LIKE["qwen2"]),
    "llama4": _wrapped(WINDOWED["llama4_text"]),
    "mllama": _wrapped(_MLLAMA),
    "mllama_text_model": _MLLAMA,
    "moss_transcribe_diarize": _wrapped(replace(LLAMA_LIKE["qwen3"], legacy="absent")),
}
