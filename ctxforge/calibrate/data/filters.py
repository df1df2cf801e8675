"""Which documents of a source are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from ctxforge.calibrate.data.contamination import ContaminationGuard
from ctxforge.calibrate.data.documents import Document, Tally
from ctxforge.errors import UsageError

TOO_SHORT = "shorter than the minimum"
REPEATED = "repeated"
CONTAMINATED = "sharing a passage with a verification text"
NOT_UNICODE = "not valid Unicode"


@dataclass(frozen=True)
class Filters:
    """Limits on documents and on their number.

    Attributes:
        min_characters: shorter documents are left out before they are tokenised. A tokenizer spends a token on about
            3 to 5 characters of prose, so 3.2 times a length in tokens leaves out little that would have reached it.
        min_tokens: documents with fewer tokens are left out.
        max_documents: stop after so many kept documents.
        max_tokens: stop after the document with which the kept ones reach so many tokens.
        deduplicate: leave out documents whose text is exactly that of an earlier one.
    """

    min_characters: int = 1
    min_tokens: int = 1
    max_documents: int | None = None
    max_tokens: int | None = None
    deduplicate: bool = True

    def __post_init__(self) -> None:
        for name in ("min_characters", "min_tokens", "max_documents", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} of {value} leaves nothing to keep", "give at least 1")


@dataclass(frozen=True)
class Kept:
    """A document that passed the filters on text.

    Attributes:
        document: the document.
        digest: 64 bits of the SHA-256 of its text in UTF-8; which part of the data it falls into depends on it.
    """

    document: Document
    digest: int


def filtered(
    documents: Iterator[Document], filters: Filters, guard: ContaminationGuard | None, tally: Tally
) -> Iterator[Kept]:
    """Pass on the documents that are long enough, new and clean, counting the others by reason.

    Memory: about 60 bytes for each document that was passed on, to know it again. Two texts are held equal when 64
    bits of their SHA-256 are; among ten million documents one pair collides by chance with odds of 3 in a million.
    """
    seen: set[int] = set()
    for document in documents:
        if len(document.text) < filters.min_characters:
            tally.drop(TOO_SHORT, document.id)
            continue
        try:
            data = document.text.encode("utf-8")
        except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
            tally.drop(NOT_UNICODE, document.id)
            continue
        digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
        if filters.deduplicate and digest in seen:
            tally.drop(REPEATED, document.id)
        elif guard is not None and guard.shares(document.text):
            tally.drop(CONTAMINATED, document.id)
        else:
            if filters.deduplicate:
                seen.add(digest)
            yield Kept(document, digest)
