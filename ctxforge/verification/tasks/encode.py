"""Text pieces as token ids that can be joined: the ids of `a + b` are those of `a` followed by those of `b`.

A piece is tokenised behind an anchor, in the surroundings in which it will stand, and the anchor's ids are taken off.
So a SentencePiece tokenizer that puts a space in front of every text puts it in front of the anchor, and no tokenizer
needs to be known by name. What the ids decode to must be the text again, or the tokenizer is refused: a score on other
text than the one asked about would mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ctxforge.errors import UnsupportedError

# What a piece that begins with a space stands behind, and what any other piece stands behind.
_SENTENCE_END, _LINE_END = ".", "\n"


class Encoder:
    """Tokenises pieces once and remembers them.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, tuple[int, ...]] = {}
        self.anchors = {text: tuple(self._batch([text])[0]) for text in (_SENTENCE_END, _LINE_END)}

    def __call__(self, text: str) -> tuple[int, ...]:
        """Ids of one piece.

        Raises:
            UnsupportedError: they do not decode to the piece's text, white space aside.
        """
        if text not in self.known:
            self.all([text])
        return self.known[text]

    def all(self, texts: Iterable[str]) -> None:
        """Tokenise many pieces in one call, to be had one by one afterwards."""
        wanted = [text for text in dict.fromkeys(texts) if text not in self.known]
        if wanted:
            self.known.update(zip(wanted, self.once(wanted), strict=True))

    def once(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of many pieces that are not worth remembering, such as random values."""
        anchors = [_SENTENCE_END if text.startswith(" ") else _LINE_END for text in texts]
        batch = self._batch([anchor + text for anchor, text in zip(anchors, texts, strict=True)])
        pieces = [
            self._without_anchor(anchor, text, ids) for anchor, text, ids in zip(anchors, texts, batch, strict=True)
        ]
        for text, piece, back in zip(texts, pieces, self._decoded(pieces), strict=True):
            if "".join(back.split()) != "".join(text.split()) or not piece:
                raise UnsupportedError(
                    f"this tokenizer turns {text[:60]!r} into {back[:60]!r}, so a score on it would mean nothing.",
                    "Verify with tasks whose texts it can spell, or without tasks.",
                )
        return pieces

    def fact(self, lead: str, value: str, end: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of `lead + value + end`, and of what comes behind `lead` in them, up to the end of the value.

        Where the value's last token takes in what follows, so does the answer: a model that copies writes it so.
        """
        before = self(lead)
        whole, up_to_value = self.once([lead + value + end, lead + value])
        if whole[: len(before)] != before:
            return whole, self.once([value])[0]
        if whole[: len(up_to_value)] == up_to_value:
            return whole, whole[len(before) : len(up_to_value)]
        return whole, whole[len(before) :]

    def plain(self, text: str) -> tuple[int, ...]:
        """Ids of a text of the user's, as it is and unchecked."""
        return self._without_anchor(_LINE_END, text, self._batch([_LINE_END + text])[0])

    def start(self, text: str) -> tuple[int, ...]:
        """Ids of a text that stands at the very beginning, where there is nothing to anchor it."""
        return tuple(self._batch([text])[0]) if text else ()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with its spaces as they are."""
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def _without_anchor(self, anchor: str, text: str, ids: list[int]) -> tuple[int, ...]:
        front = self.anchors[anchor]
        if tuple(ids[: len(front)]) == front:
            return tuple(ids[len(front) :])
        # The tokenizer merges across the anchor's end.
        return tuple(self._batch([text])[0])

    def _batch(self, texts: list[str]) -> list[list[int]]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and backend.truncation is None and backend.padding is None:
            # The same ids as the call below gives, without what it makes around them: half of a prompt's time.
            encode = getattr(backend, "encode_batch_fast", backend.encode_batch)
            return [encoding.ids for encoding in encode(texts, add_special_tokens=False)]
        found = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return [[int(i) for i in ids] for ids in found]

    def _decoded(self, pieces: Sequence[tuple[int, ...]]) -> list[str]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and len(pieces) > 1:
            found: list[str] = backend.decode_batch([list(piece) for piece in pieces], skip_special_tokens=False)
            return found
        return [self.decode(piece) for piece in pieces]
