from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxforge.errors import UsageError
from ctxforge.lengths import format_length, parse_length


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("64k", 65536), ("64K", 65536), ("1M", 1048576), ("65536", 65536), ("0.5M", 524288), ("8x", 4096), ("1.5x", 768)],
)
def test_lengths_as_people_write_them(text: str, tokens: int) -> None:
    assert parse_length(text, relative_to=512) == tokens


@pytest.mark.parametrize(
    "text", ["", "0", "0k", "-4k", "1.3", "1.3k", "64kb", "x", "nan", "inf", "1e5", "six", "1/2", "8x", "9" * 30, "٣"]
)
def test_what_is_no_length_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_length(text)
    assert "\n" not in caught.value.cause + caught.value.remedy


@given(st.integers(1, 2**40))
def test_formatting_round_trips(tokens: int) -> None:
    assert parse_length(format_length(tokens)) == tokens


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_length(text, relative_to=7) > 0
