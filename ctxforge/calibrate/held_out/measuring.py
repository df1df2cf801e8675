"""Losses of the source and of the model as it stands, over the windows of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxforge.calibrate.held_out.result import HeldOutResult, Reference, RelativeTo, demand_fit
from ctxforge.calibrate.held_out.windows import HeldOut, HeldOutWindow
from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.verification.statistics import paired_bootstrap

if TYPE_CHECKING:
    from ctxforge.calibrate.held_out.passes import Scored
    from ctxforge.calibrate.objectives.loss_model import LossModel

Add = Callable[[list[float]], list[float]]

TAIL = 8
"""The last one part in this many of a long window is its tail."""
_PROBE_TOKENS = 64


def reference(
    model: Any,
    held_out: HeldOut,
    *,
    source: str = "the source",
    relative_to: RelativeTo = "source",
    rank: int = 0,
    world: int = 1,
    add: Add = list,
) -> Reference:
    """Measure what a calibration is held against.

    Beyond L0 the model sees windows of L0 tokens, prefix included, each of which scores its last `refresh` tokens: the
    rule of `verification.long_use.delta_use`, whose `short` these losses are.

    Args:
        model: the source as transformers loads it, with its own rotation. Or, where the source is not at hand, the
            extended model before its first step, or its `LossModel`, with `relative_to="start"`.
        held_out: the windows.
        source: its name, for the record.
        relative_to: which of the two it is.
        rank, world, add: see `measure`.

    Raises:
        UsageError: a loss is not finite.
        UnsupportedError: no loss without whole logits, or see `placement.model_inputs`.
    """
    from ctxforge.calibrate.held_out.passes import Scored, evaluating, summed
    from ctxforge.calibrate.objectives.loss_model import LossModel
    from ctxforge.verification.protocols.contexts import short_windows

    loss_model = model
    if not isinstance(model, LossModel):
        loss_model = LossModel(model)
        with evaluating(model):
            _check(loss_model, held_out.short[0], source)
    asked = held_out.settings
    trained, refresh = asked.trained_length, asked.source_refresh
    scored: list[Scored] = []
    owners: list[int] = []
    for owner, window in enumerate(held_out.long if held_out.beyond else ()):
        start, text = window.ids[: window.prefix].tolist(), window.ids[window.prefix :].tolist()
        cut = short_windows(text, trained, trained - refresh - window.prefix, refresh, start)
        found = [Scored(np.array(one.ids, np.int64), (one.scored,)) for one in cut]
        scored += found
        owners += [owner] * len(found)
    sums = summed(loss_model, [*scored, *_whole(held_out.short)], rank=rank, world=world, add=add)
    totals = np.zeros(len(held_out.long) if held_out.beyond else 0)
    for owner, (part,) in zip(owners, sums, strict=False):
        totals[owner] += part
    long = totals / [_beyond(held_out, window) for window in held_out.long[: len(totals)]]
    short = [part / window.predicted for (part,), window in zip(sums[len(scored) :], held_out.short, strict=True)]
    if not np.isfinite([*long, *short]).all():
        raise _not_finite(source)
    return Reference(
        source,
        relative_to,
        tuple(long.tolist()),
        tuple(short),
        held_out.digest,
        trained,
        refresh,
    )


def measure(
    loss_model: LossModel,
    held_out: HeldOut,
    reference: Reference,
    *,
    rank: int = 0,
    world: int = 1,
    add: Add = list,
) -> HeldOutResult:
    """Measure a model as it stands, adapters unmerged: a long window in one pass at positions 0, 1, ...

    The model runs in evaluation mode and without gradients, and is left in the mode it was in. Nothing is drawn: the
    same weights give the same bits, on one process or several.

    Rotations chosen by token (`placement.two_rotations`) are undone by the caller before: the checkpoint that will be
    written rotates all tokens with one table.

    Args:
        loss_model: the model in training. Not a wrapper of DDP around it; FSDP2 shards it in place.
        held_out: the windows.
        reference: of the same windows.
        rank: number of this process among those that share the windows out; those that hold parts of one sequence
            (context parallelism) have one number.
        world: how many numbers there are.
        add: adds lists of floats element by element over them, in float64.

    Raises:
        UsageError: a reference of other windows.
        UnsupportedError: see `placement.model_inputs`, such as dynamic NTK beyond the trained length.
    """
    from ctxforge.calibrate.held_out.passes import Scored, summed

    demand_fit(reference, held_out)
    long = _whole(held_out.long)
    if held_out.beyond:
        tail = held_out.length // TAIL
        sizes = [_beyond(held_out, window) for window in held_out.long]
        long = [
            Scored(window.ids, (size, min(max(tail, 1), size)))
            for window, size in zip(held_out.long, sizes, strict=True)
        ]
    short = _whole(held_out.short)
    sums = summed(loss_model, [*long, *short], rank=rank, world=world, add=add)
    short_losses = _means(sums[len(long) :], short)
    short_tokens = [window.last[0] for window in short]
    weights = np.array([window.last[0] for window in long], dtype=np.float64)
    losses = _means(sums[: len(long)], long)
    use, bounds, tail_nll = None, None, None
    if held_out.beyond:
        found = paired_bootstrap(np.array(reference.long) - losses, weights)[0]
        use, bounds = found.value, found.bounds
        tail_nll = sum(row[1] for row in sums[: len(long)]) / sum(window.last[1] for window in long)
    mean = _weighted(losses, weights)
    short_nll = _weighted(short_losses, short_tokens)
    return HeldOutResult(
        use=use,
        use_interval=bounds,
        long_nll=mean if held_out.beyond else None,
        tail_nll=tail_nll,
        full_nll=None if held_out.beyond else mean,
        short_nll=short_nll,
        short_regression=_weighted(short_losses - reference.short, short_tokens),
        relative_to=reference.relative_to,
        tokens=int(weights.sum()) + sum(short_tokens),
        long_windows=tuple(zip(losses.tolist(), (window.last[0] for window in long), strict=True)),
        short_windows=tuple(zip(short_losses.tolist(), short_tokens, strict=True)),
    )


def _check(loss_model: LossModel, window: HeldOutWindow, source: str) -> None:
    """Refuse a head that is no sliced loss's, and say so where it is the model that is broken."""
    import torch

    try:
        loss_model.check()
    except UnsupportedError:
        model = loss_model.model
        ids = torch.tensor(window.ids[:_PROBE_TOKENS], device=model.device)[None]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        if not torch.isfinite(logits).all():
            raise _not_finite(source) from None
        raise


def _not_finite(source: str) -> UsageError:
    return UsageError(
        f"a held-out loss of {source} is not a finite number", "check the model, or load it in bfloat16 or float32"
    )


def _beyond(held_out: HeldOut, window: HeldOutWindow) -> int:
    """Tokens of a long window beyond L0, as `delta_use` counts: the prefix is none of the first L0."""
    return len(window.ids) - window.prefix - held_out.settings.trained_length


def _whole(windows: tuple[HeldOutWindow, ...]) -> list[Scored]:
    from ctxforge.calibrate.held_out.passes import Scored

    return [Scored(window.ids, (window.predicted,)) for window in windows]


def _means(sums: list[tuple[float, ...]], windows: list[Scored]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([row[0] / window.last[0] for row, window in zip(sums, windows, strict=True)])


def _weighted(values: Any, weights: Any) -> float:
    return float((np.asarray(values) * weights).sum() / np.sum(weights))
