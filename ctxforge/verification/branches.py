"""Branch rows: many different endings of one context, in one forward.

The sequence is `[context | branch | branch | …]`. A branch `sees` the first so many tokens of the context and itself;
its positions continue from there. So it computes what a separate forward over `context[:sees] + branch` computes,
and the context is paid once for all of them. The attention is split to keep that cheap: context rows go through
causal attention of their own, branch rows attend with an explicit mask, a block of rows at a time.

The mask rule is the model's own. transformers hands the function that decides `may query q see key k` to whoever is
registered under the attention's name; it is evaluated here on *virtual* indices, where a branch's token j stands at
sees + j. Sliding windows and chunks therefore hold in branches without a line written for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ctxforge.errors import InternalError, UnsupportedError

# transformers gives names with "flash", "sdpa" or "/" in them a meaning of their own.
ATTENTION_NAME = "ctxforge_branches"
# Entries of a block's score matrix, all heads together: 256 MB in float32.
_BLOCK_ENTRIES = 1 << 26
# Rows whose mask is evaluated at once: a window's band is then little wider than the window.
_MASK_ROWS = 512

MaskFunction = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Branch:
    """An ending: its token ids, and how many tokens of the context come before it."""

    ids: tuple[int, ...]
    sees: int


@dataclass(frozen=True)
class Group:
    """Consecutive branches that see the same context: rows [start, stop) of the sequence.

    `owner` [rows] numbers the branch of each row and `virtual` [rows] is the row's position.
    """

    start: int
    stop: int
    sees: int
    owner: torch.Tensor
    virtual: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """The sequence `[context | branches]`: its ids, positions, each branch's first row, and the groups."""

    context: int
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    first_rows: tuple[int, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class MaskRule:
    """What transformers is given in place of a mask tensor, and hands on to the attention function."""

    allowed: MaskFunction
    causal: bool


_ACTIVE: ContextVar[Layout | None] = ContextVar("ctxforge_branch_layout", default=None)
# The masks of branch rows by rule, place and dtype: all layers with the same rule share them.
_Masks = dict[tuple[MaskRule, int, int, torch.dtype], torch.Tensor]
_MASKS: ContextVar[_Masks | None] = ContextVar("ctxforge_branch_masks", default=None)


def lay_out(context: Sequence[int], branches: Sequence[Branch], device: torch.device | str = "cpu") -> Layout:
    """Arrange `branches`, which must be in ascending order of `sees`, behind `context`."""
    ids, positions = list(context), list(range(len(context)))
    first_rows: list[int] = []
    groups: list[Group] = []
    for sees in dict.fromkeys(branch.sees for branch in branches):
        start = len(ids)
        owner: list[int] = []
        virtual: list[int] = []
        for number, branch in enumerate(branches):
            if branch.sees != sees:
                continue
            first_rows.append(len(ids))
            ids += branch.ids
            owner += [number] * len(branch.ids)
            virtual += range(sees, sees + len(branch.ids))
        positions += virtual
        groups.append(
            Group(start, len(ids), sees, torch.tensor(owner, device=device), torch.tensor(virtual, device=device))
        )
    return Layout(len(context), tuple(ids), tuple(positions), tuple(first_rows), tuple(groups))


@contextmanager
def branch_attention(model: Any, layout: Layout) -> Iterator[None]:
    """For the time of the block `model` attends as `layout` says; its own attention is put back afterwards.

    Raises:
        UnsupportedError: the model does not take its attention from transformers' registry.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, attend)
    AttentionMaskInterface.register(ATTENTION_NAME, _mask_rule)
    previous = model.config._attn_implementation
    token, masks = _ACTIVE.set(layout), _MASKS.set({})
    try:
        model.set_attn_implementation(ATTENTION_NAME)
        if model.config._attn_implementation != ATTENTION_NAME:
            raise UnsupportedError(
                f"{type(model).__name__} does not take an attention function.", "Verify without branch rows."
            )
        yield
    finally:
        _MASKS.reset(masks)
        _ACTIVE.reset(token)
        model.set_attn_implementation(previous)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: MaskRule | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of transformers' `AttentionInterface`: query [1, H, T, d], key and value [1, H_kv, T, d].

    Honours the mask rule, grouped heads, `softcap` (Gemma 2) and learned sinks `s_aux` [H] (gpt-oss). Returns the
    output [1, T, H, d_v] and no weights.
    """
    del module, dropout
    layout = _ACTIVE.get()
    if layout is None:
        raise InternalError("branch attention ran without a layout.", "Please report this.")
    if kwargs.get("position_bias") is not None or not isinstance(attention_mask, MaskRule):
        raise UnsupportedError("this model's attention has a bias or a mask of its own.", "Verify without branch rows.")
    core = _Core(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap, s_aux)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    _context_rows(core, query, key, value, attention_mask, layout.context, out)
    for group in layout.groups:
        rows = slice(group.start, group.stop)
        seen_key = torch.cat([key[:, :, : group.sees], key[:, :, rows]], dim=2)
        seen_value = torch.cat([value[:, :, : group.sees], value[:, :, rows]], dim=2)
        for block in _steps(group.stop - group.start, _MASK_ROWS):
            mask = _branch_mask(attention_mask, group, block, query.dtype if core.plain else torch.bool)
            found = core(query[:, :, rows][:, :, block], seen_key, seen_value, mask)
            out[:, rows][:, block] = found.transpose(1, 2)
    return out, None


@dataclass(frozen=True)
class _Core:
    """softmax(q kᵀ · scale, masked) v for a block of rows with a mask [rows, keys].

    The mask is boolean; where `plain`, one of the query's dtype that is added to the scores will do too.
    """

    scale: float
    softcap: float | None
    sinks: torch.Tensor | None

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads, rows = query.shape[1:3]
        out = [self._block(query[:, :, block], key, value, mask[block]) for block in _blocks(rows, heads, key.shape[2])]
        return out[0] if len(out) == 1 else torch.cat(out, dim=2)

    def _block(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        _, heads, rows, width = query.shape
        shared = key.shape[1]
        each = heads // shared
        if self.plain:
            # Query heads that share a key head become a batch: no copy of the keys or of the mask, and no kernel that
            # must know of shared heads.
            batch = query.reshape(shared, each, rows, width).transpose(0, 1)
            keys, values = key.expand(each, -1, -1, -1), value.expand(each, -1, -1, -1)
            out = F.scaled_dot_product_attention(batch, keys, values, attn_mask=mask, scale=self.scale).transpose(0, 1)
        else:
            packed = query.reshape(1, shared, each * rows, width)
            out = self._explicit(packed, key, value, mask.repeat(each, 1), rows)
        return out.reshape(1, heads, rows, value.shape[-1])

    def _explicit(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, rows: int
    ) -> torch.Tensor:
        scores = (query @ key.transpose(-1, -2)).float() * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.masked_fill(~mask, float("-inf"))
        if self.sinks is not None:
            # A sink is one more key with a learned score and no value.
            sink = self.sinks.float().reshape(1, key.shape[1], -1, 1).repeat_interleave(rows, dim=2)
            scores = torch.cat([scores, sink], dim=-1)
        weights = scores.softmax(-1)[..., : key.shape[2]]
        return weights.to(value.dtype) @ value


def _branch_mask(rule: MaskRule, group: Group, block: slice, dtype: torch.dtype) -> torch.Tensor:
    """What rows `block` of a group see of `[its context | the group]`: [rows, keys], boolean or to be added."""
    kept = _MASKS.get()
    place = (rule, group.start, block.start, dtype)
    if kept is not None and place in kept:
        return kept[place]
    before = torch.arange(group.sees, device=group.owner.device)
    owner = torch.cat([torch.full_like(before, -1), group.owner])
    mask = _evaluate(rule, group.virtual[block], torch.cat([before, group.virtual]))
    mask = mask & ((owner == -1) | (owner == group.owner[block, None]))
    if dtype != torch.bool:
        # torch would convert a boolean mask in every layer anew.
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    if kept is not None and sum(m.numel() for m in kept.values()) + mask.numel() <= _BLOCK_ENTRIES:
        kept[place] = mask
    return mask


def _context_rows(
    core: _Core,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: MaskRule,
    context: int,
    out: torch.Tensor,
) -> None:
    """Write the rows of the context into `out` [1, T, H, d_v]."""
    query, key, value = query[:, :, :context], key[:, :, :context], value[:, :, :context]
    if rule.causal and core.plain:
        shared = key.shape[1] != query.shape[1]
        if shared and query.is_cuda and query.dtype == torch.float32:
            # No kernel without an [L, L] matrix takes both, see `expanded_heads`.
            each, shared = query.shape[1] // key.shape[1], False
            key, value = key.repeat_interleave(each, dim=1), value.repeat_interleave(each, dim=1)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=core.scale, enable_gqa=shared)
        out[:, :context] = found.transpose(1, 2)
        return
    at = torch.arange(context, device=query.device)
    for block in _steps(context, _MASK_ROWS):
        mask = _evaluate(rule, at[block], at[: block.stop])
        # A window sees a band: the keys before it need not be multiplied.
        low = int(mask.any(0).to(torch.uint8).argmax())
        keys = slice(low, block.stop)
        out[:, block] = core(query[:, :, block], key[:, :, keys], value[:, :, keys], mask[:, low:]).transpose(1, 2)


def _blocks(rows: int, heads: int, keys: int) -> Iterator[slice]:
    """Blocks of rows whose scores stay within `_BLOCK_ENTRIES`."""
    return _steps(rows, max(1, _BLOCK_ENTRIES // (heads * keys)))


def _steps(rows: int, step: int) -> Iterator[slice]:
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _evaluate(rule: MaskRule, query_at: torch.Tensor, key_at: torch.Tensor) -> torch.Tensor:
    """The rule on virtual indices: boolean [queries, keys]."""
    zero = query_at.new_zeros(1, 1, 1, 1)
    mask = rule.allowed(zero, zero, query_at[None, None, :, None], key_at[None, None, None, :])
    return mask.expand(1, 1, query_at.numel(), key_at.numel())[0, 0]


def _mask_rule(
    mask_function: MaskFunction | None = None,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    **_kwargs: Any,
) -> MaskRule:
    """The mask function of transformers' `AttentionMaskInterface`: keeps the rule and builds nothing."""
    from transformers.masking_utils import causal_mask_function

    if mask_function is None or use_vmap or (attention_mask is not None and not bool(attention_mask.all())):
        raise UnsupportedError("this model's mask is not a rule on indices.", "Verify without branch rows.")
    return MaskRule(mask_function, mask_function is causal_mask_function)
