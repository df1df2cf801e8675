"""What is left out: short, repeated and contaminated documents, and where reading stops."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.calibrate.data import Document, Filters, Tally, make_guard
from ctxforge.calibrate.data.contamination import SHINGLE, STRIDE, every_hash, normalised, strided_hashes
from ctxforge.calibrate.data.filters import filtered
from ctxforge.errors import UsageError
from ctxforge.sources import bundled_text
from tests.calibrate.data_builders import stretches

BASE = 0x9E3779B97F4A7C15


def documents(texts: list[str]) -> Iterator[Document]:
    return (Document(str(i), text, "here") for i, text in enumerate(texts))


def letters(count: int, seed: int) -> str:
    return "".join(chr(97 + one) for one in np.random.default_rng(seed).integers(0, 26, count))


def test_short_and_repeated_documents_are_counted() -> None:
    tally = Tally()
    texts = ["long enough", "short", "long enough", "long enough ", "lone \ud800 surrogate"]
    kept = list(filtered(documents(texts), Filters(min_characters=6), None, tally))
    assert [one.document.id for one in kept] == ["0", "3"]
    assert tally.dropped == {"shorter than the minimum": 1, "repeated": 1, "not valid Unicode": 1}
    assert tally.examples["repeated"] == ["2"]
    assert tally.summary() == "1 shorter than the minimum, 1 repeated, 1 not valid Unicode"
    assert kept[0].digest == int.from_bytes(hashlib.sha256(b"long enough").digest()[:8], "little")


def test_repeats_stay_when_asked() -> None:
    kept = list(filtered(documents(["a", "a"]), Filters(deduplicate=False), None, Tally()))
    assert len(kept) == 2


@pytest.mark.parametrize("name", ["min_characters", "min_tokens", "max_documents", "max_tokens"])
def test_limits_below_one_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Filters(**{name: 0})


def test_hashes_are_the_polynomial_that_they_say() -> None:
    codes = normalised(letters(70_000, 1))  # more than one block
    found = every_hash(codes)
    assert len(found) == len(codes) - SHINGLE + 1
    for start in (0, 1, 65_535, 65_536, len(found) - 1):
        value = 0
        for code in codes[start : start + SHINGLE].tolist():
            value = (value * BASE + code) % 2**64
        assert int(found[start]) == value
    assert (strided_hashes(codes) == found[::STRIDE]).all()
    assert len(every_hash(codes[: SHINGLE - 1])) == len(strided_hashes(codes[: SHINGLE - 1])) == 0


@pytest.mark.parametrize(("shared", "found"), [(SHINGLE - 1, False), (SHINGLE + STRIDE - 1, True)])
def test_the_guard_finds_every_passage_of_1249_letters_and_none_of_999(shared: int, found: bool) -> None:
    guarded = letters(6000, 2)
    guard = make_guard([letters(3000, 3), guarded])
    for shift in range(0, 2 * STRIDE, 7):
        passage = guarded[shift * 3 : shift * 3 + shared]
        assert guard.shares(letters(400 + shift, 4) + passage + letters(900, 5)) is found


def test_layout_quotes_and_case_hide_nothing() -> None:
    guard = make_guard([bundled_text()])
    passage = bundled_text()[50_000:52_000]
    shown = passage.upper().replace(" ", "\n  ").replace('"', "“").replace("'", "’")
    assert guard.shares(shown)
    assert not guard.shares(passage[::-1])
    words = passage.split()
    words[len(words) // 4 :: len(words) // 4] = ["changed"] * len(words[len(words) // 4 :: len(words) // 4])
    assert not guard.shares(" ".join(words))  # no thousand letters in a row are the same


@settings(deadline=None, max_examples=30)
@given(st.text(st.sampled_from("aAéÉß1. ,\n\u2014\u00a0漢"), max_size=80))
def test_normalising_agrees_with_a_plain_reading(text: str) -> None:
    kept = [c for c in text.lower() if (c.isalnum() if c < "\x80" else c not in "\u2014\u00a0")]
    assert normalised(text).tolist() == [ord(c) for c in kept]


def test_contaminated_documents_are_dropped_and_the_others_stay() -> None:
    tally = Tally()
    texts = [*stretches(3, 3000, apart=5000), letters(5000, 8), bundled_text()[:900]]
    kept = list(filtered(documents(texts), Filters(), make_guard([bundled_text()]), tally))
    assert [one.document.id for one in kept] == ["3", "4"]
    assert tally.dropped == {"sharing a passage with a verification text": 3}


def test_a_guard_is_known_by_its_texts() -> None:
    one, two = make_guard(["a" * 2000, "b" * 2000]), make_guard(["b" * 2000, "a" * 2000])
    assert one.sha256 == two.sha256 == make_guard(["A " * 2000, "b" * 2000]).sha256
    assert one.sha256 != make_guard(["a" * 2000]).sha256
    assert not make_guard([]).shares("a" * 5000)
    assert not make_guard(["a" * 999]).shares("a" * 5000)
