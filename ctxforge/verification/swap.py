"""Swapping a loaded model's rotary tables in place: many methods measured on weights that were loaded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ctxforge.errors import UnsupportedError

_REMEDY = "convert it with `ctxforge extend` and measure the output with `ctxforge verify`"


@dataclass(frozen=True)
class TableValues:
    """What one rotary table shall hold.

    Attributes:
        layer_type: key of a nested table, None for a flat one.
        frequencies: radians per token, one a pair.
        temperature: factor on cos and sin.
    """

    layer_type: str | None
    frequencies: Sequence[float]
    temperature: float


@contextmanager
def swapped(model: Any, tables: Sequence[TableValues]) -> Iterator[None]:
    """Inside, `model` rotates with `tables`; afterwards with what it had, bit for bit.

    Frequencies are computed in float64 and stored as float32, as transformers itself stores them.

    Raises:
        UnsupportedError: the model keeps its rotary tables in another way than transformers' rotary modules do.
    """
    places = [place for table in tables for place in _places(model, table)]
    kept = [(module, name, getattr(module, name)) for module, name, _value in places]
    try:
        for module, name, value in places:
            old = getattr(module, name)
            setattr(module, name, value.to(old) if isinstance(old, torch.Tensor) else value)
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def _places(model: Any, table: TableValues) -> list[tuple[Any, str, Any]]:
    prefix = f"{table.layer_type}_" if table.layer_type else ""
    wanted = torch.tensor(list(table.frequencies), dtype=torch.float64)
    found: list[tuple[Any, str, Any]] = []
    for _name, module in model.named_modules():
        buffer = getattr(module, f"{prefix}inv_freq", None)
        if not isinstance(buffer, torch.Tensor):
            continue
        if buffer.shape != wanted.shape:
            raise UnsupportedError(
                f"a rotary table holds {buffer.numel()} frequencies where {wanted.numel()} were planned", _REMEDY
            )
        found.append((module, f"{prefix}inv_freq", wanted))
        found.append((module, f"{prefix}attention_scaling", table.temperature))
        if isinstance(getattr(module, f"{prefix}original_inv_freq", None), torch.Tensor):
            found.append((module, f"{prefix}original_inv_freq", wanted))
    if not found:
        where = f" for {table.layer_type}" if table.layer_type else ""
        raise UnsupportedError(f"{type(model).__name__} has no rotary table{where} to swap", _REMEDY)
    return found
