"""Long texts are tokenised in pieces, with the ids of the whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers.normalizers import Prepend

from ctxforge.calibrate.data import Document
from ctxforge.calibrate.data.encode import Encoder
from ctxforge.calibrate.data.pieces import PIECE, pieces
from ctxforge.sources import bundled_text
from tests.calibrate.data_builders import EOS, tokenizer


def long_text(breaks: str = "\n") -> str:
    text = bundled_text().replace("\n", breaks)
    return "".join(f"{i} {text}" for i in range(4 * PIECE // len(text)))


def test_pieces_are_the_text() -> None:
    text = long_text()
    found = pieces(text, tokenizer().backend_tokenizer)
    assert "".join(found) == text
    assert len(found) == 3
    assert all(PIECE <= len(one) <= 2 * PIECE for one in found)
    assert all(one.endswith("\n") for one in found[:-1])
    encoded = Encoder(tokenizer()).encode([Document("a", text, ""), Document("b", "short", "")])
    assert encoded[0].ids.tolist() == [*text.encode(), EOS]
    assert encoded[1].ids.tolist() == [*b"short", EOS]


def test_no_cut_without_lines_or_with_something_before_each_text() -> None:
    one_line = long_text(" ")
    assert pieces(one_line, tokenizer().backend_tokenizer) == [one_line]
    prepending = copy.deepcopy(tokenizer().backend_tokenizer)
    prepending.normalizer = Prepend("_")
    assert pieces(long_text(), prepending) == [long_text()]


@pytest.mark.real_model
def test_smollm2_has_the_same_ids() -> None:
    from transformers import AutoTokenizer

    from tests import assets

    using: Any = AutoTokenizer.from_pretrained(assets.smollm2_folder())
    for text in (assets.emma_text() * 2, long_text()):
        assert len(pieces(text, using.backend_tokenizer)) > 1
        found = Encoder(using).encode([Document("a", text, "")])[0].ids.tolist()
        assert found == [*using(text, add_special_tokens=False, verbose=False)["input_ids"], using.eos_token_id]
