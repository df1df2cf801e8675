"""Verifying a checkpoint folder: source and result measured one after the other on the same tokens."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctxforge.verification.journal import Journal, forget_old, journal_folder, kept_when_interrupted
from ctxforge.verification.load import (
    device_title,
    load_model,
    load_tokenizer,
    memory_errors,
    pick_device,
    pick_dtype,
    release,
)
from ctxforge.verification.measure import Progress, evaluate_model, prepare_text
from ctxforge.verification.measures import Measures
from ctxforge.verification.needles import ANSWER, QUESTION
from ctxforge.verification.processes import find_processes
from ctxforge.verification.report import Protocol, VerifyReport, short_context
from ctxforge.verification.settings import VerifySettings, short_window_length
from ctxforge.verification.text import TokenText
from ctxforge.verification.units import Scope
from ctxforge.verification.worker import fitting_tasks
from ctxforge.version import __version__


def verify(
    model_dir: Path,
    *,
    source_dir: Path | None,
    text: str,
    trained_length: int,
    target_length: int,
    settings: VerifySettings,
    fresh: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Measure the checkpoint in `model_dir`, and the one it came from, on `text`.

    The two models are never in memory together. The source's retrieval grid is measured up to the trained length
    only: beyond it there is nothing to hold the result against. Finished units are kept until the whole is done, so
    that an interrupted verification goes on where it stopped; processes started by a launcher share them.

    Args:
        model_dir: the converted checkpoint.
        source_dir: the checkpoint it was made from, or None.
        text: a text with at least `documents` × `target_length` tokens.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        settings: what to measure and how.
        fresh: forget what an interrupted run of the same measurement left.
        progress: called with (what, done, of how many).

    Raises:
        UsageError: the text is too short or a setting is out of range.
        CheckpointError: a folder cannot be loaded.
        ResourceError: out of memory.
    """
    model_dir = Path(model_dir)
    processes = find_processes(settings.device)
    device = pick_device(settings.device, processes.local_rank)
    settings = replace(settings, dtype=pick_dtype(settings.dtype, model_dir, device, target_length))
    asked = settings.documents
    tokenizer = load_tokenizer(model_dir, settings)
    if settings.fewer_documents:
        settings = replace(settings, documents=1)
        tokens = prepare_text(tokenizer, text, target_length, settings, whole=asked)
        settings = replace(settings, documents=max(1, min(asked, tokens.windows_of(target_length))))
    else:
        tokens = prepare_text(tokenizer, text, target_length, settings)
    settings, notes = fitting_tasks(tokenizer, settings, min(trained_length, target_length))
    conditions = protocol(tokens, trained_length, target_length, settings, device, processes.count)
    journals: list[Journal] = []

    def measured(folder: Path, label: str, scope: Scope) -> Measures:
        lengths = (trained_length, target_length)
        versions = conditions.versions
        journal = Journal(
            journal_folder(folder, tokens.sha256, settings, lengths, device=device.split(":")[0], versions=versions)
        )
        if fresh and processes.rank == 0:
            journal.discard()
        journals.append(journal)
        with memory_errors(target_length, settings, folder, device):
            model = load_model(folder, settings, device)
            found = evaluate_model(
                model,
                tokenizer,
                text=tokens,
                trained_length=trained_length,
                target_length=target_length,
                settings=settings,
                label=label,
                scope=scope,
                journal=journal,
                processes=processes,
                progress=progress,
            )
        del model
        release(device)
        return found

    forget_old()
    source = None
    scope = Scope(
        curve=settings.source_curve,
        retrieval_up_to=min(trained_length, target_length),
        truncated=settings.truncated_source,
        protocols=settings.source_curve,
    )
    with kept_when_interrupted(journals):
        if source_dir is not None:
            source = measured(Path(source_dir), "source", scope)
        result = measured(model_dir, "result", Scope(retrieval_up_to=target_length, far_context=True))
    if processes.rank == 0:
        for journal in journals:
            journal.discard()
    return VerifyReport(
        protocol=conditions,
        result=result,
        source=source,
        short_context=None
        if source is None
        else short_context(source, result, short_window_length(settings, trained_length, target_length)),
        notes=notes,
    )


def protocol(
    tokens: TokenText,
    trained_length: int,
    target_length: int,
    settings: VerifySettings,
    device: str,
    processes: int = 1,
) -> Protocol:
    """The conditions of a measurement on `tokens`, with the versions that are running."""
    import torch

    return Protocol(
        text_sha256=tokens.sha256,
        text_tokens=len(tokens.body),
        text_complete=tokens.complete,
        prefix_ids=tokens.prefix,
        windows=settings.documents,
        trained_length=trained_length,
        target_length=target_length,
        average="exp of the mean loss over all predicted tokens; the first token of a window is not predicted",
        dtype=settings.dtype,
        device=device_title(device),
        threads=torch.get_num_threads(),
        processes=processes,
        needles=settings.needles,
        seeds=settings.seeds,
        needle_form=QUESTION + ANSWER,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    from importlib import metadata

    names: dict[str, Any] = {"torch": "torch", "transformers": "transformers"}
    found = {"python": platform.python_version(), "ctxforge": __version__}
    for name, distribution in names.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
