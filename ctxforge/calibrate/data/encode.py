"""Texts as token ids, as the model's own tokenizer makes them, in batches."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.data.documents import Document
from ctxforge.calibrate.data.pieces import pieces
from ctxforge.errors import UnsupportedError
from ctxforge.verification.text import added_prefix

_SMALL = 1 << 16
_GROUP_CHARACTERS = 1 << 21

Ids = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Encoded:
    """A document's tokens.

    Attributes:
        ids: the text's own tokens, with the end-of-text token behind it where there is one; uint16 or uint32 [count].
        spans: of a chat, the ranges of `ids` that the assistant wrote, int64 [ranges, 2].
    """

    ids: Ids
    spans: NDArray[np.int64]


class Encoder:
    """A tokenizer, ready for batches; a copy of its fast part, so that nobody else's settings change.

    Args:
        tokenizer: of transformers.
        chats: whether the texts are rendered chats, which bring their own beginning and end.

    Attributes:
        prefix: what the tokenizer puts before a text. It is not stored with the documents: every window gets it.
        end: the end-of-text token that is put behind each document, or None.
        vocabulary: how many ids the tokenizer has.
        dtype: uint16 where every id of the vocabulary fits, else uint32.

    Raises:
        UnsupportedError: chats with a tokenizer that doesn't say where its tokens come from.
    """

    def __init__(self, tokenizer: Any, *, chats: bool = False) -> None:
        self.chats = chats
        self._slow = tokenizer
        self._fast = _own_copy(tokenizer)
        if chats and self._fast is None:
            raise UnsupportedError(
                "chats need a fast tokenizer, which says which text a token stands for",
                "use a model with tokenizer.json, or render the chats to text yourself",
            )
        self.vocabulary = len(tokenizer)
        self.prefix: tuple[int, ...] = () if chats else tuple(added_prefix(tokenizer))
        self.end: int | None = None if chats else tokenizer.eos_token_id
        self.dtype: type[np.uint16] | type[np.uint32] = np.uint16 if self.vocabulary <= _SMALL else np.uint32

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """The tokens of some documents, as many threads as the tokenizers library uses."""
        texts = [document.text for document in documents]
        tail = [] if self.end is None else [self.end]
        none = np.empty((0, 2), np.int64)
        if self._fast is None:
            # verbose=False: a text longer than the model's maximum is the point here.
            found = (self._slow(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts)
            return [Encoded(np.array(ids + tail, self.dtype), none) for ids in found]
        if not self.chats:
            parts = [pieces(text, self._fast) for text in texts]
            flat = self._in_groups([one for part in parts for one in part])
            end = np.array(tail, self.dtype)
            return [Encoded(np.concatenate([*islice(flat, len(part)), end]), none) for part in parts]
        whole = self._fast.encode_batch(texts, add_special_tokens=False)
        return [
            Encoded(np.array(one.ids, self.dtype), _token_spans(document, one.offsets))
            for document, one in zip(documents, whole, strict=True)
        ]

    def _in_groups(self, texts: Sequence[str]) -> Iterator[Ids]:
        """The ids of each text; the library holds the tokens of a few million characters at a time."""
        group: list[str] = []
        size = 0
        for index, text in enumerate(texts):
            group.append(text)
            size += len(text)
            if size >= _GROUP_CHARACTERS or index == len(texts) - 1:
                for one in self._fast.encode_batch_fast(group, add_special_tokens=False):
                    yield np.array(one.ids, self.dtype)
                group, size = [], 0


def tokenizer_digest(tokenizer: Any) -> str:
    """The SHA-256 of everything about a tokenizer that decides about ids and chats, in hex."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        text = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab(), repr(tokenizer)], sort_keys=True)
    elif backend.truncation is None and backend.padding is None:
        text = backend.to_str()
    else:
        text = _own_copy(tokenizer).to_str()
    split = bool(getattr(tokenizer, "split_special_tokens", False))
    known = (len(tokenizer), added_prefix(tokenizer), tokenizer.eos_token_id, split, tokenizer.chat_template)
    return hashlib.sha256(f"{text}\0{known!r}".encode("utf-8", "surrogatepass")).hexdigest()


def _own_copy(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    own = copy.deepcopy(backend)
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    return own


def _token_spans(document: Document, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """The ranges of tokens that begin inside the ranges of characters."""
    starts = np.array([start for start, _ in offsets], np.int64)
    spans = np.array(document.assistant or (), np.int64).reshape(-1, 2)
    return np.searchsorted(starts, spans, side="left").astype(np.int64)
