"""InfLLM written out: which blocks each query chooses, by explicit loops in float64, nothing of the emitted code in it.

Tensors of one text without a batch: query [H, T, D], key [K, T, D], positions 0, 1, ...
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ctxforge.attention.reference import Pattern, causal, dense_attention, distances
from tests.attention import battery


@dataclass(frozen=True)
class Settings:
    """As the attachment's parameters."""

    window: int
    sinks: int
    block: int
    topk: int
    representatives: int

    @property
    def text(self) -> str:
        """For `--attach`."""
        return ",".join(f"{name}={value}" for name, value in vars(self).items())


@dataclass(frozen=True)
class Rotation:
    """A table [d/2], its temperature, and the layout of pairs."""

    table: torch.Tensor
    temperature: float = 1.0
    interleaved: bool = False

    def scores(self, query: torch.Tensor, key: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """q_m^T R(distance[m, n]) k_n, [H, T, T]: the dense reference's, by asking it for one value at a time."""
        count = key.shape[1]
        q, k = (self._pairs(states.double()) for states in (query, key.repeat_interleave(len(query) // len(key), 0)))
        turn = torch.polar(torch.ones(1, dtype=torch.float64), distance.double()[..., None] * self.table.double())
        found = torch.zeros(len(query), count, count, dtype=torch.float64)
        for m in range(count):
            found[:, m] = (q[:, m : m + 1] * k.conj() * turn[m]).real.sum(-1) * self.temperature**2
        width = 2 * len(self.table)
        keys = key.double().repeat_interleave(len(query) // len(key), 0)
        return found + query.double()[..., width:] @ keys[..., width:].transpose(1, 2)

    def _pairs(self, states: torch.Tensor) -> torch.Tensor:
        count = len(self.table)
        turned = states[..., : 2 * count]
        first, second = (
            (turned[..., 0::2], turned[..., 1::2]) if self.interleaved else (turned[..., :count], turned[..., count:])
        )
        return torch.complex(first.contiguous(), second.contiguous())


def choices(
    query: torch.Tensor, key: torch.Tensor, rotation: Rotation, settings: Settings, averaged: int = 0
) -> list[list[int]]:
    """For each query the blocks that it chooses.

    Args:
        averaged: a control: queries choose by the mean of so many, as published code does for a prompt. 0 for none.
    """
    length, size, window = query.shape[1], settings.block, settings.window
    apart = torch.arange(length)[:, None] - torch.arange(length)
    near = rotation.scores(query, key, apart)
    far = rotation.scores(query, key, torch.full_like(apart, window))
    if averaged:
        far = torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in far.split(averaged, 1)], 1)
    reach = window // size * size
    stand_for: dict[int, list[list[int]]] = {}
    found: list[list[int]] = []
    for m in range(length):
        candidates = []
        block = 0
        while settings.sinks + (block + 1) * size - 1 <= m - window:
            places = range(settings.sinks + block * size, settings.sinks + (block + 1) * size)
            if block not in stand_for:
                stand_for[block] = [
                    sorted(places, key=lambda n, h=h: -float(near[h, n + 1 : n + 1 + reach, n].sum()))[  # type: ignore[misc]
                        : settings.representatives
                    ]
                    for h in range(len(query))
                ]
            score = sum(float(far[h, m, n]) for h in range(len(query)) for n in stand_for[block][h])
            candidates.append((-score, block))
            block += 1
        found.append(sorted(block for _, block in sorted(candidates)[: settings.topk]))
    return found


def pattern_of(chosen: list[list[int]], settings: Settings) -> Pattern:
    """Who sees whom, and as how far away, when these blocks are chosen."""
    length, size = len(chosen), settings.block
    visible = torch.zeros(length, length, dtype=torch.bool)
    for m, blocks in enumerate(chosen):
        whole = max(m - settings.window - settings.sinks + 1, 0) // size
        for n in range(m + 1):
            near, sink = m - n < settings.window, n < settings.sinks
            block = (n - settings.sinks) // size
            visible[m, n] = near or sink or block >= whole or block in blocks
    return Pattern(visible[None], distances(length).clamp(max=settings.window))


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotation: Rotation, settings: Settings, **options: Any
) -> torch.Tensor:
    """The system's output [B, H, T, Dv] in float64."""
    averaged, scaling = options.pop("averaged", 0), options.pop("scaling")
    window = options.pop("own_window", None)
    rows = []
    for q, k, v in zip(query.double(), key.double(), value.double(), strict=True):
        pattern = _windowed(len(q[0]), window, settings.window)
        if window is None:
            pattern = pattern_of(choices(q.detach(), k.detach(), rotation, settings, averaged), settings)
        rows.append(
            dense_attention(
                q[None],
                k[None],
                v[None],
                rotation.table.double(),
                pattern,
                scaling=scaling,
                interleaved=rotation.interleaved,
                temperature=rotation.temperature,
                **options,
            )
        )
    return torch.cat(rows)


def _windowed(length: int, own: int | None, window: int) -> Pattern:
    """A layer with a window of its own: all that it shows."""
    apart = distances(length)
    seen = causal(length) if own is None else causal(length) & (apart < own)
    return Pattern(seen, apart.clamp(max=window))


def written_out_model(source: Path, settings: Settings, *, interleaved: bool, averaged: int = 0) -> Any:
    """The stock model in `source` in float64, each layer attending by `written_out` of its own queries and keys."""
    plain = Pattern(causal(1), distances(1))
    model = battery.dense_model(source, plain, interleaved=interleaved)
    rotary = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    rotation = Rotation(rotary.inv_freq.double(), float(rotary.attention_scaling), interleaved)

    def attention(_module: Any, query: Any, key: Any, value: Any, *_args: Any, scaling: float, **kwargs: Any) -> Any:
        given = {"softcap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux"), "averaged": averaged}
        own = kwargs.get("sliding_window")
        output = written_out(query, key, value, rotation, settings, scaling=scaling, own_window=own, **given)
        return output.transpose(1, 2), None

    for module in model.modules():
        object.__setattr__(module, "battery_dense", attention)
    return model


def moved(settings: Settings, **changes: int) -> Settings:
    """Other settings: what would be wrong."""
    return replace(settings, **changes)
