"""Protocols written out plainly on bare forwards with whole logits: what the fast ones are compared with.

Nothing here shares code with ctxforge: each follows the published script or paper token by token or window by window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

Tokens = Sequence[int]


def log_probabilities(model: Any, ids: Tokens) -> torch.Tensor:
    """[L, V] of a bare forward, float64."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0].double(), -1)


def stock_loss(model: Any, ids: Tokens, scored: int) -> float:
    """transformers' own loss of the last `scored` tokens."""
    labels = torch.tensor([list(ids)])
    inputs = labels.clone()
    labels[:, : max(0, len(ids) - scored)] = -100
    with torch.no_grad():
        return float(model(inputs, labels=labels).loss)


def yarn(
    model: Any, documents: Sequence[Tokens], length: int, bos: int | None, stride: int, *, truncate: bool
) -> float:
    """Perplexity as jquesnelle/yarn eval/perplexity.py defines it."""
    room = length if bos is None else length - 1
    window_means = []
    for document in documents:
        text = list(document)
        step = stride
        if truncate:
            text, step = text[:room], room
        before = 0
        for begin in range(0, len(text), step):
            end = min(begin + room, len(text))
            ids = ([] if bos is None else [bos]) + text[begin:end]
            window_means.append(stock_loss(model, ids, end - before))
            if end == len(text):
                break
            before = end
    return math.exp(sum(window_means) / len(window_means))


def pi(model: Any, documents: Sequence[Tokens], length: int, stride: int) -> float:
    """Perplexity token by token: each with the context that the last window to reach it first gives it."""
    total, count = 0.0, 0
    for document in documents:
        tables: dict[int, torch.Tensor] = {}
        for t in range(1, len(document)):
            begin = 0 if t < length else math.ceil((t + 1 - length) / stride) * stride
            if begin not in tables:
                tables = {begin: log_probabilities(model, document[begin : begin + length])}
            total -= float(tables[begin][t - begin - 1, document[t]])
            count += 1
    return math.exp(total / count)


def longlora(model: Any, stream: Tokens, length: int, stride: int, batch_size: int) -> float:
    """Perplexity as dvlab-research/LongLoRA eval.py defines it."""
    starts = list(range(0, len(stream) - length, stride))
    starts.pop()
    batch_means = []
    for index in range(0, len(starts), batch_size):
        batch = torch.tensor([list(stream[i : i + length]) for i in starts[index : index + batch_size]])
        with torch.no_grad():
            batch_means.append(float(model(batch, labels=batch).loss))
    return 2.71828 ** (sum(batch_means) / len(batch_means))


def lm_eval_loss(model: Any, document: Tokens, length: int, prefix_token: int) -> float:
    """Minus lm-eval's rolling log-likelihood of one document."""
    total = 0.0
    for begin in range(0, len(document), length):
        end = min(begin + length, len(document))
        if begin == 0:
            context = [prefix_token]
        else:
            # The harness fills a last short window up with the tokens before it.
            context = list(document[begin - 1 - (length - (end - begin)) : begin])
        fed = (context + list(document[begin:end]))[:-1]
        assert len(fed) <= length
        table = log_probabilities(model, fed)[-(end - begin) :]
        total -= sum(float(row[token]) for row, token in zip(table, document[begin:end], strict=True))
    return total


def full_and_short(
    model: Any, document: Tokens, first: int, context: int, refresh: int, short_model: Any = None
) -> tuple[list[float], list[float]]:
    """Losses of the tokens from `first` on with everything before them, and with a refreshed short context."""
    whole = log_probabilities(model, document)
    full = [-float(whole[t - 1, document[t]]) for t in range(first, len(document))]
    short = []
    for start in range(first, len(document), refresh):
        ids = document[start - context : start + refresh]
        table = log_probabilities(short_model or model, ids)
        short += [-float(table[i - 1, ids[i]]) for i in range(context, len(ids))]
    return full, short
