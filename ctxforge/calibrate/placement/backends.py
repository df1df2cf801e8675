"""How each attention implementation of transformers is told who sees whom."""

from __future__ import annotations

from enum import Enum
from typing import Any

from ctxforge.errors import UnsupportedError, UsageError


class Backend(Enum):
    """The form in which an attention implementation takes what a plain causal mask does not say.

    EAGER adds a float mask to the scores (a bool one would add 0 and 1 without a word); SDPA takes a bool mask, and
    runs its fast kernel without one; FLEX takes a BlockMask; FLASH takes the ends of the texts, `cu_seq_lens`; RESTARTS
    are the implementations of ctxforge's own attention systems, which take the restarts of `position_ids`.
    """

    EAGER = "eager"
    SDPA = "sdpa"
    FLEX = "flex_attention"
    FLASH = "flash"
    RESTARTS = "ctxforge"

    @property
    def explicit(self) -> bool:
        """Whether it takes any mask [B, 1, T, T]."""
        return self in (Backend.EAGER, Backend.SDPA, Backend.FLEX)


def backend_of(model: Any, asked: str | None = None) -> Backend:
    """The backend that a loaded model attends with now.

    Args:
        model: a model of transformers, or one wrapped by peft.
        asked: the implementation that the caller means to use, by transformers' name; checked against the model's.

    Raises:
        UsageError: the model attends with another than `asked`.
        UnsupportedError: an implementation of which ctxforge does not know how it takes masks.
    """
    name = str(getattr(model.config.get_text_config(), "_attn_implementation", None))
    if asked is not None and asked != name:
        raise UsageError(
            f"inputs for {asked[:60]!r}, but the model attends with {name[:60]!r}",
            "call model.set_attn_implementation first, or leave the backend out",
        )
    for known in (Backend.EAGER, Backend.SDPA, Backend.FLEX):
        if name == known.value:
            return known
    if name.startswith("ctxforge_"):
        return Backend.RESTARTS
    # flash_attention_2, _3, _4, and the Hub's kernels-community/flash-attn2, vllm-flash-attn3 and so on.
    if "flash" in name.lower():
        return Backend.FLASH
    raise UnsupportedError(
        f"it is not known how the attention {name[:60]!r} takes masks", "use sdpa, eager or flash_attention_2"
    )
