"""Token caches of given documents, and plain losses, for the tests of ctxforge.calibrate.held_out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctxforge.calibrate.data import CacheHeader, TokenCache, whole
from ctxforge.calibrate.data.encode import Encoded
from ctxforge.calibrate.data.header import HEADER, SCHEMA, dump_header
from ctxforge.calibrate.data.split import Ranges
from ctxforge.calibrate.data.writer import CacheWriter
from ctxforge.calibrate.held_out import HeldOut, HeldOutResult


def cache_of(folder: Path, documents: Sequence[Sequence[int]], *, prefix: tuple[int, ...] = ()) -> Ranges:
    """All of a cache that holds these documents."""
    folder.mkdir(parents=True)
    with CacheWriter(folder) as writer:
        for number, document in enumerate(documents):
            writer.add(Encoded(np.array(document, np.uint16), np.empty((0, 2), np.int64)), number, len(document))
        files = writer.finish()
    lengths = [len(document) for document in documents]
    counts = {"documents": len(lengths), "tokens": sum(lengths), "characters": sum(lengths), "longest": max(lengths)}
    made = {"key": "0" * 64, "source": {}, "content": "", "tokenizer": "", "filters": {}, "guard": None, "files": files}
    shape = {"vocabulary": 65536, "dtype": "uint16", "prefix": prefix, "end": None, "chat": False}
    (folder / HEADER).write_bytes(dump_header(CacheHeader(schema=SCHEMA, **made, **shape, **counts)))
    return whole(TokenCache.open(folder))


def texts_of(held_out: HeldOut) -> list[list[int]]:
    """The long windows without their prefixes, as `delta_use` takes documents."""
    return [window.ids[window.prefix :].tolist() for window in held_out.long]


def plain_losses(model: Any, ids: Any, **inputs: Any) -> np.ndarray:
    """Losses of every token but the first from whole logits and a softmax in float64, [length - 1]."""
    tokens = torch.tensor(np.asarray(ids))[None]
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False, **inputs).logits[0].double()
    table = torch.log_softmax(logits, -1)
    return -table[torch.arange(tokens.shape[1] - 1), tokens[0, 1:]].numpy()


def result_of(use: float | None, short: float = 0.0, **changes: Any) -> HeldOutResult:
    """A result with this use and short regression."""
    full = None if use is not None else changes.pop("full_nll")
    given = {"use_interval": None, "long_nll": None if use is None else 2.0 - use, "tail_nll": None, **changes}
    return HeldOutResult(
        use=use, full_nll=full, short_nll=2 + short, short_regression=short, relative_to="source", tokens=9, **given
    )
