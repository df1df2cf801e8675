"""What is trained, as data: by role, not by the names that one architecture gives its modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ctxforge.errors import UsageError

Role = Literal["attention", "mlp", "norm", "embedding", "positions", "head"]
"""attention and mlp: projections; norm: every normalisation, those of queries and keys included; embedding: the tokens'
input table; positions: tables of learned positions; head: the output projection (the embedding itself where tied)."""

ROLES: tuple[Role, ...] = get_args(Role)
_PROJECTIONS: tuple[Role, ...] = ("attention", "mlp")


@dataclass(frozen=True)
class AdapterRecipe:
    """What a calibration trains.

    Args:
        kind: "lora" trains low-rank changes of projections and `whole` tensors; "full" every parameter of the text
            model, and then the other fields don't count.
        low_rank: the roles whose projections get a low-rank change: attention, mlp or both.
        whole: the roles that are trained as whole tensors, in float32.
        rank: r, the rank of the changes.
        alpha: the change is (alpha / r) B A, or (alpha / sqrt(r)) B A with `rslora`.
        rslora: see `alpha` (2312.03732 eq. 5).
        dropout: share of the inputs of A that are zeroed while training.
    """

    kind: Literal["lora", "full"] = "lora"
    low_rank: tuple[Role, ...] = ("attention",)
    whole: tuple[Role, ...] = ()
    rank: int = 32
    alpha: float = 32.0
    rslora: bool = False
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def checked(self) -> AdapterRecipe:
        """The recipe itself.

        Raises:
            UsageError: a role that there isn't, one trained in two ways, or a number out of range.
        """
        if self.kind not in ("lora", "full"):
            raise UsageError(f"there is no adapter kind {self.kind!r}", "choose lora or full")
        for role in (*self.low_rank, *self.whole):
            if role not in ROLES:
                raise UsageError(f"there is no role {role!r}", f"choose among {', '.join(ROLES)}")
        for role in self.low_rank:
            if role not in _PROJECTIONS:
                raise UsageError(f"{role} cannot have a low-rank change", "train it whole, or leave it out")
            if role in self.whole:
                raise UsageError(f"{role} would be trained both whole and low-rank", "choose one")
        if self.kind == "lora" and not (self.low_rank or self.whole):
            raise UsageError("the adapter trains nothing", "give it a role, such as attention")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= 4096:
            raise UsageError(f"a rank of {self.rank} is not usable", "give a whole number from 1 to 4096")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UsageError(f"an alpha of {self.alpha} is not usable", "give a number above 0")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"a dropout of {self.dropout} is not usable", "give a number from 0 to below 1")
        return self

    def document(self) -> dict[str, Any]:
        """The recipe as JSON data."""
        return {**asdict(self), "low_rank": list(self.low_rank), "whole": list(self.whole)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> AdapterRecipe:
        """The recipe that `document` wrote.

        Raises:
            UsageError: fields are missing, unknown or of the wrong kind.
        """
        try:
            roles = {"low_rank": tuple(document["low_rank"]), "whole": tuple(document["whole"])}
            return cls(**{**document, **roles}).checked()
        except (TypeError, KeyError) as error:
            raise UsageError(
                f"the adapter's recipe is malformed: {error}", "take an adapter that ctxforge wrote"
            ) from None


_NAMED: Mapping[str, AdapterRecipe] = {
    "lora": AdapterRecipe(),
    "rslora": AdapterRecipe(rslora=True),
    "lora+": AdapterRecipe(rank=8, alpha=16.0, whole=("norm", "embedding")),
    "full": AdapterRecipe(kind="full"),
}


def named_recipe(name: str, **changes: Any) -> AdapterRecipe:
    """A recipe by name, with fields changed.

    lora: LoRA on attention (2106.09685). rslora: the same with the rank-stabilised scale (2312.03732). lora+:
    LongLoRA's, which trains norms and embeddings too, with its r = 8 and alpha = 16 (2309.12307;
    dvlab-research/LongLoRA:fine-tune.py `trainable_params`). full: everything.

    Raises:
        UsageError: no such name, or a field that won't do.
    """
    if name not in _NAMED:
        raise UsageError(f"there is no adapter {name!r}", f"choose among {', '.join(_NAMED)}")
    try:
        return replace(_NAMED[name], **changes).checked()
    except TypeError as error:
        raise UsageError(f"the adapter cannot be changed so: {error}", "see AdapterRecipe for its fields") from None
