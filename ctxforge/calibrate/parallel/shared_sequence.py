"""One sequence on several processes: each has some of its tokens, and attention sees all before them.

"ring": keys and values are gathered over the group, a layer at a time, and each process computes its own queries. Of
2n equal pieces of the sequence process r has piece r and piece 2n - 1 - r, so that all have as much to do under a
causal mask (the scheme of torch's `context_parallel` with all-gather, which has no kernel for the CPU). "ulysses":
process r has piece r of n, and for attention trades tokens for heads (arXiv 2309.14509). Both are exact.

Positions travel with their tokens, so rotations need nothing. Only causal masks are served: whatever else a model does
across tokens is found by `proved`, which compares both ways on a few tokens.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ctxforge.calibrate.parallel.exchange import gather, heads_for_tokens, tokens_for_heads
from ctxforge.errors import UnsupportedError

# Arguments of transformers' attention functions that change what is seen or how it is weighed.
_FOREIGN = ("softcap", "sliding_window", "position_bias", "s_aux")
_NUMBERS = itertools.count()


class SharedSequence:
    """The group of processes that share a sequence.

    Args:
        group: of torch.distributed.
        way: "ring" or "ulysses".

    Attributes:
        number, count: of this process, and of all in the group.
        multiple: what a sequence's length must be a multiple of.
    """

    def __init__(self, group: Any, way: Literal["ring", "ulysses"]) -> None:
        self.group, self.way = group, way
        self.number, self.count = dist.get_rank(group), dist.get_world_size(group)
        self.multiple = 2 * self.count if way == "ring" else self.count
        self._name = f"shared_sequence_{way}_{next(_NUMBERS)}"

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """This process's tokens of [B, T, ...]."""
        if self.way == "ulysses":
            return whole.chunk(self.count, dim=1)[self.number].contiguous()
        pieces = whole.chunk(2 * self.count, dim=1)
        return torch.cat([pieces[self.number], pieces[-1 - self.number]], dim=1)

    def joined(self, part: torch.Tensor) -> torch.Tensor:
        """Every process's [B, T/n, ...] as [B, T, ...], in every process."""
        return self._ordered(gather(part, self.group), 1)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the group."""
        found = value.clone()
        dist.all_reduce(found, group=self.group)
        return found

    @contextlib.contextmanager
    def attending(self, model: Any) -> Iterator[None]:
        """While this is open, a model on part of a sequence attends to all of it; backward passes run inside too."""
        from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

        inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
        configs: list[Any] = list({id(module.config): module.config for module in inner}.values())
        before = [config._attn_implementation for config in configs]
        AttentionInterface.register(self._name, self._attend)
        AttentionMaskInterface.register(self._name, _no_mask)
        try:
            for config in configs:
                config._attn_implementation = self._name
            yield
        finally:
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation = implementation

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention as transformers' `AttentionInterface` wants it: query [B, H, T/n, D], key and value [B, K, T/n, D].

        Raises:
            UnsupportedError: a mask, or an attention that isn't plainly causal.
        """
        odd = [name for name in _FOREIGN if more.get(name) is not None]
        causal = more.get("is_causal")
        if attention_mask is not None or odd or not (getattr(module, "is_causal", True) if causal is None else causal):
            raise _unserved(f"its attention has {odd[0] if odd else 'a mask of its own'}")
        options = {"dropout_p": dropout, "scale": scaling}
        if self.way == "ulysses":
            found = self._by_heads(query, key, value, options)
        else:
            found = self._by_tokens(query, key, value, options)
        return found.transpose(1, 2).contiguous(), None

    def _by_heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        if key.shape[1] % self.count:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        query, key, value = (tokens_for_heads(part, self.group) for part in (query, key, value))
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True, **options)
        return heads_for_tokens(found, self.group)

    def _by_tokens(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        keys, values = (self._ordered(gather(part, self.group), 2) for part in (key, value))
        size = query.shape[2] // 2
        found = []
        places = (self.number, 2 * self.count - 1 - self.number)
        for piece, place in zip(query.chunk(2, dim=2), places, strict=True):
            seen = (place + 1) * size
            where = {"attn_mask": _last_rows(size, seen, query.device)} if place else {"is_causal": True}
            found.append(
                F.scaled_dot_product_attention(
                    piece, keys[:, :, :seen], values[:, :, :seen], enable_gqa=True, **where, **options
                )
            )
        return torch.cat(found, dim=2)

    def _ordered(self, parts: torch.Tensor, dim: int) -> torch.Tensor:
        """[n, ...] of all processes as one tensor whose tokens, along `dim` of a part, are in order."""
        if self.way == "ulysses":
            return torch.cat(list(parts), dim=dim)
        halves = [part.chunk(2, dim=dim) for part in parts]
        return torch.cat([first for first, _ in halves] + [last for _, last in reversed(halves)], dim=dim)


def _last_rows(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """The last rows of a causal mask: on GPUs a name for it that fast kernels know, elsewhere the mask."""
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right

        found: torch.Tensor = causal_lower_right(rows, columns)
        return found
    return torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)


def _no_mask(*_args: Any, **_named: Any) -> None:
    """The mask function of transformers' `AttentionMaskInterface`: attention here is causal by itself."""


def _unserved(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"processes can't share a sequence of this model: {reason}",
        "give each process whole sequences (context 1), with tiled MLPs and offloading if memory is short",
    )
