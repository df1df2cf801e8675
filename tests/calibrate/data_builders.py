"""Small data on disk, and the bundled model's tokenizer, for the tests of ctxforge.calibrate.data."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ctxforge.calibrate.data import CacheHeader, TokenCache
from ctxforge.calibrate.data.encode import Encoded
from ctxforge.calibrate.data.header import HEADER, SCHEMA, dump_header
from ctxforge.calibrate.data.writer import CacheWriter
from ctxforge.sources import bundled_model, bundled_text

BOS, EOS = 256, 257


@cache
def tokenizer() -> Any:
    """One token a byte, no prefix."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bundled_model())


def with_prefix() -> Any:
    """The same, putting a BOS before every text, as Llama's tokenizer does."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer())
    changed.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return changed


def stretches(count: int, characters: int = 400, *, apart: int = 900) -> list[str]:
    """Different stretches of English prose."""
    text = bundled_text()
    assert count * apart + characters < len(text)
    return [text[i * apart : i * apart + characters] for i in range(count)]


def write_jsonl(path: Path, texts: Iterable[Any], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, field: one}) + "\n" for i, one in enumerate(texts)), encoding="utf-8")
    return path


def texts_of(cache: TokenCache) -> list[str]:
    """What the documents of a cache of bytes say, without the token at the end."""
    return [bytes(cache.document(i)[:-1].astype(np.uint8)).decode() for i in range(len(cache))]


def synthetic(folder: Path, lengths: Sequence[int], *, prefix: tuple[int, ...] = (), salt: int = 0) -> TokenCache:
    """A cache whose document i has lengths[i] tokens, all different as far as 16 bits go."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(salt)
    with CacheWriter(folder) as writer:
        for length in lengths:
            ids = (np.arange(writer.tokens, writer.tokens + length) % 65536).astype(np.uint16)
            writer.add(Encoded(ids, np.empty((0, 2), np.int64)), int(random.integers(0, 1 << 63)) * 2, length)
        files = writer.finish()
    counts = {"documents": len(lengths), "tokens": sum(lengths), "characters": sum(lengths), "longest": max(lengths)}
    made = {"key": "0" * 64, "source": {}, "content": "", "tokenizer": "", "filters": {}, "guard": None, "files": files}
    shape = {"vocabulary": 65536, "dtype": "uint16", "prefix": prefix, "end": None, "chat": False}
    (folder / HEADER).write_bytes(dump_header(CacheHeader(schema=SCHEMA, **made, **shape, **counts)))
    return TokenCache.open(folder)
