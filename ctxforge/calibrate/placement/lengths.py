"""Rotations that depend on how long a batch is: rows that would turn one another's tokens are refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctxforge.calibrate.placement.batch import Batch
from ctxforge.errors import UnsupportedError


def refuse_mixed_lengths(batch: Batch, config: Any) -> None:
    """Refuse a batch in which a text is rotated otherwise than alone because of another.

    transformers takes the largest position of the whole batch. Beyond the trained length LongRoPE then turns all texts
    by its long factors; dynamic NTK turns them by frequencies of that length, and keeps these for later batches
    (`modeling_rope_utils.py`, `dynamic_rope_update`).

    Args:
        batch: what is to be trained on.
        config: of the model.

    Raises:
        UnsupportedError: texts on both sides of LongRoPE's switch, or any beyond it with dynamic NTK.
    """
    for entry in _entries(config):
        kind = entry.get("rope_type", entry.get("type"))
        switching = kind == "longrope" and entry.get("short_factor") != entry.get("long_factor")
        if not switching and kind != "dynamic":
            continue
        inner = config.get_text_config()
        trained = entry.get("original_max_position_embeddings")
        trained = trained or getattr(inner, "original_max_position_embeddings", None) or inner.max_position_embeddings
        beyond = np.array([reach > trained for reach in _reaches(batch)])
        if kind == "dynamic" and beyond.any():
            raise UnsupportedError(
                f"dynamic NTK's rotation follows the longest batch so far: no text may pass {trained} tokens",
                "convert the source with --method ntk or yarn, and calibrate that",
            )
        if switching and beyond.any() and not beyond.all():
            raise UnsupportedError(
                f"LongRoPE with two lists of factors: texts of up to {trained} tokens and longer ones in a batch",
                "put them into different batches, or convert with one list and use mixed windows",
            )


def _reaches(batch: Batch) -> list[float]:
    """The largest position plus 1 of every text."""
    return [
        float(row.positions[row.documents == document].max()) + 1
        for row in batch.rows
        for document in range(int(row.documents[-1]) + 1)
    ]


def _entries(config: Any) -> list[dict[str, Any]]:
    """Every dict of RoPE settings in a config, nested ones too."""
    inner = config.get_text_config()
    open_entries: list[Any] = [getattr(inner, name, None) for name in ("rope_parameters", "rope_scaling")]
    found: list[dict[str, Any]] = []
    while open_entries:
        entry = open_entries.pop()
        if isinstance(entry, dict):
            found.append(entry)
            open_entries.extend(entry.values())
    return found
