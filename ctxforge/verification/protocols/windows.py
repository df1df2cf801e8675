"""Losses of the last tokens of many windows: the one thing that every protocol needs of a model.

Windows of equal length go through the decoder together, and the head sees only the rows whose losses are wanted. In a
sliding protocol with a stride of 256 at 32k those are 1 row in 128.

Masks and positions are given explicitly, as in `onepass.py`, and for the same reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ctxforge.errors import InternalError
from ctxforge.verification.onepass import OnePass
from ctxforge.verification.perplexity import Losses

Tokens = Sequence[int]
LossFunction = Callable[[Tokens], npt.ArrayLike]
Count = Callable[[int], None]

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Window:
    """One forward pass over `ids`, of whose tokens the last `scored` are scored.

    Attributes:
        ids: token ids, the scored ones at the end.
        scored: how many, at least 1 and at most len(ids) - 1: the first token has no prediction.
        feed_last: whether the last token is fed to the model too. Its own prediction is never used, so this matters
            only where the rotation depends on the length of the input.
    """

    ids: Tokens
    scored: int
    feed_last: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.scored < len(self.ids):
            raise InternalError(f"a window of {len(self.ids)} tokens scores {self.scored}.", "Please report this.")


class WindowScorer(ABC):
    """What computes losses.

    Attributes:
        prefix_invariant: whether the losses of a window begin with the losses of every shorter window that starts at
            the same token. False for dynamic NTK and for LongRoPE with two lists.
    """

    prefix_invariant: bool

    @abstractmethod
    def score(self, windows: Iterable[Window]) -> Iterator[Losses]:
        """For every window, in order, the losses in nats of its scored tokens, float32 [scored]."""


class FunctionScorer(WindowScorer):
    """Scores windows with a function from ids [L] to the losses [L - 1] of every token but the first.

    Args:
        losses: the function.
        prefix_invariant: see `WindowScorer`; only the caller can know.
    """

    def __init__(self, losses: LossFunction, *, prefix_invariant: bool = True) -> None:
        self.losses = losses
        self.prefix_invariant = prefix_invariant

    def score(self, windows: Iterable[Window]) -> Iterator[Losses]:
        """See `WindowScorer.score`."""
        for window in windows:
            found = np.asarray(self.losses(window.ids), dtype=np.float32)
            if found.shape != (len(window.ids) - 1,):
                raise InternalError(
                    f"{len(window.ids)} tokens gave losses of shape {found.shape}.", "Please report this."
                )
            yield found[-window.scored :]


class ModelScorer(WindowScorer):
    """Scores windows with a loaded model.

    A model whose rotation depends on the length of the input is brought back to its short-context state before every
    forward, so that no window depends on which came before it.

    Args:
        runner: the model.
        batch_tokens: most tokens in one forward, as long as one window is no longer than that.
        count: called after every forward with the number of windows in it.
    """

    def __init__(self, runner: OnePass, *, batch_tokens: int = BATCH_TOKENS, count: Count | None = None) -> None:
        self.runner = runner
        self.batch_tokens = batch_tokens
        self.count = count
        self.prefix_invariant = runner.prefix_invariant

    def score(self, windows: Iterable[Window]) -> Iterator[Losses]:
        """See `WindowScorer.score`; windows are taken from the iterable one batch at a time."""
        for batch in self._batches(windows):
            if not self.prefix_invariant:
                self.runner.settle()
            yield from self._forward(batch)
            if self.count is not None:
                self.count(len(batch))

    def _batches(self, windows: Iterable[Window]) -> Iterator[list[Window]]:
        batch: list[Window] = []
        for window in windows:
            if batch and not self._fits(batch, window):
                yield batch
                batch = []
            batch.append(window)
        if batch:
            yield batch

    def _fits(self, batch: list[Window], window: Window) -> bool:
        first = batch[0]
        alike = len(first.ids) == len(window.ids) and first.feed_last == window.feed_last
        most = 1 if self.runner.head_kind == "full" else self.batch_tokens // len(first.ids)
        return alike and len(batch) < most

    def _forward(self, batch: list[Window]) -> list[Losses]:
        runner = self.runner
        tokens = torch.tensor([list(window.ids) for window in batch], device=runner.device)
        count, length = tokens.shape
        tail = max(window.scored for window in batch)
        labels = tokens[:, length - tail :].reshape(-1)
        fed = tokens if batch[0].feed_last else tokens[:, :-1]
        inputs: dict[str, Any] = {
            "input_ids": fed,
            "position_ids": torch.arange(fed.shape[1], device=runner.device).expand(count, -1),
            "attention_mask": torch.ones_like(fed),
            "use_cache": False,
            "return_dict": True,
        }
        rows = slice(length - tail - 1, length - 1)
        with torch.no_grad():
            if runner.head_kind == "full":
                logits = runner.model(**inputs).logits[0, rows].float()
                losses = F.cross_entropy(logits, labels, reduction="none")
            else:
                output = runner.head.decoder(**inputs)
                hidden = output.last_hidden_state[:, rows].flatten(0, 1)
                losses = runner.head.losses(hidden, labels, type(output))[0]
        table = losses.view(count, tail).cpu().numpy()
        return [row[tail - window.scored :] for row, window in zip(table, batch, strict=True)]


Source = OnePass | WindowScorer | LossFunction


def as_scorer(source: Source, *, batch_tokens: int = BATCH_TOKENS) -> WindowScorer:
    """`source` as a scorer: a model's `OnePass`, a function from ids [L] to losses [L - 1], or a scorer already."""
    if isinstance(source, OnePass):
        return ModelScorer(source, batch_tokens=batch_tokens)
    if isinstance(source, WindowScorer):
        return source
    return FunctionScorer(source)


def ladder(
    scorer: WindowScorer, documents: Sequence[Tokens], lengths: Sequence[int], prefix: Tokens = ()
) -> dict[int, list[Losses]]:
    """Losses of the first tokens of every document, at every length, from one pass a document where that is exact.

    Args:
        scorer: computes losses; where it is not prefix-invariant, there is one pass a length.
        documents: token ids.
        lengths: window lengths in tokens, prefix included.
        prefix: ids put before every document.

    Returns:
        For every length the losses of each document's window, every token but its first. A window that has fewer than
        two tokens has none.
    """
    passes = [max(lengths)] if scorer.prefix_invariant else sorted(set(lengths))
    found: dict[int, list[Losses]] = {}
    for size in passes:
        windows = [[*prefix, *document[: max(0, size - len(prefix))]] for document in documents]
        scored = iter(list(scorer.score(Window(ids, len(ids) - 1) for ids in windows if len(ids) > 1)))
        found[size] = [next(scored) if len(ids) > 1 else np.empty(0, np.float32) for ids in windows]
    return {n: [losses[: n - 1] for losses in found[n if n in found else passes[0]]] for n in lengths}
