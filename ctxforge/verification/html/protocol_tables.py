"""Perplexity under published protocols, and the worth of far context, as tables with their traps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ctxforge.lengths import format_length
from ctxforge.verification.gates.estimation import estimate
from ctxforge.verification.gates.measurement import difference
from ctxforge.verification.html import numbers
from ctxforge.verification.html.tables import Table
from ctxforge.verification.statistics import paired_bootstrap

if TYPE_CHECKING:
    from ctxforge.verification.measures import Measures
    from ctxforge.verification.protocols.result import Parameter, ProtocolResult

FAR_CONTEXT_TRAPS = (
    "A gain of 0 is what a model shows that ignores far context, however good its perplexity is.",
    "The model is its own evaluator for LongPPL: one that fails on a token does not count it as key. Read the number "
    "of key tokens beside it, and compare only numbers made with the same short context and thresholds.",
)


def protocol_scores(models: Sequence[Measures], trained_length: int) -> Table:
    """A row a protocol and length: perplexity of every model, and the result's difference to the source."""
    keys = dict.fromkeys((p.protocol, p.length) for model in models for p in model.protocols)
    measured = [model for model in models if model.protocols]
    paired = len(measured) == 2
    rows = []
    for name, length in keys:
        found = [_find(model, name, length) for model in measured]
        shown = next(p for p in found if p is not None)
        rows.append(
            (
                name,
                numbers.length(length, trained_length),
                *(numbers.NONE if p is None else numbers.perplexity(p.ppl) for p in found),
                *([_difference(found[0], found[1])] if paired else []),
                str(len(shown.documents)),
                str(shown.windows),
                str(shown.tokens),
            )
        )
    header = (
        *("protocol", "window", *(model.label for model in measured)),
        *(("difference, nats (95 %)",) if paired else ()),
        *("documents", "windows", "scored tokens"),
    )
    return Table("Perplexity of whole windows, by protocol", header, tuple(rows))


def protocol_notes(models: Sequence[Measures]) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(protocol, its parameters in words, its traps) of everything that was run.

    The parameters are one line where they are the same at every length, else a line a length.
    """
    found: dict[str, tuple[dict[str, list[int]], dict[str, None]]] = {}
    per_word: dict[str, list[str]] = {}
    for model in models:
        for result in model.protocols:
            if (words := getattr(result, "word_perplexity", None)) is not None:
                per_word.setdefault(result.protocol, []).append(
                    f"{model.label} {numbers.perplexity(words)} a word, "
                    f"{numbers.number(getattr(result, 'bits_per_byte', math.nan))} bits a byte"
                )
            ways, traps = found.setdefault(result.protocol, ({}, {}))
            lengths = ways.setdefault(parameters_words(result.parameters), [])
            if result.length not in lengths:
                lengths.append(result.length)
            traps.update(dict.fromkeys(result.traps))
    return [
        (
            name,
            (
                *(
                    words if len(ways) == 1 else f"{', '.join(map(format_length, lengths))}: {words}"
                    for words, lengths in ways.items()
                ),
                *(("as lm-eval reports it: " + "; ".join(per_word[name]),) if name in per_word else ()),
            ),
            tuple(traps),
        )
        for name, (ways, traps) in found.items()
    ]


def parameters_words(parameters: Mapping[str, Parameter]) -> str:
    """The parameters of a protocol in words; those that change nothing are left out."""
    return "; ".join(words for name, value in parameters.items() if (words := _parameter(name, value)))


def far_context(models: Sequence[Measures]) -> Table:
    """A row a model: what far context is worth to it, and LongPPL."""
    rows = []
    for model in models:
        found = model.far_context
        if found is None:
            continue
        keys = sum(found.key_counts)
        share = f" ({100 * keys / found.tokens:.2g} %)" if found.tokens else ""
        (interval,) = paired_bootstrap(found.gains) if found.gains else (None,)
        rows.append(
            (
                model.label,
                numbers.nats(found.gain),
                numbers.bounds(interval, numbers.nats),
                numbers.perplexity(found.longppl) if keys else numbers.NONE,
                f"{keys} of {found.tokens}{share}",
            )
        )
    header = ("model", "gain, nats a token", "95 % over windows", "LongPPL", "key tokens")
    return Table("What far context is worth", header, tuple(rows))


def far_context_words(models: Sequence[Measures]) -> str:
    """What was compared with what; empty where nothing was."""
    found = next((model.far_context for model in models if model.far_context is not None), None)
    if found is None:
        return ""
    return (
        f"Gain: the loss with a short context minus the loss with the full one, over the tokens from number "
        f"{found.first} on. The short context has {found.context} to {found.context + found.refresh} tokens. "
        f"LongPPL (arXiv 2410.23771): perplexity of the full context over key tokens, those that gain more than "
        f"{found.key_gain:g} nats and then cost less than {found.key_ceiling:g}."
    )


def _find(model: Measures, name: str, length: int) -> ProtocolResult | None:
    return next((p for p in model.protocols if (p.protocol, p.length) == (name, length)), None)


def _difference(source: ProtocolResult | None, result: ProtocolResult | None) -> str:
    """Result minus source in nats, documents paired."""
    if source is None or result is None or len(source.documents) != len(result.documents):
        return numbers.NONE
    pairs = zip(source.documents, result.documents, strict=True)
    kept = [(s, r) for s, r in pairs if s.weight > 0 and r.weight > 0]
    if not kept:
        return numbers.NONE
    found = estimate(
        difference(
            [r.value for _, r in kept],
            [s.value for s, _ in kept],
            unit="document",
            weights=[r.weight for _, r in kept],
            source_weights=[s.weight for s, _ in kept],
        )
    )
    if found.bounds is None:
        return f"{numbers.nats(found.value)} (too few: {found.units})"
    return f"{numbers.nats(found.value)} ({numbers.bounds(found, numbers.nats)})"


def _parameter(name: str, value: Parameter) -> str:
    if name == "stride":
        return f"stride {value}"
    if name == "truncate":
        return "documents cut to one window" if value else "windows over whole documents"
    if name == "prefix_tokens":
        return {0: "no prefix token", 1: "a prefix token before each window"}.get(
            int(value or 0), f"{value} prefix tokens before each window"
        )
    if name == "prefix_token":
        return f"token {value} before the first"
    if name == "mean":
        return f"mean {value}"
    if name == "shorter_documents":
        return f"{value} documents shorter than the window" if value else ""
    if name == "concatenated":
        return "documents as one stream" if value else "documents one by one"
    if name == "batch_size":
        return f"batches of {value} windows" if value != 1 else ""
    if name == "context_len":
        return f"disjoint windows that begin with {value} token of context"
    if name == "base":
        return f"{value} ** loss"
    return f"{name.replace('_', ' ')}: {value}"
