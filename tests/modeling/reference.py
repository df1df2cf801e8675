"""Dense references: every pair of positions explicitly, in float64 complex numbers, on stock models.

A rotated pair of dimensions is one complex number, q.k of a pair is Re(q conj(k)), and a rotation by position makes it
Re(q conj(k) exp(i f (n - m))). A method is the factor that stands in place of the exponential.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.modeling_utils import AttentionInterface
from transformers.models.falcon import modeling_falcon

# (distances [n, m], frequencies [d/2]) -> complex factor [n, m, d/2]
Factor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_NAME = "dense_reference"


def plain(distance: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """RoPE itself."""
    return torch.exp(1j * distance[..., None] * frequencies)


def xpos(scale_base: float, offset: int = 0) -> Factor:
    """2212.10554 eq. 16 on: exp(i f (n - m)) zeta^((n - m) / B)."""

    def factor(distance: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
        d = 2 * len(frequencies)
        zeta = torch.tensor([(2 * i + 0.4 * d) / (1.4 * d) for i in range(d // 2)], dtype=torch.float64)
        distance = (distance + offset).clamp(min=0)
        return plain(distance, frequencies) * zeta ** (distance[..., None] / scale_base)

    return factor


def dynamic_yarn(trained: int, steps: int, ramp: list[float]) -> Factor:
    """YaRN's table for each query alone, from its own position."""

    def table(scale: float, frequencies: list[float]) -> tuple[list[float], float]:
        changed = [f * (g / scale + 1 - g) for f, g in zip(frequencies, ramp, strict=True)]
        return changed, 0.1 * math.log(scale) + 1

    return _by_query(trained, steps, table)


def dynamic_ntk(trained: int, steps: int, factor: float) -> Factor:
    """The NTK-aware base for each query alone: f_i = b'^(-2i/d), b' = b (factor s - (factor - 1))^(d/(d-2))."""

    def table(scale: float, frequencies: list[float]) -> tuple[list[float], float]:
        d = 2 * len(frequencies)
        base = frequencies[1] ** (-d / 2) * (factor * scale - (factor - 1)) ** (d / (d - 2))
        return [base ** (-2 * i / d) for i in range(d // 2)], 1.0

    return _by_query(trained, steps, table)


def clex(trained: int, tables: list[float]) -> Factor:
    """The table of t = ceil(l / L0) for each query alone; float32 tables, as a stock rotary module's are."""
    tables = torch.tensor(tables, dtype=torch.float32).tolist()

    def table(scale: float, frequencies: list[float]) -> tuple[list[float], float]:
        pairs = len(frequencies)
        start = min(int(scale) - 1, len(tables) // pairs - 1) * pairs
        return tables[start : start + pairs], 1.0

    return _by_query(trained, 1, table)


def _by_query(trained: int, steps: int, table: Callable[[float, list[float]], tuple[list[float], float]]) -> Factor:
    def factor(distance: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
        rows = []
        for position in range(distance.shape[0]):
            changed, temperature = table(
                max(1.0, math.ceil((position + 1) * steps / trained) / steps), frequencies.tolist()
            )
            rows.append(temperature**2 * plain(distance[position], torch.tensor(changed, dtype=torch.float64)))
        return torch.stack(rows)

    return factor


def with_factor(model: Any, factor: Factor, *, interleaved: bool, block_length: int | None = None) -> Any:
    """The stock `model`, float64, with its attention replaced by the explicit one."""
    model = model.double()
    rotary = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    frequencies = rotary.inv_freq.double()
    rotary.register_forward_hook(lambda _module, _args, out: (torch.ones_like(out[0]), torch.zeros_like(out[1])))

    def attention(_module: Any, query: Any, key: Any, value: Any, *_args: Any, scaling: float, **_kwargs: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        index = torch.arange(query.shape[2])
        distance = index[:, None] - index[None, :]
        d = 2 * len(frequencies)
        pairs = [_complex(states[..., :d], interleaved) for states in (query, key)]
        turned = factor(distance.double(), frequencies)
        scores = torch.einsum("bhni,bhmi,nmi->bhnm", pairs[0], pairs[1].conj(), turned).real
        scores = scores + query[..., d:] @ key[..., d:].transpose(2, 3)
        visible = distance >= 0
        if block_length is not None:
            blocks = index // block_length
            visible = visible & (blocks[:, None] - blocks[None, :] <= 1)
        weights = (scores * scaling).masked_fill(~visible, -math.inf).softmax(dim=-1)
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register(_NAME, attention)
    model.config._attn_implementation = _NAME
    return model


def _complex(states: torch.Tensor, interleaved: bool) -> torch.Tensor:
    half = states.shape[-1] // 2
    if interleaved:
        return torch.complex(states[..., 0::2].contiguous(), states[..., 1::2].contiguous())
    return torch.complex(states[..., :half].contiguous(), states[..., half:].contiguous())


def with_slopes(model: Any, kind: str, factor: Callable[[int], float], length: int, patch: pytest.MonkeyPatch) -> Any:
    """The stock ALiBi `model`, float64, given an explicit bias of slope * factor(l) * (m - n) for its l-th query."""
    model = model.double()
    # Six heads: four of 2^-2 ... 2^-8 and odd ones of eight (2108.12409); MPT orders eight as every second first.
    slope = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3], dtype=torch.float64)
    index = torch.arange(length)
    factors = torch.tensor([factor(position + 1) for position in range(length)], dtype=torch.float64)
    bias = slope[:, None, None] * factors[None, :, None] * (index[None, :] - index[:, None])
    if kind == "mpt":
        model.transformer.build_mpt_alibi_tensor = lambda *_args, **_kwargs: bias
    else:
        model.transformer.build_alibi_tensor = lambda mask, *_args, **_kwargs: bias.repeat(mask.shape[0], 1, 1)
        patch.setattr(modeling_falcon, "build_alibi_tensor", lambda mask, *_a, **_k: bias.repeat(mask.shape[0], 1, 1))
    return model
