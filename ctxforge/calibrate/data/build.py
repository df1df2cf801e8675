"""Making a token cache: whole or not at all, and once however many processes ask for it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ctxforge.calibrate.data.cache import TokenCache
from ctxforge.calibrate.data.contamination import ContaminationGuard
from ctxforge.calibrate.data.digests import SourceDigest, digest_source
from ctxforge.calibrate.data.documents import Progress, Tally
from ctxforge.calibrate.data.encode import Encoded, Encoder, tokenizer_digest
from ctxforge.calibrate.data.filters import TOO_SHORT, Filters, Kept, filtered
from ctxforge.calibrate.data.header import HEADER, SCHEMA, CacheHeader, DamagedCacheError, dump_header
from ctxforge.calibrate.data.read import read_documents
from ctxforge.calibrate.data.spec import DataSource
from ctxforge.calibrate.data.writer import CacheWriter
from ctxforge.checkpoint.cache import cache_root
from ctxforge.checkpoint.staging import commit, locked, staged, sync_tree, write_new, writing
from ctxforge.errors import ResourceError, UsageError

_BATCH_CHARACTERS = 1 << 21
_BATCH_DOCUMENTS = 2048
_AHEAD = 2
_WAIT_SECONDS = 0.1


def open_or_build(
    source: DataSource,
    tokenizer: Any,
    *,
    filters: Filters | None = None,
    guard: ContaminationGuard | None = None,
    root: Path | None = None,
    progress: Progress | None = None,
) -> TokenCache:
    """The token cache of a source: the one on disk where there is a whole one of the same content, else a new one.

    Another process that is making the same cache is waited for. Memory: the text of three batches of 2 million
    characters, or of one document where that is longer; about 110 bytes a character for the batch in the tokenizer
    (for the whole of a longer document where its tokenizer doesn't let it be cut: `pieces`); 60 bytes a document.

    Args:
        source: see `parse_source`.
        tokenizer: of transformers.
        filters: which documents are kept.
        guard: texts that no document may share a passage with.
        root: the folder of all caches; None takes `tokens` in ctxforge's cache folder.
        progress: called with ("tokenising", bytes read, bytes in all).

    Raises:
        UsageError: the data is empty, malformed or all left out; see `read_documents`.
        UnsupportedError: a Hub data set that is a script.
        ResourceError: no space, not readable or writable, or the data changed meanwhile.
        HubError: the Hub or the network stood in the way.
    """
    filters = filters or Filters()
    found = digest_source(source, progress)
    identity = _identity(source, found, tokenizer, filters, guard)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    out = (root or cache_root() / "tokens") / key
    with suppress(DamagedCacheError):
        return TokenCache.open(out)
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        _enter_when_free(held, out, progress)
        with suppress(DamagedCacheError):  # the process that held the lock has made it
            return TokenCache.open(out)
        shutil.rmtree(out, ignore_errors=True)
        with staged(out) as folder:
            tally = Tally()
            documents = read_documents(source, tokenizer, tally, revision=found.revision)
            header = _fill(folder, filtered(documents, filters, guard, tally), tokenizer, filters, tally, progress)
            if not header["documents"]:
                why = f": {tally.summary()}" if tally.dropped else ""
                raise UsageError(
                    f"no document of {source.name} is left{why}", "give other data, or lower the minimum lengths"
                )
            found.require_unchanged(source)
            told: dict[str, Any] = {
                "content": found.sha256,
                "source": _named(source, found),
                "filters": asdict(filters),
            }
            named = {"schema": SCHEMA, "key": key, **{name: identity[name] for name in ("tokenizer", "guard")}}
            write_new(folder / HEADER, dump_header(CacheHeader(**named, **told, **header)))
            sync_tree(folder)
            commit(folder, out)
    return TokenCache.open(out)


def _identity(
    source: DataSource, found: SourceDigest, tokenizer: Any, filters: Filters, guard: ContaminationGuard | None
) -> dict[str, Any]:
    """Everything that decides about the content of a cache; no path, no time, no weight."""
    return {
        "schema": SCHEMA,
        "kind": source.kind,
        "column": source.column,
        "by_repository": source.by_repository,
        "content": found.sha256,
        "tokenizer": tokenizer_digest(tokenizer),
        "filters": asdict(filters),
        "guard": None if guard is None else guard.sha256,
    }


def _named(source: DataSource, found: SourceDigest) -> dict[str, Any]:
    named = {name: value for name, value in asdict(source).items() if name != "weight"}
    return {**named, "revision": found.revision}


def _enter_when_free(held: ExitStack, out: Path, progress: Progress | None) -> None:
    """Take the lock of `out`, after whoever holds it."""
    while True:
        try:
            held.enter_context(locked(out))
            return
        except ResourceError as error:
            if not isinstance(error.__context__, BlockingIOError):
                raise
        if progress is not None:
            progress("waiting for another process that tokenises the same data", 0, 0)
        time.sleep(_WAIT_SECONDS)


def _fill(
    folder: Path, kept: Iterator[Kept], tokenizer: Any, filters: Filters, tally: Tally, progress: Progress | None
) -> dict[str, Any]:
    """Write the documents into `folder`; the fields of the header that come of it."""
    first = next(kept, None)
    encoder = Encoder(tokenizer, chats=first is not None and first.document.assistant is not None)
    rest = iter(()) if first is None else chain([first], kept)
    with CacheWriter(folder) as writer, closing(_encoded(rest, encoder, tally, progress)) as stream:
        for one, encoded in stream:
            if len(encoded.ids) < filters.min_tokens:
                tally.drop(TOO_SHORT, one.document.id)
                continue
            writer.add(encoded, one.digest, len(one.document.text))
            if writer.documents == filters.max_documents or writer.tokens >= (filters.max_tokens or np.inf):
                break
        files = writer.finish()
    return {
        "vocabulary": encoder.vocabulary,
        "dtype": np.dtype(encoder.dtype).name,
        "prefix": encoder.prefix,
        "end": encoder.end,
        "chat": encoder.chats,
        "documents": writer.documents,
        "tokens": writer.tokens,
        "characters": writer.characters,
        "longest": writer.longest,
        "dropped": dict(sorted(tally.dropped.items())),
        "examples": {reason: tuple(names) for reason, names in sorted(tally.examples.items())},
        "files": files,
    }


def _encoded(
    kept: Iterator[Kept], encoder: Encoder, tally: Tally, progress: Progress | None
) -> Generator[tuple[Kept, Encoded], None, None]:
    """The tokens of each document, in order; the next batches are read while one is tokenised."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: deque[tuple[list[Kept], Future[list[Encoded]]]] = deque()
        try:
            for batch in chain(_batches(kept), (None for _ in range(_AHEAD))):
                if batch is not None:
                    ahead.append((batch, pool.submit(encoder.encode, [one.document for one in batch])))
                if ahead and (batch is None or len(ahead) >= _AHEAD):
                    done, future = ahead.popleft()
                    yield from zip(done, future.result(), strict=True)
                    if progress is not None:
                        progress("tokenising", tally.bytes_done, tally.bytes_total)
        finally:
            for _, future in ahead:
                future.cancel()


def _batches(kept: Iterator[Kept]) -> Iterator[list[Kept]]:
    batch: list[Kept] = []
    characters = 0
    for one in kept:
        batch.append(one)
        characters += len(one.document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
