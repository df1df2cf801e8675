"""Attention of many queries to the blocks that each chose, without computing what was not chosen.

Queries that chose the same block are put together, a few at a time, and attend to it in one batched call of a kernel;
each query's outputs are then weighted by the blocks' shares, exp(L_b) / sum exp(L_c), L the log-sum-exp of its scores
in a block. What is computed is t * topk blocks, whichever they are.

Shapes as in ctxforge_block_attention.
"""

from __future__ import annotations

import torch

from .ctxforge_attention import Call
from .ctxforge_block_cache import Keys
from .ctxforge_block_memory import BlockGeometry, Places
from .ctxforge_score_sets import ScoreSet, _part

# Fewest and most queries of a block that are put together.
_FEWEST, _MOST = 16, 128

Part = tuple[torch.Tensor, torch.Tensor]


def attend_chosen(
    call: Call, query: torch.Tensor, chosen: torch.Tensor, keys: Keys, places: Places, geometry: BlockGeometry
) -> Part | None:
    """Output [B, H, t, Dv] and log-sum-exp [B, H, t] over the chosen blocks; None where nothing is chosen.

    A query that chose nothing gets a log-sum-exp so low that its share of anything is 0.

    Args:
        call: for its scaling and values' dtype; without soft cap, dropout and gradients.
        query: as rotated for these keys, [B, H, t, D].
        chosen: bool [B, t, N].
        keys, places, geometry: where keys are.
    """
    rows, heads, count, dims = query.shape
    grouped = query.to(call.value.dtype).view(rows, call.key.shape[1], -1, count, dims).transpose(2, 3).contiguous()
    outputs, totals = [], []
    for row in range(rows):
        bundles = _Bundles(chosen[row])
        if bundles.pairs == 0:
            lowest = torch.finfo(torch.float32).min
            outputs.append(call.value.new_zeros(heads, count, call.value.shape[3]))
            totals.append(query.new_full((heads, count), lowest))
            continue
        at = geometry.sinks + bundles.blocks[:, None] * geometry.block
        at = (at + torch.arange(geometry.block, device=query.device)).view(1, -1)
        here = torch.tensor([row], device=query.device)
        states = (part[0].unflatten(1, (-1, geometry.block)) for part in keys.take_pairs(here, places.slots(at, here)))
        asked = grouped[row].flatten(2).index_select(1, bundles.queries)
        asked = asked.view(asked.shape[0], len(bundles.blocks), -1, dims)
        output, total = _part(call, ScoreSet(asked, *states, None))  # key heads as rows, bundles as heads
        output, total = bundles.merge(output.flatten(1, 2), total.flatten(1, 2), heads // asked.shape[0])
        outputs.append(output)
        totals.append(total)
    return (torch.stack(outputs), torch.stack(totals)) if bool(chosen.any()) else None


class _Bundles:
    """Queries of a row that chose the same block, put together a few at a time.

    Attributes:
        pairs: of a query and a block that it chose.
        blocks: the block of each bundle, [n].
        queries: n * b, b to a bundle; some of no use fill the last bundle of each block.
    """

    def __init__(self, chosen: torch.Tensor) -> None:
        """Bundles of bool [t, N]."""
        device = chosen.device
        self._chosen = chosen
        blocks, asking = chosen.T.nonzero().unbind(dim=1)
        self.pairs = len(blocks)
        if not self.pairs:
            return
        number, sizes = blocks.unique_consecutive(return_counts=True)
        each = min(max(_FEWEST, 2 ** (self.pairs // len(sizes)).bit_length()), _MOST)
        bundles = (sizes + each - 1) // each
        inside = torch.arange(self.pairs, device=device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        self._place = (bundles.cumsum(0) - bundles).repeat_interleave(sizes) * each + inside
        self._asking, self._of = asking, blocks
        self.blocks = number.repeat_interleave(bundles)
        self.queries = torch.zeros(len(self.blocks) * each, dtype=torch.long, device=device)
        self.queries[self._place] = asking

    def merge(self, output: torch.Tensor, summed: torch.Tensor, groups: int) -> Part:
        """Each query's outputs as one, [H, t, Dv] and [H, t].

        Args:
            output: [K, n b H/K, Dv]. summed: their log-sum-exps [K, n b H/K]. groups: H/K.
        """
        output, summed = output.unflatten(1, (-1, groups)).flatten(2), summed.unflatten(1, (-1, groups))
        order = (self._chosen.cumsum(dim=1) - 1)[self._asking, self._of]  # a query's first, second, ... choice
        most, count, heads = int(order.max()) + 1, self._chosen.shape[0], output.shape[0]
        where = self._place.new_zeros(most, count)
        where[order, self._asking] = self._place
        totals = summed.new_full((heads, most, count, groups), torch.finfo(summed.dtype).min)
        totals[:, order, self._asking] = summed[:, self._place]
        total = totals.logsumexp(dim=1)
        shares = (totals - total[:, None]).exp()
        merged = shares.new_zeros(heads, count, groups, output.shape[2] // groups)
        for one in range(most):
            merged.addcmul_(output.index_select(1, where[one]).view(merged.shape), shares[:, one, ..., None])
        return merged.transpose(1, 2).flatten(0, 1), total.transpose(1, 2).flatten(0, 1)


def merge_parts(call: Call, sets: list[ScoreSet], further: Part) -> torch.Tensor:
    """One softmax over these sets and what was attended to already, [B, H, t, Dv] in the values' dtype."""
    rows, heads, count, _ = sets[0].query.shape
    parts = [_part(call, one) for one in sets]
    outputs = [output.reshape(rows, heads, count, -1) for output, _ in parts] + [further[0]]
    totals = [total.reshape(rows, heads, count) for _, total in parts] + [further[1]]
    if call.sinks is not None:
        totals.append(call.sinks.to(totals[0].dtype).view(1, -1, 1).expand_as(totals[0]))
    shares = torch.stack(totals).softmax(dim=0)
    merged = outputs[0] * shares[0][..., None]
    for output, share in zip(outputs[1:], shares[1:], strict=False):
        merged = merged.addcmul_(output.to(merged.dtype), share[..., None])
    return merged.to(call.value.dtype)
