"""Everything that is measured on one loaded model, for one text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ctxforge.verification.assemble import assemble
from ctxforge.verification.journal import Journal
from ctxforge.verification.measures import Measures
from ctxforge.verification.onepass import Tick
from ctxforge.verification.processes import Processes
from ctxforge.verification.settings import VerifySettings, short_window_length
from ctxforge.verification.text import TokenText, tokenize
from ctxforge.verification.units import Scope, plan_units, shared_out
from ctxforge.verification.worker import Worker

Progress = Callable[[str, int, int], None]


def evaluate_model(
    model: Any,
    tokenizer: Any,
    *,
    text: str | TokenText,
    trained_length: int,
    target_length: int,
    settings: VerifySettings | None = None,
    label: str = "model",
    scope: Scope | None = None,
    journal: Journal | None = None,
    processes: Processes | None = None,
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
        scope: what of the settings applies to this model; None for everything.
        journal: where finished units are kept, and found again; None keeps nothing.
        processes: that share the units; None measures alone.
        progress: called with (what, done, of how many).

    Raises:
        UsageError: the text is too short, or a length is out of range.
    """
    settings, scope = settings or VerifySettings(), scope or Scope()
    journal, processes = journal or Journal(), processes or Processes()
    tokens = prepare_text(tokenizer, text, target_length, settings) if isinstance(text, str) else text
    worker = Worker(model, tokenizer, tokens, trained_length, target_length, settings, scope)
    size = short_window_length(settings, trained_length, target_length)
    units = plan_units(
        settings,
        scope,
        trained_length,
        target_length,
        short_windows=max(1, min(settings.short_windows, tokens.windows_of(size))),
        prefix_invariant=worker.runner.prefix_invariant,
    )
    known = processes.everywhere(journal.read())
    missing = [unit for unit in units if unit.key not in known]
    found: dict[str, Any] = {}
    for unit in shared_out(missing, processes.count)[processes.rank]:
        found[unit.key] = worker.compute(unit, _tick(progress, f"{label}: {unit.title}"))
        journal.write(unit.key, found[unit.key])
    return assemble(worker, units, {**known, **processes.together(found)}, label)


def prepare_text(
    tokenizer: Any, text: str, target_length: int, settings: VerifySettings, *, whole: int = 0
) -> TokenText:
    """Tokenise `text` once for several calls of `evaluate_model`; raises UsageError when it is too short.

    `whole` windows more are tokenised where the text holds them, without insisting on them.
    """
    spare = (settings.seeds + whole) * target_length
    return tokenize(tokenizer, text, length=target_length, windows=settings.documents, spare=spare)


def _tick(progress: Progress | None, what: str) -> Tick | None:
    if progress is None:
        return None
    report = progress
    return lambda done, total: report(what, done, total)
