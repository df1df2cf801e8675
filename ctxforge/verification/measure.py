"""Everything that is measured on one loaded model, for one text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxforge.verification import retrieval
from ctxforge.verification.cache_check import cache_difference
from ctxforge.verification.needles import Haystack, plant
from ctxforge.verification.onepass import OnePass, Tick
from ctxforge.verification.perplexity import BucketScore, LengthScore, Losses, by_bucket, by_length
from ctxforge.verification.retrieval import ScoredAnswer
from ctxforge.verification.settings import VerifySettings, measured_lengths, short_window_length
from ctxforge.verification.text import TokenText, tokenize

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measures:
    """What one model scored.

    Attributes:
        label: name of the model in tables and plots.
        lengths: cumulative perplexity at every context length; empty when the curve was not measured.
        buckets: perplexity by position; empty likewise.
        retrieval: cells of the grid.
        answers: every answer of the grid, the units that its intervals are made from.
        window_buckets: `buckets` of each window apart, the units likewise.
        short_windows: mean loss in nats of each window of the trained length, in order of the text.
        beyond: mean loss of the tokens beyond the trained length, window by window, with the whole context.
        truncated: the same tokens with the last trained length of context only; empty unless it was asked for.
        cache_difference: see `cache_check`; None for a model that keeps no cache.
        passes: "one pass" when the longest pass gave every length, "one pass a length" when it could not.
        retrieval_way: how the grid was computed; empty when it was not.
        head: "sliced" or "full", see `OnePass.head_kind`.
        attention: name of the attention implementation.
        dtype: of the weights.
        finite: False when a loss was not a finite number.
    """

    label: str
    lengths: tuple[LengthScore, ...]
    buckets: tuple[BucketScore, ...]
    retrieval: tuple[retrieval.RetrievalCell, ...]
    answers: tuple[ScoredAnswer, ...]
    window_buckets: tuple[tuple[BucketScore, ...], ...]
    short_windows: tuple[float, ...]
    beyond: tuple[float, ...]
    truncated: tuple[float, ...]
    cache_difference: float | None
    passes: str
    retrieval_way: str
    head: str
    attention: str
    dtype: str
    finite: bool


def evaluate_model(
    model: Any,
    tokenizer: Any,
    *,
    text: str | TokenText,
    trained_length: int,
    target_length: int,
    settings: VerifySettings | None = None,
    label: str = "model",
    curve: bool = True,
    retrieval_up_to: int | None = None,
    truncated: bool = False,
    progress: Progress | None = None,
) -> Measures:
    """Measure a model that is already loaded: perplexity by length and position, retrieval, and short-context losses.

    The caller may change the model's rotary frequencies between calls and so compare methods without loading again;
    `short_context` in `report.py` pairs the short windows of two results.

    Args:
        model: a causal LM of transformers in evaluation mode, on its device.
        tokenizer: its tokenizer.
        text: a text, or the tokens that `prepare_text` made of it.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        settings: as in `VerifySettings`.
        label: name of the model in the result and in progress messages.
        curve: whether to run over the target length at all; without it only short windows and retrieval are measured.
        retrieval_up_to: the longest length of the retrieval grid; None for the target.
        truncated: whether to score the tokens beyond the trained length with truncated contexts too: what a user of
            the source would do instead of extending it.
        progress: called with (what, done, of how many).

    Raises:
        UsageError: the text is too short, or a length is out of range.
    """
    settings = settings or VerifySettings()
    lengths = measured_lengths(settings, trained_length, target_length)
    tokens = prepare_text(tokenizer, text, target_length, settings) if isinstance(text, str) else text
    runner = OnePass(model, settings.head_slice, longest=target_length)
    windows: list[Losses] = []
    shorter: dict[int, list[Losses]] = {}
    if curve:
        for index in range(settings.documents):
            ids = tokens.window(index, target_length)
            tick = _tick(progress, f"{label}: perplexity, window {index + 1} of {settings.documents}")
            for length in lengths if not runner.prefix_invariant else (target_length,):
                shorter.setdefault(length, []).append(runner.losses(ids[:length], tick).numpy())
                runner.settle()
        windows = shorter[target_length]
    short = _short_windows(runner, tokens, windows, trained_length, target_length, settings, progress, label)
    cut: list[Losses] = []
    if truncated and target_length > trained_length:
        for index in range(settings.documents):
            tick = _tick(progress, f"{label}: truncated context, window {index + 1} of {settings.documents}")
            cut.append(truncated_losses(runner, tokens, index, trained_length, target_length, tick))
    scored: list[retrieval.Answer] = []
    units: list[ScoredAnswer] = []
    way = ""
    if settings.retrieval:
        way = retrieval.choose_way(runner)
        for seed in range(settings.seeds):
            haystack = haystack_for(tokenizer, tokens, lengths, target_length, seed, settings)
            tick = _tick(progress, f"{label}: retrieval, haystack {seed + 1} of {settings.seeds}")
            found = retrieval.answers(runner, haystack, way, longest=retrieval_up_to, tick=tick)
            units += [ScoredAnswer.of(answer, seed) for answer in found]
            scored += found
    cells = retrieval.grid(scored)
    runner.settle()
    cached = cache_difference(model, tokens.body, trained_length, target_length)
    losses = [*windows, *cut, np.asarray(short, dtype=np.float32), np.asarray([c.nll for c in cells], dtype=np.float32)]
    return Measures(
        label=label,
        lengths=tuple(by_length(shorter.get(n, windows), n) for n in lengths) if windows else (),
        buckets=tuple(by_bucket(windows, target_length, settings.buckets)) if windows else (),
        retrieval=tuple(cells),
        answers=tuple(units),
        window_buckets=tuple(tuple(by_bucket([window], target_length, settings.buckets)) for window in windows),
        short_windows=tuple(short),
        beyond=tuple(_mean(window[trained_length - 1 :]) for window in windows if len(window) >= trained_length),
        truncated=tuple(_mean(window) for window in cut),
        cache_difference=cached,
        passes="one pass" if runner.prefix_invariant else "one pass a length",
        retrieval_way=way,
        head=runner.head_kind,
        attention=str(getattr(model.config, "_attn_implementation", "unknown")),
        dtype=str(model.dtype).removeprefix("torch."),
        finite=all(bool(np.isfinite(part).all()) for part in losses),
    )


def prepare_text(
    tokenizer: Any, text: str, target_length: int, settings: VerifySettings, *, whole: int = 0
) -> TokenText:
    """Tokenise `text` once for several calls of `evaluate_model`; raises UsageError when it is too short.

    `whole` windows more are tokenised where the text holds them, without insisting on them.
    """
    spare = (settings.seeds + whole) * target_length
    return tokenize(tokenizer, text, length=target_length, windows=settings.documents, spare=spare)


def haystack_for(
    tokenizer: Any,
    tokens: TokenText,
    lengths: tuple[int, ...],
    target_length: int,
    seed: int,
    settings: VerifySettings,
) -> Haystack:
    """The haystack of number `seed`: later seeds begin further on in the text, as far as it reaches."""
    start = min(seed * target_length, max(len(tokens.body) - target_length, 0))
    return plant(
        tokenizer,
        tokens.body[start : start + target_length],
        lengths=lengths,
        strata=settings.needles,
        seed=seed,
        prefix=tokens.prefix,
    )


def _short_windows(
    runner: OnePass,
    tokens: TokenText,
    windows: list[Losses],
    trained_length: int,
    target_length: int,
    settings: VerifySettings,
    progress: Progress | None,
    label: str,
) -> list[float]:
    """Mean loss of each short window; the first is read off the long pass where that holds it."""
    size = short_window_length(settings, trained_length, target_length)
    count = max(1, min(settings.short_windows, tokens.windows_of(size)))
    means = []
    for index in range(count):
        if index == 0 and windows and runner.prefix_invariant:
            losses = windows[0][: size - 1]
        else:
            tick = _tick(progress, f"{label}: short context, window {index + 1} of {count}")
            losses = runner.losses(tokens.window(index, size), tick).numpy()
        means.append(_mean(losses))
    return means


def truncated_losses(
    runner: OnePass, tokens: TokenText, index: int, trained_length: int, target_length: int, tick: Tick | None = None
) -> Losses:
    """Losses of a window's tokens beyond the trained length, each with at most that much context: [L' - L0].

    Windows of the trained length overlap by half, and each scores its second half, so that a token has between half
    and all of the trained length before it. The tokenizer's prefix stands in front of each.
    """
    ids = tokens.window(index, target_length)
    head = len(tokens.prefix)
    step = max(1, (trained_length - head) // 2)
    parts = []
    for begin in range(trained_length, target_length, step):
        end = min(begin + step, target_length)
        window = [*tokens.prefix, *ids[end - (trained_length - head) : end]]
        parts.append(runner.losses(window, tick).numpy()[begin - end :])
    return np.concatenate(parts)


def _mean(losses: Losses) -> float:
    return float(losses.mean(dtype=np.float64))


def _tick(progress: Progress | None, what: str) -> Tick | None:
    if progress is None:
        return None
    report = progress
    return lambda done, total: report(what, done, total)
