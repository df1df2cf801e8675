"""A source as a stream of documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ctxforge.calibrate.data.chat import render, require_template
from ctxforge.calibrate.data.documents import Document, Tally
from ctxforge.calibrate.data.fields import text_or_messages
from ctxforge.calibrate.data.files import count_bytes, files_of
from ctxforge.calibrate.data.folder import folder_values, text_value
from ctxforge.calibrate.data.hub import hub_values
from ctxforge.calibrate.data.jsonl import jsonl_values
from ctxforge.calibrate.data.parquet import parquet_values
from ctxforge.calibrate.data.spec import DataSource
from ctxforge.errors import UsageError


def read_documents(
    source: DataSource, tokenizer: Any, tally: Tally, *, revision: str | None = None
) -> Iterator[Document]:
    """The documents of a source in its order. Memory: the largest document, and the reader's buffer.

    Args:
        source: see `parse_source`.
        tokenizer: renders chats; not used for text.
        tally: gets the counts of what was left out, and how many bytes were read.
        revision: the commit of a Hub data set.

    Raises:
        UsageError: data that is empty, binary, not UTF-8 or malformed, or a column that isn't there.
        UnsupportedError: a Hub data set that is a script.
        ResourceError: a file that can't be read.
        HubError: the Hub or the network stood in the way.
    """
    chats: bool | None = None
    for name, value in _values(source, tally, revision):
        found = text_or_messages(value, f"{name} of {source.name}")
        if found is None:
            tally.drop("empty", name)
            continue
        if chats is None:
            chats = not isinstance(found, str)
            if chats:
                require_template(tokenizer, source.name)
        if chats == isinstance(found, str):
            raise UsageError(
                f"{source.name} mixes text and chats: {name}", "give them as two sources, or name the column"
            )
        if isinstance(found, str):
            yield Document(name, found, source.name)
            continue
        text, spans = render(tokenizer, found, f"{name} of {source.name}")
        if spans is None:
            tally.drop("chat with an answer that its template leaves out", name)
        else:
            yield Document(name, text, source.name, spans)


def _values(source: DataSource, tally: Tally, revision: str | None) -> Iterator[tuple[str, Any]]:
    if source.kind == "hub":
        yield from hub_values(source, revision)
        return
    files = files_of(source)
    count_bytes(files, tally)
    if source.kind == "jsonl":
        yield from jsonl_values(files, source.column, tally)
    elif source.kind == "parquet":
        yield from parquet_values(files, source.column, tally)
    elif source.kind == "text":
        yield from text_value(source.path, tally)
    else:
        yield from folder_values(files, tally, by_repository=source.by_repository)
