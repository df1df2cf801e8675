"""The smoke tier: does it load, stay finite up to the last position, and survive its cache? Seconds, no text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctxforge.sources import bundled_text
from ctxforge.verification.cache_check import cache_difference
from ctxforge.verification.load import load_model, load_tokenizer, memory_errors, pick_device, pick_dtype
from ctxforge.verification.measure import prepare_text
from ctxforge.verification.measures import Measures
from ctxforge.verification.report import VerifyReport
from ctxforge.verification.run import protocol
from ctxforge.verification.settings import VerifySettings

_TOKENS = 192


def smoke(model_dir: Path, *, trained_length: int, target_length: int, settings: VerifySettings) -> VerifyReport:
    """A report without perplexity or retrieval: `finite` and `cache_difference` only.

    A few hundred tokens stand at positions around the trained length and at the end of the target length.

    Raises:
        CheckpointError: transformers cannot load it.
        ResourceError: out of memory.
    """
    device = pick_device(settings.device)
    settings = replace(settings, dtype=pick_dtype(settings.dtype, model_dir, device, min(_TOKENS, target_length)))
    tokenizer = load_tokenizer(model_dir, settings)
    tokens = prepare_text(tokenizer, bundled_text()[:20_000], min(_TOKENS, target_length), settings)
    with memory_errors(_TOKENS, settings):
        model = load_model(model_dir, settings, device)
        found = cache_difference(model, tokens.body, trained_length, target_length)
        finite = _finite_at_the_end(model, tokens.body, target_length)
    measures = Measures(
        label="result",
        lengths=(),
        buckets=(),
        retrieval=(),
        answers=(),
        window_buckets=(),
        short_windows=(),
        beyond=(),
        truncated=(),
        cache_difference=None if found is None else found.largest,
        cache_rounding=0.0 if found is None else found.rounding,
        passes="a few hundred tokens",
        retrieval_way="",
        head="full",
        attention=str(getattr(model.config, "_attn_implementation", "unknown")),
        dtype=str(model.dtype).removeprefix("torch."),
        finite=finite,
    )
    return VerifyReport(
        protocol=protocol(tokens, trained_length, target_length, settings, device),
        result=measures,
        source=None,
        short_context=None,
    )


def _finite_at_the_end(model: Any, ids: tuple[int, ...], target_length: int) -> bool:
    count = min(_TOKENS, len(ids), target_length)
    tokens = torch.tensor([list(ids[:count])], device=model.device)
    positions = torch.arange(target_length - count, target_length, device=model.device).unsqueeze(0)
    with torch.no_grad():
        logits = model(
            input_ids=tokens, position_ids=positions, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits
    return bool(torch.isfinite(logits).all())
