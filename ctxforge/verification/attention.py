"""Which attention implementation a measurement runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.verification.expanded_heads import expanded_heads, needs_expanding


@contextmanager
def attention_for(model: Any, name: str, length: int) -> Iterator[str]:
    """Inside, `model` attends as asked; the name of what it attends with, for the report.

    Args:
        model: a causal LM of transformers.
        name: "auto" for the fastest that computes the same here, or an implementation of transformers by its name,
            such as "eager", "sdpa", "flash_attention_2" or "kernels-community/flash-attn3".
        length: of the longest pass, in tokens.

    Raises:
        UsageError: the model or this machine does not have it.
    """
    before = str(getattr(model.config, "_attn_implementation", "unknown"))
    if name == "auto" and needs_expanding(model):
        with expanded_heads(model) as chosen:
            yield chosen
        return
    del length
    if name in ("auto", before):
        yield before
        return
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError, RuntimeError, OSError, KeyError) as error:
        raise UsageError(f"attention {name[:60]!r} cannot be used here: {error}", "Leave --attention out.") from error
    try:
        yield str(model.config._attn_implementation)
    finally:
        model.set_attn_implementation(before)
