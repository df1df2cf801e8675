"""Arithmetic on a rotary table's frequencies, in plain Python floats (float64)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def plain_frequencies(rotated_dims: int, base: float) -> tuple[float, ...]:
    """f_i = base^(-2i/d), radians per token, i = 0 ... d/2 - 1 (2104.09864, eq. 15)."""
    return tuple(base ** (-2 * i / rotated_dims) for i in range(rotated_dims // 2))


@dataclass(frozen=True)
class Spectrum:
    """The frequencies that the weights were trained with: plain ones divided by the scaling in force.

    Methods see only this, the trained length L0 and the scale s.
    """

    rotated_dims: int
    base: float
    in_force: tuple[float, ...]

    @property
    def pairs(self) -> int:
        """d/2."""
        return self.rotated_dims // 2

    @property
    def is_plain(self) -> bool:
        """True when no scaling is in force."""
        return all(divisor == 1.0 for divisor in self.in_force)

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Radians per token, pair by pair."""
        plain = plain_frequencies(self.rotated_dims, self.base)
        return tuple(f / divisor for f, divisor in zip(plain, self.in_force, strict=True))

    def rotations(self, length: int) -> tuple[float, ...]:
        """r_i = length * f_i / (2 pi): full turns that each pair completes within `length` tokens."""
        return tuple(length * f / (2 * math.pi) for f in self.frequencies)

    def plain_turns(self, pair: float, length: int) -> float:
        """Full turns within `length` tokens of a possibly fractional pair index, at the plain frequencies of the base.

        The inverse of the closed form of `pair_at_rotations`.
        """
        return length / (2 * math.pi) * math.exp(-2 * pair / self.rotated_dims * math.log(self.base))

    def pair_at_rotations(self, turns: float, length: int) -> float:
        """The fractional pair index at which a pair completes `turns` rotations within `length` tokens.

        For plain frequencies this is the closed form c(turns) = d ln(L / (2 pi turns)) / (2 ln b) of YaRN
        (2309.00071, App. A.2). With a scaling in force the frequencies are no longer geometric: the index is then
        interpolated linearly in the logarithm of the rotations, and continued with the plain slope outside the table.
        """
        slope = -2 * math.log(self.base) / self.rotated_dims
        if self.is_plain:
            return (math.log(2 * math.pi * turns) - math.log(length)) / slope
        wanted = math.log(turns)
        logs = [math.log(r) for r in self.rotations(length)]
        if wanted >= logs[0]:
            return (wanted - logs[0]) / slope
        for i in range(len(logs) - 1):
            if logs[i] >= wanted >= logs[i + 1] and logs[i] > logs[i + 1]:
                return i + (logs[i] - wanted) / (logs[i] - logs[i + 1])
        return len(logs) - 1 + (wanted - logs[-1]) / slope


def clip(value: float, low: float, high: float) -> float:
    """`value` limited to [low, high]."""
    return max(low, min(high, value))


def blend_frequencies(weights: Sequence[float], scale: float) -> tuple[float, ...]:
    """lambda_i with 1/lambda_i = g_i/s + (1 - g_i), for interpolation weights g_i in [0, 1]."""
    return tuple(1.0 / (g / scale + (1.0 - g)) for g in weights)
