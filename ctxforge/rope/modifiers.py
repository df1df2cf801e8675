"""Modifiers: steps after a method, on the final divisors. `yarn+resonance` applies one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.spectrum import plain_frequencies
from ctxforge.rope.types import UNROTATED


@dataclass(frozen=True)
class Modifier:
    """One row of the table of modifiers.

    Attributes:
        name: what the user types after a `+`.
        title: the field's name for it.
        reference: arXiv number with equation, or repository:path.
        summary: what it does to the frequencies, one sentence.
        evidence: published results, one sentence each.
        costs: what is known to get worse, one sentence each.
        apply: (divisors, rotated_dims, base) -> divisors, relative to the plain frequencies of `base`.
    """

    name: str
    title: str
    reference: str
    summary: str
    evidence: tuple[str, ...]
    costs: tuple[str, ...]
    apply: Callable[[Sequence[float], int, float], tuple[float, ...]]


def resonance(divisors: Sequence[float], rotated_dims: int, base: float) -> tuple[float, ...]:
    """W_i = 2 pi lambda_i / f_i rounded to whole tokens (2403.00071, algorithm 1), ties to even as torch.round.

    Pairs that don't rotate stay so; a wavelength is at least 1 token.
    """
    rounded = []
    for divisor, frequency in zip(divisors, plain_frequencies(rotated_dims, base), strict=True):
        wavelength = 2 * math.pi * divisor / frequency
        still = divisor >= UNROTATED
        rounded.append(divisor if still else max(1, round(wavelength)) * frequency / (2 * math.pi))
    return tuple(rounded)


MODIFIERS: dict[str, Modifier] = {
    "resonance": Modifier(
        name="resonance",
        title="Resonance RoPE",
        reference="2403.00071 algorithm 1; sheryc/resonance_rope:llama_finetuning/scaled_rope",
        summary="Rounds each pair's wavelength to whole tokens, so that fast pairs repeat exactly the phases they were"
        " trained on.",
        evidence=(
            "on top of YaRN for Llama-2-7B at 32k and 13B at 16k, 50 to 400 steps: better at language modeling and at"
            " long-text tasks (2403.00071, abstract)",
        ),
        costs=(
            "the fastest pairs move most: wavelength 6.28 becomes 6, another phase by 4.7 % a token, which untuned"
            " weights were not trained on",
            "no rope type but lists expresses it: llama.cpp loses it for most architectures",
        ),
        apply=resonance,
    )
}


def find_modifiers(names: Sequence[str]) -> tuple[Modifier, ...]:
    """The modifiers called `names`, in that order.

    Raises:
        UsageError: an unknown one, or the same twice.
    """
    for i, name in enumerate(names):
        if name not in MODIFIERS:
            import difflib

            near = difflib.get_close_matches(name, MODIFIERS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"unknown modifier {name!r}", f"{hint}modifiers: {', '.join(MODIFIERS)}")
        if name in names[:i]:
            raise UsageError(f"modifier {name!r} is given twice", "name each modifier once")
    return tuple(MODIFIERS[name] for name in names)
