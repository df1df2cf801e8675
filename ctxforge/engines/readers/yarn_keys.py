"""Which keys of a yarn dict a reader heeds, as data: readers agree on the frequencies and part over the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctxforge.engines.formulas import yarn, yarn_factor, yarn_mscale
from ctxforge.engines.types import Rotary, Spec
from ctxforge.rope import fields


@dataclass(frozen=True)
class YarnKeys:
    """A reader's yarn.

    Attributes:
        attention_factor: it heeds `attention_factor`.
        truncate: it heeds `truncate`; otherwise the ramp's ends are always rounded.
        mscale: `pair`: the ratio where both are given and not 0, as transformers does; `both`: the ratio where both
            are given; `each`: the ratio with 1 and 0 for absent ones; `none`: ignored.
        attn_factor: it multiplies with a key `attn_factor`.
        betas: it heeds `beta_fast` and `beta_slow`.
        ratio: its factor is max_position_embeddings / original, whatever the dict says.
    """

    attention_factor: bool = False
    truncate: bool = False
    mscale: Literal["pair", "both", "each", "none"] = "none"
    attn_factor: bool = False
    betas: bool = True
    ratio: bool = False

    def table(self, spec: Spec) -> Rotary:
        """The table that this reader computes.

        Raises:
            CheckpointError: a number is missing or malformed.
        """
        factor = spec.longest / spec.original if self.ratio else yarn_factor(spec)
        truncate = fields.flag(spec.values, "truncate", True) if self.truncate else True
        return yarn(spec, self._temperature(spec, factor), truncate=truncate, factor=factor, betas=self.betas)

    def remarks(self, spec: Spec) -> tuple[str, ...]:
        """The keys of the dict that this reader passes over."""
        values = spec.values
        found = []
        if values.get("attention_factor") is not None and not self.attention_factor:
            found.append("attention_factor ignored")
        if values.get("truncate") is False and not self.truncate:
            found.append("truncate=false ignored, the ramp is rounded")
        if self.mscale == "none" and values.get("mscale") and values.get("mscale_all_dim"):
            found.append("mscale and mscale_all_dim ignored")
        if not self.betas and any(values.get(key) not in (None, default) for key, default in _DEFAULT_BETAS):
            found.append("beta_fast and beta_slow ignored: always 32 and 1")
        return tuple(found)

    def _temperature(self, spec: Spec, factor: float) -> float:
        values = spec.values
        if self.attention_factor and values.get("attention_factor") is not None:
            return fields.real(values, "attention_factor", None)
        extra = fields.real(values, "attn_factor", 1.0) if self.attn_factor else 1.0
        numerator, denominator = values.get("mscale"), values.get("mscale_all_dim")
        given = {
            "pair": bool(numerator) and bool(denominator),
            "both": numerator is not None and denominator is not None,
            "each": True,
            "none": False,
        }[self.mscale]
        if not given:
            return yarn_mscale(factor) * extra
        above = fields.real(values, "mscale", 1.0, low=-1.0)
        below = fields.real(values, "mscale_all_dim", 0.0, low=-1.0)
        return yarn_mscale(factor, above) / yarn_mscale(factor, below) * extra


_DEFAULT_BETAS = (("beta_fast", 32), ("beta_slow", 1))
