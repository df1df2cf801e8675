"""Which attention implementation a measurement runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.verification.cpu_attention import cpu_attention, worth_it
from ctxforge.verification.expanded_heads import expanded_heads, needs_expanding


@contextmanager
def attention_for(model: Any, name: str, length: int, *, cacheless: bool = True) -> Iterator[str]:
    """Inside, `model` attends as asked; the name of what it attends with, for the report.

    Args:
        model: a causal LM of transformers.
        name: "auto" for the fastest that computes the same here, or an implementation of transformers by its name,
            such as "eager", "sdpa", "flash_attention_2" or "kernels-community/flash-attn3".
        length: of the longest pass, in tokens.
        cacheless: whether nothing inside keeps a KV cache, which the blocked attention for CPUs does not serve.

    Raises:
        UsageError: the model or this machine does not have it.
    """
    before = str(getattr(model.config, "_attn_implementation", "unknown"))
    if name == "auto" and needs_expanding(model):
        with expanded_heads(model) as chosen:
            yield chosen
        return
    if name == "auto" and cacheless and worth_it(model, length):
        with cpu_attention(model) as chosen:
            yield chosen
        return
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
