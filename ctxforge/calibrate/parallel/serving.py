"""Which models processes can share a sequence of: by the config before anything is loaded, and by trying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ctxforge.calibrate.parallel.options import ParallelOptions
from ctxforge.errors import UnsupportedError, UsageError

_REMEDY = "give each process whole sequences (context 1), with tiled MLPs and offloading if memory is short"
# Of the mean over tokens. SmolLM2 in bfloat16 is off by 0.06 by rounding alone, and by 7e-6 in float32: 16-bit models
# show only what mixes tokens strongly, and for the rest their configs must do.
_TOLERANCE = {"torch.float64": 1e-6, "torch.float32": 1e-3, "torch.bfloat16": 2e-1, "torch.float16": 3e-2}
_PIECE = 4


def check_config(options: ParallelOptions, config: Any) -> None:
    """Refuse models that attend in other ways than plainly causal, or that turn tokens by the length of a batch.

    Args:
        options: what is asked for, with a context above 1.
        config: of a model of transformers.

    Raises:
        UnsupportedError: it names what stands in the way.
    """
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    for reason in _reasons(inner):
        raise UnsupportedError(f"processes can't share a sequence of this model: {reason}", _REMEDY)
    heads = getattr(inner, "num_attention_heads", None)
    if options.context_backend == "ulysses" and heads is not None and heads % options.context:
        raise UnsupportedError(
            f"ulysses gives each process some heads, and {heads} heads can't be divided by {options.context}",
            f"choose a context that divides {heads}, or the ring backend",
        )


def check_attention(model: Any) -> None:
    """Refuse a loaded model with an attention that isn't torch's own.

    Raises:
        UnsupportedError: eager, flash, S2-Attn, or one of ctxforge's attention systems.
    """
    name = str(getattr(model.config.get_text_config(), "_attn_implementation", None))
    if name != "sdpa":
        raise UnsupportedError(
            f"processes share a sequence with sdpa attention, and this model attends with {name[:60]}",
            "load the model with sdpa, without an attention system of its own, or choose context 1",
        )


def check_inputs(arguments: Mapping[str, Any], shared: Any) -> None:
    """Refuse arguments of a micro-batch that can't be cut.

    Args:
        arguments: for the model with its loss, tensors of whole rows among them.
        shared: the group.

    Raises:
        UnsupportedError: masks, ends of texts, or weights by a function.
        UsageError: rows whose length can't be divided.
    """
    import torch

    rows = arguments["input_ids"].shape
    for name, one in arguments.items():
        whole = isinstance(one, torch.Tensor) and one.shape[:2] == rows and one.dim() == 2
        if not whole and one is not None and one is not False:
            raise UnsupportedError(
                f"processes that share a sequence can't cut {name}: packed rows and weights by their losses need it "
                "whole",
                "give one document a row, and plain weights, or choose context 1",
            )
    if rows[1] % shared.multiple:
        raise UsageError(
            f"rows of {rows[1]} tokens can't be divided: their length must be a multiple of {shared.multiple}",
            "collate rows with multiple=length_multiple",
        )


def proved(shared: Any, prepared: Any, device: Any) -> None:
    """Hold the losses of a few tokens on a shared sequence to those of whole ones; every process calls it.

    Raises:
        UnsupportedError: they differ: the model mixes tokens outside attention, or attends in some way of its own.
    """
    import torch

    from ctxforge.calibrate.objectives.loss_model import next_tokens

    inner = prepared.inner
    rows = inner.model.get_input_embeddings().weight.shape[0]
    length = _PIECE * shared.multiple
    ids = torch.tensor([[(7 + 7919 * i) % rows for i in range(length)]], device=device)
    inputs = {
        "input_ids": ids,
        "position_ids": torch.arange(length, device=device)[None],
        "attention_mask": torch.ones_like(ids),
        "targets": next_tokens(ids),
    }
    training = inner.training
    inner.eval()
    try:
        with torch.no_grad():
            whole = prepared.model(**inputs, denominator=1.0).losses
            with shared.attending(inner):
                part = prepared.model(**{name: shared.cut(one) for name, one in inputs.items()}, denominator=1.0).losses
            off = float((shared.joined(part) - whole).abs().mean())
    finally:
        inner.train(training)
    fine = off <= _TOLERANCE.get(str(inner.model.dtype), 1e-3)
    if float(shared.total(torch.tensor(0.0 if fine else 1.0, device=device))):
        raise UnsupportedError(
            f"processes can't share a sequence of this model: its losses then differ by {off:.2g} nats a token", _REMEDY
        )


def _reasons(config: Any) -> Iterator[str]:
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if kinds:
        yield f"it has layers of kind {', '.join(kinds)}"
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if windowed and not getattr(config, "layer_types", None):
        yield f"its layers see {config.sliding_window} tokens"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        yield "its attention caps scores"
    for entry in _rotations(config):
        kind = entry.get("rope_type", entry.get("type"))
        if kind in ("dynamic", "longrope"):
            yield f"its rotation ({kind}) depends on the length of a sequence, of which each process sees a part"


def _rotations(config: Any) -> Iterator[dict[str, Any]]:
    """Every dict of RoPE settings in a config, nested ones too."""
    waiting: list[Any] = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            yield entry
            waiting.extend(entry.values())
