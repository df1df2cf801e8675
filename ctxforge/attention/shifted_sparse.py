"""S2-Attn, LongLoRA's shifted sparse attention: cheap attention for training a model that attends in full afterwards.

Tokens are cut into groups of g; half of the heads have their groups shifted by half a group. The first and the last
group of the shifted heads are half ones: nothing is rolled round the end, so no token sees a later one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ctxforge.attention.reference import Pattern, causal, distances
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch

_NUMBERS = itertools.count()


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """The group g in tokens: a quarter of the target length unless given, as LongLoRA trains.

    Raises:
        UsageError: a group of less than two tokens, or longer than the target length.
    """
    group = int(given.get("group", max(2, situation.target_length // 4)))  # type: ignore[arg-type]
    if not 2 <= group <= situation.target_length:
        raise UsageError(
            f"s2-attn: group={group} is not 2 to {situation.target_length} tokens",
            "give about a quarter of the training length",
        )
    return {"group": group}


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """Visible are keys j <= i of the same group, (i + s) // g = (j + s) // g; s = g // 2 from head H // 2 on or 0."""
    import torch

    group = int(parameters["group"])
    shift = torch.where(torch.arange(heads) < heads // 2, 0, group // 2)
    groups = (torch.arange(length)[None, :] + shift[:, None]) // group
    return Pattern(causal(length) & (groups[:, :, None] == groups[:, None, :]), distances(length))


@contextmanager
def shifted_sparse_attention(model: Any, group: int) -> Iterator[None]:
    """While this is open, `model` attends in shifted sparse groups whenever it is in training mode.

    In evaluation mode it attends in full. Positions are those that the model rotates with. Padded and packed batches
    are right: no token sees padding before its text, or another text. A last group may be shorter. With activation
    checkpointing the backward pass must run inside too, since it calls attention again.

    Args:
        model: a transformers model, or a module that holds one (a PEFT model, for instance).
        group: g, in tokens.

    Raises:
        UsageError: a group of less than two tokens.
        UnsupportedError: no model of transformers, or one whose attention can't be replaced: an architecture outside
            the attention interface, one with windows or other kinds of layers, one with an attachment, one head.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    if group < 2:
        raise UsageError(f"s2-attn: group={group} is less than two tokens", "give a quarter of the training length")
    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not inner:
        raise UnsupportedError(f"{type(model).__name__} holds no model of transformers", "give one")
    for module in inner:
        _refuse(module)
    # Outer ones first: setting one sets those inside it.
    configs = list({id(module.config): module.config for module in inner}.values())
    before = [config._attn_implementation for config in configs]
    name = f"ctxforge_shifted_sparse_{next(_NUMBERS)}"
    AttentionInterface.register(name, _attention(inner[0], group))
    AttentionMaskInterface.register(name, _mask(inner[0]))
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(name)


def grouped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: int,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Shifted sparse attention by groups, [B, H, T, Dv]; costs T g scores a head.

    Args:
        query, key, value: [B, H, T, D], [B, K, T, D], [B, K, T, Dv], rotated.
        group: g, in tokens.
        scaling: factor on q.k; 1 / sqrt(D) unless given.
        dropout: of the attention weights.
        documents: [B, T], which text a token belongs to, -1 for padding; None for one text a row.
    """
    import torch

    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    half = query.shape[1] // 2
    parts = []
    for heads, first in ((slice(0, half), 0), (slice(half, None), group - group // 2)):
        states = [part[:, heads] for part in (query, key, value)]
        cut = [
            _spans(states, start, stop, size, scaling, dropout, documents)
            for start, stop, size in _cuts(query.shape[2], first, group)
        ]
        parts.append(torch.cat(cut, dim=2))
    return torch.cat(parts, dim=1)


def _cuts(length: int, first: int, group: int) -> Iterator[tuple[int, int, int]]:
    """Start, stop and group size of: the shorter first group, the whole groups together, the shorter last one."""
    first = min(first, length)
    whole = first + (length - first) // group * group
    for start, stop, size in ((0, first, first), (first, whole, group), (whole, length, length - whole)):
        if stop > start:
            yield start, stop, size


def _spans(
    states: list[torch.Tensor],
    start: int,
    stop: int,
    size: int,
    scaling: float | None,
    dropout: float,
    documents: torch.Tensor | None,
) -> torch.Tensor:
    """Attention within each group of `size` tokens from `start` to `stop`, [B, h, stop - start, Dv]."""
    import torch

    rows, heads = states[0].shape[:2]
    # [B, h, n g, D] -> [B n, h, g, D]: groups become rows
    query, key, value = (
        part[:, :, start:stop].reshape(rows, heads, -1, size, part.shape[3]).transpose(1, 2).flatten(0, 1)
        for part in states
    )
    mask = None
    if documents is not None:
        text = documents[:, start:stop].reshape(-1, size)
        same = (text[:, :, None] == text[:, None, :]) & (text >= 0)[:, :, None]
        at = torch.arange(size, device=text.device)
        mask = ((same & (at[:, None] >= at[None, :])) | (at[:, None] == at[None, :]))[:, None]
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )
    return output.reshape(rows, -1, *output.shape[1:]).transpose(1, 2).reshape(rows, heads, stop - start, -1)


def _refuse(model: Any) -> None:
    config, name = model.config, type(model).__name__
    if hasattr(config, "ctxforge"):
        raise UnsupportedError(
            f"{name} has attention code of its own (ctxforge attachments)", "train the checkpoint it was made from"
        )
    if not model._supports_attention_backend:
        raise UnsupportedError(
            f"{name} does not take its attention from transformers' interface", "train it with full attention"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    windowed = getattr(config, "sliding_window", None) is not None and not kinds
    if windowed or kinds - {"full_attention"} or getattr(config, "attention_chunk_size", None) is not None:
        raise UnsupportedError(
            f"{name} has layers that do not attend in full, which s2-attn would widen", "train it as it is"
        )
    if getattr(config, "num_attention_heads", 2) < 2:
        raise UnsupportedError(f"{name} has one head, and s2-attn shifts half of them", "train with full attention")


def _attention(model: Any, group: int) -> Callable[..., Any]:
    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if not model.training:
            whole: tuple[torch.Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
            )
            return whole
        if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
            raise UnsupportedError("s2-attn is causal, and this layer sees later tokens", "train with full attention")
        for unserved in ("softcap", "s_aux", "sliding_window"):
            if kwargs.get(unserved) is not None:
                raise UnsupportedError(f"s2-attn does not serve {unserved}", "train this model with full attention")
        if query.shape[2] != key.shape[2]:
            raise UnsupportedError("s2-attn trains on whole texts, not with a cache", "pass use_cache=False")
        if attention_mask is not None and attention_mask.ndim != 2:
            raise UnsupportedError(
                "s2-attn reads an attention_mask of [rows, tokens] only", "pass the padding mask, or none"
            )
        output = grouped_attention(query, key, value, group, scaling=scaling, dropout=dropout, documents=attention_mask)
        return output.transpose(1, 2).contiguous(), None

    return attend


def _mask(model: Any) -> Callable[..., Any]:
    """Full attention's mask in evaluation; in training which text each token belongs to, [B, T], or None for one."""

    def mask(
        batch_size: int,
        q_length: int,
        kv_length: int,
        mask_function: Callable[..., Any],
        attention_mask: torch.Tensor | None = None,
        device: Any = "cpu",
        **kwargs: Any,
    ) -> torch.Tensor | None:
        import torch
        from transformers.masking_utils import sdpa_mask

        if not model.training:
            full: torch.Tensor | None = sdpa_mask(
                batch_size=batch_size,
                q_length=q_length,
                kv_length=kv_length,
                mask_function=mask_function,
                attention_mask=attention_mask,
                device=device,
                **kwargs,
            )
            return full
        if q_length != kv_length:
            raise UnsupportedError("s2-attn trains on whole texts, not with a cache", "pass use_cache=False")
        if kwargs.get("use_vmap"):
            raise UnsupportedError("s2-attn does not serve this model's own mask", "train it with full attention")
        row = torch.arange(batch_size, device=device)[:, None]
        later = torch.arange(1, q_length, device=device)[None, :]
        # Packed texts: a new one begins where a token does not see the one before.
        joined = mask_function(row, torch.zeros_like(row), later, later - 1).expand(batch_size, -1)
        text = torch.nn.functional.pad((~joined).long().cumsum(dim=1), (1, 0))
        if attention_mask is not None:
            kept = attention_mask.bool()
            # Padding after a row's text is later than all of it, and needs no hiding.
            if bool((kept[:, 1:] & ~kept[:, :-1]).any()) or bool((text != 0).any()):
                return text.masked_fill(~kept, -1)
        return text if bool((text != 0).any()) else None

    return mask


ATTACHMENTS = (
    Attachment(
        name="s2-attn",
        title="Shifted sparse attention (S2-Attn) of LongLoRA",
        reference="2309.12307, section 3.2; JIA-Lab-research/LongLoRA:llama_attn_replace.py (Apache-2.0)",
        summary="Training attends within groups of g tokens, half of the heads shifted by g / 2; use attends in full.",
        can=(
            "A training step's attention costs T g instead of T^2 / 2 scores a head.",
            "The trained checkpoint is plain: every engine runs it.",
        ),
        cannot=(
            "It changes nothing about a model that is used: there is nothing to attach to a checkpoint.",
            "Nothing is gained over full attention where that fits: it only makes training cheaper.",
        ),
        needs="training",
        cost="in training O(T g); in use that of full attention",
        engines="every engine: the checkpoint is plain",
        parameters=(Parameter("group", "int", None, "tokens of a group, g; a quarter of the target length"),),
        resolve=resolve,
        pattern=pattern,
        exported=False,
    ),
)
