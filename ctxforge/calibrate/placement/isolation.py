"""A trial, before training: does the model compute what the rows say?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ctxforge.calibrate.placement.backends import Backend, backend_of
from ctxforge.calibrate.placement.batch import Batch, collate
from ctxforge.calibrate.placement.builders import full_length
from ctxforge.calibrate.placement.inputs import model_inputs
from ctxforge.calibrate.placement.layout import Layout, Run
from ctxforge.calibrate.placement.windows import Sight, sight
from ctxforge.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

Inputs = Callable[..., dict[str, Any]]
_LIMITS = {"torch.float32": 1e-5, "torch.float64": 1e-10}


@dataclass(frozen=True)
class Isolation:
    """What `check_isolation` found. Changes are those of hidden states, as shares of their largest entry.

    Attributes:
        links: pairs of stretches of which the later one sees the earlier one, as it must.
        walls: pairs of which it does not, as it must not: other texts, earlier stretches, and, in a model with windows
            only, whatever lies beyond a skip of the window's size.
        out_of_sight: pairs of one text of which it cannot be said beforehand, because the model attends to windows only
            or has an attention system of ctxforge.
        weakest_link: the smallest change across a link; 0 when there is none.
        worst_leak: the largest change across a wall, or of a token before the one that was changed.
        noise: the largest change between two equal passes.
        mask_error: difference of explicit masks and the model's own on a plain text; None where none are used.
    """

    links: int
    walls: int
    out_of_sight: int
    weakest_link: float
    worst_leak: float
    noise: float
    mask_error: float | None


def check_isolation(
    model: Any, rows: Batch | Layout | Sequence[Layout], backend: str | None = None, *, inputs: Inputs = model_inputs
) -> Isolation:
    """Change one stretch of each row and see which others notice: those of its text after it must, others must not.

    Three to five passes without gradients over the rows, in the model's present mode, with equal random numbers. Where
    explicit masks are used, they must also give a plain text what the model's own mask gives it.

    Args:
        model: a causal LM of transformers, or one wrapped by peft.
        rows: rows like those to be trained on; short ones cost less and show the same, as long as a window that matters
            matters in them too.
        backend: see `model_inputs`.
        inputs: what builds the model's arguments from (batch, model, backend).

    Raises:
        UnsupportedError: the model computes something else, or see `model_inputs`.
    """
    import torch

    batch = rows if isinstance(rows, Batch) else collate([rows] if isinstance(rows, Layout) else rows)
    kind, seen = backend_of(model, backend), sight(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        plain = _hidden(model, inputs(batch, model, backend))
        scale = float(plain.abs().max().clamp_min(1e-30))
        noise = float((plain - _hidden(model, inputs(batch, model, backend))).abs().max()) / scale
        limit = max(_LIMITS.get(str(plain.dtype), 1e-2), 4 * noise)
        tally = _Tally()
        for turn in range(2):
            changed, picked = _change(batch, model, turn)
            if changed is None:
                continue
            moved = (_hidden(model, inputs(changed, model, backend)) - plain).abs().amax(-1).cpu().double() / scale
            for row, layout in enumerate(batch.rows):
                _judge(moved[row].numpy(), layout, picked[row], kind, seen, tally)
        if tally.leak > limit:
            raise UnsupportedError(
                f"{type(model).__name__} lets a text see another, or a later token (change {tally.leak:.2g})",
                "give one document a row; if it stays, the attention does not take ctxforge's masks",
            )
        if tally.links and tally.link <= noise:
            raise UnsupportedError(
                f"{type(model).__name__} does not let one chunk of a text see the one before it",
                "the attention took the jump in positions for a new text: pass model_inputs unchanged",
            )
        error = _mask_error(batch, model, backend, scale) if kind.explicit and _explicit(batch, seen) else None
        if error is not None and error > limit:
            raise UnsupportedError(
                f"explicit masks do not give {type(model).__name__} what its own mask does (difference {error:.2g})",
                "its layers see by a rule that ctxforge does not know: train full length, one document a row",
            )
    link = tally.link if tally.links else 0.0
    return Isolation(tally.links, tally.walls, tally.unseen, link, tally.leak, noise, error)


@dataclass
class _Tally:
    links: int = 0
    walls: int = 0
    unseen: int = 0
    link: float = float("inf")
    leak: float = 0.0


def _explicit(batch: Batch, seen: Sight) -> bool:
    return batch.isolated or seen.narrows(batch)


def _change(batch: Batch, model: Any, turn: int) -> tuple[Batch | None, list[int]]:
    """The batch with other tokens in one stretch of each row: the first on turn 0, a middle one on turn 1."""
    size = model.get_input_embeddings().weight.shape[0]
    ids = batch.ids.copy()
    picked = []
    for row, layout in enumerate(batch.rows):
        runs = layout.runs()
        number = 0 if turn == 0 else len(runs) // 2
        picked.append(number)
        run = runs[number]
        ids[row, run.start : run.stop] = (ids[row, run.start : run.stop] + 1 + size // 2) % size
    return (None, picked) if turn and not any(picked) else (replace(batch, ids=ids), picked)


def _judge(moved: Any, layout: Layout, number: int, kind: Backend, seen: Sight, tally: _Tally) -> None:
    """Count what the change of stretch `number` did to each other stretch of a row."""
    runs = layout.runs()
    source = runs[number]
    for other, run in enumerate(runs):
        change = float(moved[run.start : run.stop].max())
        if other < number or run.document != source.document:
            tally.walls += 1
            tally.leak = max(tally.leak, change)
        elif other > number:
            sees = _in_sight(layout, source, runs[number + 1], kind, seen)
            if sees is False:
                tally.walls += 1
                tally.leak = max(tally.leak, change)
            elif sees and (other == number + 1 or None in seen.windows.values()):
                tally.links += 1
                tally.link = min(tally.link, change)
            else:
                tally.unseen += 1


def _in_sight(layout: Layout, source: Run, following: Run, kind: Backend, seen: Sight) -> bool | None:
    """Whether a layer shows `source` to the stretch that follows it; None where an attention system of ours decides."""
    if kind is Backend.RESTARTS:
        return None
    if None in seen.windows.values() or seen.other:
        return True
    gap = layout.positions[following.start] - layout.positions[source.stop - 1]
    return bool(gap < max(window or 0 for window in seen.windows.values()))


def _mask_error(batch: Batch, model: Any, backend: str | None, scale: float) -> float:
    row = full_length(batch.ids[0])
    own = _hidden(model, model_inputs(row, model, backend))
    ours = _hidden(model, model_inputs(row, model, backend, explicit=True))
    return float((own - ours).abs().max()) / scale


def _hidden(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """Last hidden states [B, T, d], or logits where the model has no separate decoder."""
    import torch

    torch.manual_seed(0)  # every pass draws the same dropout
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    output = inner.base_model(**arguments)
    found: torch.Tensor | None = getattr(output, "last_hidden_state", None)
    return output.logits if found is None else found
