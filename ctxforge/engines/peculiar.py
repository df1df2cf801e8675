"""What an architecture does beside rotating with its tables: there, equal tables don't make an equal model."""

from __future__ import annotations

from ctxforge.engines.types import Context

_LABELS = ("full_attention", "sliding_attention")


def peculiarity(context: Context) -> str | None:
    """Why equal tables would not tell whether an engine computes this model; None when they do."""
    architecture = context.architecture
    assert architecture is not None
    if architecture.scales_softmax or "qk_rope_head_dim" in context.inner:
        return "latent attention (MLA) scales the softmax by the rope dict too"
    if architecture.query_temperature is not None:
        return f"the rope dict also scales queries by position ({architecture.query_temperature})"
    if architecture.indexer:
        return "a sparse-attention indexer rotates with the same table"
    if architecture.mscale_keys:
        return "the class reads the temperature from short_mscale and long_mscale, as no generic reader does"
    if architecture.layer_bases_key is not None or any(table.label not in _LABELS for table in architecture.tables):
        return "its tables differ by layer in a way of its own"
    if architecture.rotates_tail or architecture.direction != 1 or architecture.rotates_values:
        return "it rotates in a way of its own"
    return None
