"""Explicit masks: who sees whom, as the tensors that each attention implementation takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ctxforge.errors import ResourceError

if TYPE_CHECKING:
    import torch

_BLOCK = 1024


def visible(documents: torch.Tensor, positions: torch.Tensor, window: int | None) -> torch.Tensor:
    """Who sees whom, bool [B, 1, T, T]: true where query row m sees key column n.

    n <= m, of the same document, and less than `window` positions away. Padding is a document of its own, so that no
    query sees nothing. Built in blocks of queries: beside the result only a few such blocks are held.

    Args:
        documents, positions: [B, T].
        window: W, None for none.
    """
    import torch

    rows, length = documents.shape
    found = torch.empty(rows, 1, length, length, dtype=torch.bool, device=documents.device)
    keys = torch.arange(length, device=documents.device)
    for start in range(0, length, _BLOCK):
        queries = slice(start, min(start + _BLOCK, length))
        block = found[:, 0, queries]
        torch.eq(documents[:, queries, None], documents[:, None, :], out=block)
        block &= keys[None, None, :] <= keys[None, queries, None]
        if window is not None:
            block &= positions[:, None, :] > positions[:, queries, None] - window
    return found


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as eager attention adds it to scores: 0 where visible, the lowest number of `dtype` elsewhere."""
    import torch

    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), hidden)


def block_mask(documents: torch.Tensor, positions: torch.Tensor, window: int | None) -> Any:
    """The rule of `visible` as a BlockMask of FlexAttention, whose memory does not grow with T squared entries."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = documents.shape
    rule = _rule(documents, positions, window)
    return create_block_mask(rule, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=documents.device)


def check_size(rows: int, length: int, kinds: int, entry: int, limit: int) -> None:
    """Refuse masks that are too large.

    Args:
        rows, length: B and T.
        kinds: masks, one a kind of layer.
        entry: bytes of an entry.
        limit: bytes that all masks together may take.

    Raises:
        ResourceError: they take more.
    """
    needed = rows * length * length * kinds * entry
    if needed > limit:
        raise ResourceError(
            f"explicit masks for {rows} rows of {length} tokens take {needed / 2**30:.1f} GiB, "
            f"more than the {limit / 2**30:.1f} GiB allowed",
            "use flash_attention_2, one document a row, fewer rows a batch or shorter rows; or raise mask_limit",
        )


def _rule(documents: torch.Tensor, positions: torch.Tensor, window: int | None) -> Callable[..., torch.Tensor]:
    def rule(row: Any, _head: Any, query: Any, key: Any) -> torch.Tensor:
        seen: torch.Tensor = (key <= query) & (documents[row, query] == documents[row, key])
        if window is not None:
            seen = seen & (positions[row, key] > positions[row, query] - window)
        return seen

    return rule
