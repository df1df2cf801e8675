"""Calling a system's attention directly, with tensors made up by hand."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ctxforge
from ctxforge.attention.reference import Pattern, dense_attention
from tests.modeling.emitted import remote, save_stock


@dataclass(frozen=True)
class Extended:
    """A tiny model that was given an attachment.

    Attributes:
        source: folder of the stock model.
        folder: of the converted one.
        model: it, loaded.
    """

    source: Path
    folder: Path
    model: Any

    @property
    def module(self) -> Any:
        """The first attention module."""
        return next(module for module in self.model.modules() if hasattr(module, "ctxforge_rotary"))

    @property
    def system(self) -> Any:
        """The system that answers its calls."""
        return self.module.ctxforge_system

    def call(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> Any:
        """A `Call` of the checkpoint's own code: positions from 0 for the keys, the last ones for the queries."""
        shared = sys.modules[f"{type(self.model).__module__.rpartition('.')[0]}.ctxforge_attention"]
        rows, keys = key.shape[0], key.shape[2]
        positions = torch.arange(keys).expand(rows, keys)
        given = {
            "query_positions": positions[:, keys - query.shape[2] :],
            "key_positions": positions,
            "mask": None,
            "scaling": SCALING,
            "dropout": 0.0,
        }
        return shared.Call(query, key, value, **{**given, **options})

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        """The system's output for that call, [B, H, T, Dv]."""
        found: torch.Tensor = self.system.attend(self.module, self.call(query, key, value, **options))
        return found

    def dense(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
        """The dense reference's output, in float64."""
        table, temperature = self.system.frequencies(self.module, query.device)
        return dense_attention(
            query.double(),
            key.double(),
            value.double(),
            table,
            pattern,
            scaling=SCALING,
            interleaved=self.system.interleaved,
            temperature=temperature,
        )


SCALING = 0.6


def extended(kind: str, attachment: str, folder: Path, **options: Any) -> Extended:
    """A tiny stock model of `kind`, extended to 256 tokens with the attachment."""
    source = save_stock(kind, folder / "source")
    ctxforge.extend(source, attach=attachment, to=256, out=folder / "out", **options)
    return Extended(source, folder / "out", remote(folder / "out"))


def states(
    rows: int, heads: int, groups: int, length: int, dims: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query [B, H, T, D], key and value [B, H / groups, T, D], for which attention is sharp at SCALING."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((rows, heads, length, dims), *((rows, heads // groups, length, dims),) * 2)
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return query, key, value


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation under it made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        made = output if isinstance(output, (tuple, list)) else (output,)
        self.elements = max([self.elements, *(part.numel() for part in made if isinstance(part, torch.Tensor))])
        return output
