"""The bundled calibration data: long enough, right, spread out, and nothing in it that verification measures on."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ctxforge.calibrate.data import Stage, make_guard, make_mixture, open_or_build, parse_source, plan_batch, whole
from ctxforge.sources import bundled_calibration_data, bundled_model, bundled_text
from ctxforge.verification.load import load_tokenizer
from ctxforge.verification.needles import ANSWER, QUESTION, bundled_words
from ctxforge.verification.settings import VerifySettings
from ctxforge.verification.tasks.grammar import vocabulary
from training import calibration
from training.books import HELD_OUT, training_books
from training.train import SHARES

PASSAGE = 64
BOOKS = Path(__file__).parent.parent / "training" / "runs" / "books"
NEEDLE = re.compile(r" The number of (\w+) is (\d{5})\.")
LINE = re.compile(r"^(\w+): (\w+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with gzip.open(bundled_calibration_data(), "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    assert all(list(record) == ["text"] for record in records)
    return [record["text"] for record in records]


def asked(texts: list[str], wording: re.Pattern[str]) -> tuple[list[int], list[tuple[str, str, str]], set[str]]:
    """(bytes back to the last mention, (key, last value, value) of every question, all keys)."""
    distances, answers, keys = [], [], set[str]()
    for text in texts:
        last: dict[str, tuple[int, str]] = {}
        for found in wording.finditer(text):
            key, value = found[1], found[2]
            if key in last:
                distances.append(found.start(2) - last[key][0])
                answers.append((key, last[key][1], value))
            last[key] = (found.start(2), value)
        # A lone colon in the prose itself makes no key.
        keys |= set(last) if len(last) > 3 else set()
    return distances, answers, keys


def shared(texts: list[str], held_out: str) -> list[str]:
    """Every passage of `PASSAGE` letters and digits that one of `texts` has in common with `held_out`."""
    plain = re.sub(r"[^a-z0-9]", "", held_out.lower())
    known = {plain[at : at + PASSAGE] for at in range(len(plain) - PASSAGE + 1)}
    squeezed = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in texts)
    return [one[at : at + PASSAGE] for one in squeezed for at in range(len(one)) if one[at : at + PASSAGE] in known]


def test_it_is_read_as_calibration_data(texts: list[str], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bundled_model(), VerifySettings())
    source = parse_source(str(bundled_calibration_data()))
    cache = open_or_build(source, tokenizer, guard=make_guard([bundled_text()]), root=tmp_path)
    assert (source.kind, source.column) == ("jsonl", None)
    assert dict(cache.header.dropped) == {}  # none is repeated, none shares a passage with the text
    assert len(cache) == len(texts) == calibration.DOCUMENTS
    # One id a byte, and the end of the text.
    assert cache.lengths.tolist() == [len(text.encode()) + 1 for text in texts]
    long = cache.long_documents(4096)
    assert len(long) >= 300
    assert cache.header.longest <= calibration.LONGEST + 1
    short = cache.lengths[cache.lengths < 4096]
    assert len(long) + len(short) == len(cache)
    assert 0.3 <= len(short) / len(cache) <= 0.4
    assert short.min() >= 600
    assert short.max() <= 1600  # a last fact or string may pass the length
    assert cache.lengths[long].min() >= 4500
    for length in (2048, 4096):  # 4 and 8 times the trained window
        mixture = make_mixture([whole(cache)], [Stage(10, length, 8)], short_share=0.3)
        assert mixture.stages[0].short_share == pytest.approx(0.3)
        kinds = Counter(row.kind for step in range(10) for row in plan_batch(mixture, 0, step).rows)
        assert 52 <= kinds["long"] <= 60


def test_the_file_is_small_and_has_no_time_in_it() -> None:
    data = bundled_calibration_data().read_bytes()
    assert len(data) <= 900_000
    assert data[4:8] == bytes(4)  # RFC 1952: MTIME
    assert data[3] == 0  # FLG: no name


def test_it_draws_from_the_books_that_the_model_was_trained_on() -> None:
    assert calibration.SHARES == SHARES
    assert HELD_OUT not in calibration.SHARES


def test_nothing_of_the_held_out_text_is_in_it(texts: list[str]) -> None:
    held_out = bundled_text()
    guard = make_guard([held_out])
    assert not any(guard.shares(text) for text in texts)
    assert shared(texts, held_out) == []
    # Both would see it.
    spoiled = texts[0] + held_out[20_000:22_000]
    assert guard.shares(spoiled)
    assert len(shared([texts[0] + held_out[20_000:20_100].upper()], held_out)) > 10


def test_no_key_is_a_word_that_verification_asks_with(texts: list[str]) -> None:
    keys = asked(texts, NEEDLE)[2] | asked(texts, LINE)[2]
    values = {value for _, value, _ in asked(texts, LINE)[1]}
    used = set(bundled_words()) | {part for slot in vocabulary().values() for words in slot for part in words.split()}
    assert len(keys) > 1500
    assert not keys & used
    assert not values & used
    spoiled = "".join(f" The number of {word} is 12345." for word in ("almond", "xq", "xr", "xs"))
    assert asked([spoiled], NEEDLE)[2] & used == {"almond"}


def test_every_question_has_the_answer_that_was_given(texts: list[str]) -> None:
    assert NEEDLE.fullmatch(QUESTION.format(word="fox") + ANSWER.format(digits="12345"))
    for wording, least in ((NEEDLE, 2500), (LINE, 800)):
        _, answers, _ = asked(texts, wording)
        assert len(answers) >= least
        assert [one for one in answers if one[1] != one[2]] == []
        assert [one for one in answers if len(one[0]) < 4 or len(one[0]) > 8] == []
    wrong = " The number of fox is 12345. The number of owl is 54321. The number of fox is 12346."
    assert asked([wrong], NEEDLE)[:2] == ([56], [("fox", "12345", "12346")])
    # None is cut short or broken in two.
    begun = re.compile(r"The number of \w+ is\b")
    assert [text for text in texts if len(begun.findall(text)) != len(NEEDLE.findall(text))] == []
    long = [text for text in texts if len(text) > 4095]
    several = [text for text in long if len(asked([text], NEEDLE)[0]) >= 4]
    assert len(several) / len(long) > 0.4
    returning = [
        sum(count > 1 and len(word) >= 18 and word.isalnum() for word, count in Counter(text.split()).items())
        for text in long
    ]
    assert sum(count >= 3 for count in returning) >= 15


def mostly_prose(text: str) -> bool:
    """Whether facts and questions take less than a third of a text."""
    return sum(len(found[0]) for found in NEEDLE.finditer(text)) < len(text) / 3


def test_some_documents_are_nothing_but_facts_and_questions(texts: list[str]) -> None:
    dense = [text for text in texts if not mostly_prose(text)]
    assert 0.07 < len(dense) / len(texts) < 0.2
    assert {len(text) > 4095 for text in dense} == {True, False}
    strings = [text for text in texts if len(set(re.split(r"[ \n]|\. ", text))) < 20 and "number of" not in text]
    assert 0.15 < len(strings) / len(texts) < 0.27


def test_distances_cover_the_range(texts: list[str]) -> None:
    distances = np.array(asked([text for text in texts if mostly_prose(text)], NEEDLE)[0])
    assert distances.min() < 40
    assert distances.max() > 5000
    octaves = [((distances >= low) & (distances < 2 * low)).mean() for low in (32, 64, 128, 256, 512, 1024, 2048)]
    assert min(octaves) > 0.08
    assert max(octaves) < 0.2
    assert (distances >= 4096).mean() > 0.02
    assert np.quantile(distances, [0.1, 0.25, 0.5, 0.75, 0.9]) == pytest.approx([60, 120, 400, 1200, 2600], rel=0.25)


def test_most_questions_can_be_answered_inside_a_training_window(texts: list[str]) -> None:
    asking = [text for text in texts if NEEDLE.search(text)]
    answerable = {}
    for length in (2048, 4096):
        cut = [text[at : at + length] for text in asking for at in range(0, len(text) - length, 300)]
        told = [NEEDLE.findall(text) for text in cut]
        answerable[length] = 1 - sum(len(set(one)) for one in told) / sum(map(len, told))
    assert answerable[2048] > 0.5
    assert answerable[4096] > 0.65


def test_the_same_seed_writes_the_same_documents() -> None:
    halves = dict(zip("ab", [bundled_text()[:100_000], bundled_text()[100_000:]], strict=True))
    once, again = (calibration.documents(halves, {"a": 2.0, "b": 1.0}, 12, seed=5) for _ in range(2))
    assert once == again
    assert calibration.packed(calibration.lines_of(once)) == calibration.packed(calibration.lines_of(again))
    other = calibration.documents(halves, {"a": 2.0, "b": 1.0}, 12, seed=6)
    assert not set(once) & set(other)
    with pytest.raises(ValueError, match="used up"):
        calibration.documents(halves, {"a": 1.0}, 60, seed=5)


@pytest.mark.skipif(not (BOOKS / "done").exists(), reason="python -m training.books has not been run")
def test_the_shipped_file_is_what_the_books_give(texts: list[str]) -> None:
    books = training_books(BOOKS)
    assert calibration.documents(books, calibration.SHARES, calibration.DOCUMENTS, calibration.SEED) == texts
