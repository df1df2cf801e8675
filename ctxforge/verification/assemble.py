"""From the values of all units to `Measures`: arithmetic only, so an interrupted run ends with the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctxforge.verification.far_context import FarContext, far_context
from ctxforge.verification.measures import Measures
from ctxforge.verification.perplexity import Losses, by_bucket, by_length
from ctxforge.verification.protocols.longppl import LongPPLSettings
from ctxforge.verification.protocols.result import DocumentScore, ProtocolResult
from ctxforge.verification.protocols.rolling import RollingResult, TextLength
from ctxforge.verification.scored import ScoredAnswer, grid
from ctxforge.verification.settings import short_window_length
from ctxforge.verification.tasks.types import PromptScore
from ctxforge.verification.units import Kind, Unit
from ctxforge.verification.worker import Worker

Values = Mapping[str, Mapping[str, Any]]


def assemble(worker: Worker, units: Sequence[Unit], values: Values, label: str) -> Measures:
    """Everything that was measured of one model.

    Args:
        worker: the model and what was asked of it.
        units: all units, in order.
        values: of every unit, by key.
        label: the model's name in the result.
    """
    settings, trained, target = worker.settings, worker.trained_length, worker.target_length

    def of(kind: Kind) -> list[Mapping[str, Any]]:
        return [values[unit.key] for unit in units if unit.kind == kind]

    curves = [{int(n): _losses(x) for n, x in value["losses"].items()} for value in of("window")]
    windows = [curve[target] for curve in curves]
    short = [float(value["mean"]) for value in of("short")]
    if windows and worker.runner.prefix_invariant:
        short.insert(0, _mean(windows[0][: short_window_length(settings, trained, target) - 1]))
    truncated = [float(value["mean"]) for value in of("truncated")]
    answers = [ScoredAnswer(**answer) for value in of("haystack") for answer in value["answers"]]
    haystacks = of("haystack")
    tasks = [PromptScore(**score) for value in of("task") for score in value["scores"]]
    protocols = [_protocol(result) for value in of("protocol") for result in value["results"]]
    numbers = [*short, *truncated, *(answer.nll for answer in answers)]
    return Measures(
        label=label,
        lengths=tuple(by_length([_at(curve, n, target) for curve in curves], n) for n in worker.lengths)
        if windows
        else (),
        buckets=tuple(by_bucket(windows, target, settings.buckets)) if windows else (),
        retrieval=tuple(grid(answers)),
        answers=tuple(answers),
        window_buckets=tuple(tuple(by_bucket([window], target, settings.buckets)) for window in windows),
        short_windows=tuple(short),
        beyond=tuple(_mean(window[trained - 1 :]) for window in windows if len(window) >= trained),
        truncated=tuple(truncated),
        cache_difference=values["cache-0-0"]["difference"],
        cache_rounding=values["cache-0-0"]["rounding"],
        passes="one pass" if worker.runner.prefix_invariant else "one pass a length",
        retrieval_way=str(haystacks[0]["way"]) if haystacks else "",
        head=worker.runner.head_kind,
        attention=worker.attention,
        dtype=str(worker.model.dtype).removeprefix("torch."),
        finite=all(map(math.isfinite, numbers)) and all(bool(np.isfinite(window).all()) for window in windows),
        tasks=tuple(tasks),
        protocols=tuple(protocols),
        far_context=_far(worker, windows, [_losses(value["short"]) for value in of("window") if value["short"]]),
    )


def _far(worker: Worker, windows: Sequence[Losses], short: Sequence[Losses]) -> FarContext | None:
    if not short:
        return None
    settings = LongPPLSettings.scaled(worker.trained_length)
    # The loss of a document's token number n stands at n - 1, behind those of the tokenizer's prefix.
    start = len(worker.tokens.prefix) + settings.context - 1
    return far_context([window[start:] for window in windows], short, worker.trained_length, settings)


def _at(curve: Mapping[int, Losses], length: int, target: int) -> Losses:
    return curve.get(length, curve[target])


def _protocol(data: Mapping[str, Any]) -> ProtocolResult:
    documents = tuple(DocumentScore(**document) for document in data["documents"])
    common = {**data, "documents": documents, "traps": tuple(data["traps"])}
    if "word_perplexity" in data:
        return RollingResult(**{**common, "lengths": tuple(TextLength(**length) for length in data["lengths"])})
    return ProtocolResult(**common)


def _losses(values: Sequence[float]) -> Losses:
    return np.asarray(values, dtype=np.float32)


def _mean(losses: Losses) -> float:
    return float(losses.mean(dtype=np.float64))
