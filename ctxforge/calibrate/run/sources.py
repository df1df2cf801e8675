"""The data of a run: opened or tokenised, split, and checked against the lengths that will be asked of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctxforge.calibrate.data import (
    Mixture,
    Split,
    Stage,
    TokenCache,
    distinct,
    make_guard,
    make_mixture,
    open_or_build,
    parse_source,
    split,
)
from ctxforge.calibrate.recipes import CalibrationPlan
from ctxforge.errors import UsageError


@dataclass(frozen=True)
class RunData:
    """What a run trains and measures on.

    Attributes:
        caches: of the sources, in order.
        weights: of the sources, as they were given.
        parts: what is trained on and what is held out.
    """

    caches: tuple[TokenCache, ...]
    weights: tuple[float | None, ...]
    parts: Split

    @property
    def digest(self) -> str:
        """SHA-256 of what the sources hold and how they are drawn, hex."""
        found = [[cache.header.key for cache in self.caches], list(self.weights)]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def document(self) -> list[dict[str, Any]]:
        """The sources for the provenance: names, hashes and sizes, and no path."""
        return [
            {
                "source": _named(cache.header.source),
                "sha256": cache.header.content,
                "tokens_key": cache.header.key,
                "documents": cache.header.documents,
                "tokens": cache.header.tokens,
                "weight": weight,
            }
            for cache, weight in zip(self.caches, self.weights, strict=True)
        ]


def open_data(
    specs: Sequence[str],
    tokenizer: Any,
    *,
    held_out_share: float,
    guard_texts: Sequence[str] = (),
    root: Path | None = None,
    progress: Any = None,
) -> RunData:
    """Open the sources, tokenising those that are new, and hold out a share.

    Args:
        specs: see `parse_source`.
        tokenizer: of transformers.
        held_out_share: see `split`.
        guard_texts: what will be verified on: documents that share a passage with one are left out.
        root: folder of the token caches; None for the usual one.
        progress: see `open_or_build`.

    Raises:
        UsageError: no sources, or see `open_or_build` and `split`.
    """
    if not specs:
        raise UsageError("there is no data to calibrate on", "pass --data FILE.jsonl, FOLDER or hf://name#column")
    sources = [parse_source(spec) for spec in specs]
    guard = make_guard(guard_texts) if guard_texts else None
    caches = tuple(open_or_build(one, tokenizer, guard=guard, root=root, progress=progress) for one in sources)
    parts = split(distinct(caches), held_out_share)
    return RunData(caches, tuple(one.weight for one in sources), parts)


def mix(plan: CalibrationPlan, data: RunData) -> Mixture:
    """What the plan's rows are drawn from.

    Rows that are chunks of a longer text (PoSE, CREAM) take the longest text up to the plan's that at least half of the
    tokens in usable documents allow, and never less than a row.

    Raises:
        UsageError: see `make_mixture`; no document reaches a row's length, say.
    """
    lengths = np.concatenate([_reaches(part) for part in data.parts.train])
    stages = [
        Stage(stage.steps, _text_length(lengths, stage.length, stage.text_length), stage.rows) for stage in plan.stages
    ]
    return make_mixture(
        data.parts.train,
        stages,
        weights=data.weights,
        short_share=plan.recipe.rows.short_share,
        short_length=plan.short_length,
    )


def _named(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source as it was given, without the folders of this machine."""
    found = dict(source)
    if found.get("kind") != "hub" and "location" in found:
        found["location"] = Path(str(found["location"])).name
    return found


def _reaches(part: Any) -> Any:
    """Tokens of each document, prefix included."""
    return part.lengths + len(part.cache.header.prefix)


def _text_length(lengths: Any, row: int, wanted: int) -> int:
    usable = np.sort(lengths[lengths >= row])
    if not len(usable) or wanted <= row:
        return row
    # The length that documents with half of the usable tokens reach.
    from_above = np.cumsum(usable[::-1])[::-1]
    half = usable[from_above >= from_above[0] / 2][-1]
    return int(max(row, min(wanted, half)))
