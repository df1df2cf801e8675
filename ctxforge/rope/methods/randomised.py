"""Randomised positions: a scheme for calibration, listed so that it explains itself; it plans nothing."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UnsupportedError
from ctxforge.rope.methods.base import Method, Request
from ctxforge.rope.types import Rotation


@dataclass(frozen=True)
class Parameters:
    """Randomised positions change no config: no parameters here."""


def compute(_parameters: Parameters, _request: Request) -> Rotation:
    """In training, token n stands at the sum of its first n steps, drawn from U(0, 2) and shrunk to fit the length.

    Source: 2308.10882, randomised positions; abacusai/Long-Context:python/models/interpolate.py `random_init_forward`.

    Raises:
        UnsupportedError: always; it is no conversion.
    """
    raise UnsupportedError(
        "randomised-positions is a position scheme for calibration: it changes no config",
        "convert with a method such as yarn or pi, and calibrate: ctxforge calibrate --recipe giraffe",
    )


METHOD = Method(
    name="randomised-positions",
    title="Randomised positions (calibration)",
    reference="2308.10882; abacusai/Long-Context:python/models/interpolate.py random_init_forward",
    summary="Trains on positions with random gaps instead of 0, 1, 2, ...; the checkpoint's RoPE stays.",
    evidence=("LLaMA-13B: good perplexity, weak retrieval at long lengths (2308.10882)",),
    costs=("positions are fractions: training needs a rotary table computed from float positions",),
    needs="calibration",
    needs_training="it is a way of training",
    aliases=("randomized-positions",),
    experimental=True,
    any_target=True,
    parameters=Parameters,
    compute=compute,
)
