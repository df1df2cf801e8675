"""Families whose `max_position_embeddings` is not the length they were trained at."""

from __future__ import annotations

from ctxforge.rope.architectures.types import MisstatedLength

MISSTATED_LENGTHS = (
    MisstatedLength("qwen3", 40960, 32768, "40960 leaves room for the answer; trained at 32768 (QwenLM/Qwen3#1424)"),
    MisstatedLength(
        "qwen3_moe", 40960, 32768, "40960 leaves room for the answer; trained at 32768 (QwenLM/Qwen3#1424)"
    ),
    MisstatedLength(
        "mistral", 32768, 8192, "Mistral-7B-v0.1: windowed over 8192-token sequences (2309.00071)", window=4096
    ),
)
