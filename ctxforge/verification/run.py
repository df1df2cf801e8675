"""Verifying a checkpoint folder: source and result measured one after the other on the same tokens."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctxforge.verification.load import load_model, load_tokenizer, memory_errors, pick_device, release
from ctxforge.verification.measure import Measures, Progress, evaluate_model, prepare_text
from ctxforge.verification.needles import ANSWER, QUESTION
from ctxforge.verification.report import Protocol, VerifyReport, short_context
from ctxforge.verification.settings import VerifySettings, short_window_length
from ctxforge.verification.text import TokenText


def verify(
    model_dir: Path,
    *,
    source_dir: Path | None,
    text: str,
    trained_length: int,
    target_length: int,
    settings: VerifySettings,
    progress: Progress | None = None,
) -> VerifyReport:
    """Measure the checkpoint in `model_dir`, and the one it came from, on `text`.

    The two models are never in memory together. The source's retrieval grid is measured up to the trained length
    only: beyond it there is nothing to hold the result against.

    Args:
        model_dir: the converted checkpoint.
        source_dir: the checkpoint it was made from, or None.
        text: a text with at least `documents` × `target_length` tokens.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        settings: what to measure and how.
        progress: called with (what, done, of how many).

    Raises:
        UsageError: the text is too short or a setting is out of range.
        CheckpointError: a folder cannot be loaded.
        ResourceError: out of memory.
    """
    model_dir = Path(model_dir)
    device = pick_device(settings.device)
    asked = settings.documents
    tokenizer = load_tokenizer(model_dir, settings)
    if settings.fewer_documents:
        settings = replace(settings, documents=1)
        tokens = prepare_text(tokenizer, text, target_length, settings, whole=asked)
        settings = replace(settings, documents=max(1, min(asked, tokens.windows_of(target_length))))
    else:
        tokens = prepare_text(tokenizer, text, target_length, settings)

    def measured(folder: Path, label: str, *, curve: bool, retrieval_up_to: int, truncated: bool = False) -> Measures:
        with memory_errors(target_length, settings):
            model = load_model(folder, settings, device)
            found = evaluate_model(
                model,
                tokenizer,
                text=tokens,
                trained_length=trained_length,
                target_length=target_length,
                settings=settings,
                label=label,
                curve=curve,
                retrieval_up_to=retrieval_up_to,
                truncated=truncated,
                progress=progress,
            )
        del model
        release(device)
        return found

    source = None
    if source_dir is not None:
        up_to = min(trained_length, target_length)
        source = measured(
            Path(source_dir),
            "source",
            curve=settings.source_curve,
            retrieval_up_to=up_to,
            truncated=settings.truncated_source,
        )
    result = measured(model_dir, "result", curve=True, retrieval_up_to=target_length)
    return VerifyReport(
        protocol=protocol(tokens, trained_length, target_length, settings, device),
        result=result,
        source=source,
        short_context=None
        if source is None
        else short_context(source, result, short_window_length(settings, trained_length, target_length)),
    )


def protocol(
    tokens: TokenText, trained_length: int, target_length: int, settings: VerifySettings, device: str
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
        device=device,
        threads=torch.get_num_threads(),
        needles=settings.needles,
        seeds=settings.seeds,
        needle_form=QUESTION + ANSWER,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    from importlib import metadata

    names: dict[str, Any] = {"torch": "torch", "transformers": "transformers", "ctxforge": "ctxforge-llm"}
    found = {"python": platform.python_version()}
    for name, distribution in names.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
