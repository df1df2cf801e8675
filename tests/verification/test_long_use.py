"""Measures of far context against naive loops, and against models that have none: a gain must be theirs to lose."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxforge.errors import UsageError
from ctxforge.verification.long_use import (
    LongPPLSettings,
    LongUse,
    delta_use,
    key_tokens,
    longppl,
    self_long_gain,
    transfer_keys,
)
from ctxforge.verification.onepass import OnePass
from ctxforge.verification.statistics import Interval, paired_bootstrap
from tests.verification import naive
from tests.verification.bundled import BOS, TRAINED, documents, extended, plain, windowed
from tests.verification.tiny import DYNAMIC, tiny, token_ids

LOW = LongPPLSettings(context=128, refresh=32, gain=0.4)


@pytest.fixture(scope="module")
def source() -> OnePass:
    return OnePass(plain(), longest=1400)


@pytest.fixture(scope="module")
def yarn() -> OnePass:
    return OnePass(extended(), longest=1400)


@pytest.fixture(scope="module")
def docs() -> list[list[int]]:
    return [document[:size] for document, size in zip(documents(2, 700), (700, 650), strict=True)]


def interval(found: LongUse) -> Interval:
    return paired_bootstrap(found.values, found.weights)[0]


def test_gain_equals_a_naive_loop(yarn: OnePass, docs: list[list[int]]) -> None:
    found = self_long_gain(yarn, docs, TRAINED, context=200, refresh=48, first=300)
    for index, document in enumerate(docs):
        full, short = naive.full_and_short(yarn.model, document, 300, 200, 48)
        assert found.full[index] == pytest.approx(np.mean(full), abs=1e-5)
        assert found.short[index] == pytest.approx(np.mean(short), abs=1e-5)
        assert found.values[index] == pytest.approx(np.mean(short) - np.mean(full), abs=1e-5)
        assert found.weights[index] == len(full) == len(document) - 300
    assert found.value == pytest.approx(np.average(found.values, weights=found.weights), abs=1e-12)


def test_gain_defaults_follow_the_trained_length(yarn: OnePass, docs: list[list[int]], source: OnePass) -> None:
    found = self_long_gain(yarn, docs, TRAINED, short_source=source)
    expected = {"first_position": 512, "short_context": 256, "refresh": 64, "short_passes": "its source"}
    assert found.parameters.items() >= expected.items()
    full, short = naive.full_and_short(yarn.model, docs[0], 512, 256, 64, short_model=source.model)
    assert found.values[0] == pytest.approx(np.mean(short) - np.mean(full), abs=1e-5)


def test_delta_use_equals_a_naive_loop(source: OnePass, yarn: OnePass, docs: list[list[int]]) -> None:
    found = delta_use(source, yarn, docs, TRAINED)
    for index, document in enumerate(docs):
        full, short = naive.full_and_short(yarn.model, document, 512, 256, 256, short_model=source.model)
        assert found.values[index] == pytest.approx(np.mean(short) - np.mean(full), abs=1e-5)
    prefixed = delta_use(source, yarn, docs, TRAINED, prefix=[BOS])
    # The source's windows are L0 long with the prefix in them.
    assert prefixed.parameters["short_context"] == 255
    ids = [BOS, *docs[1][512 - 255 : 512 + 138]]
    table = naive.log_probabilities(source.model, ids)
    short = [-float(table[i - 1, ids[i]]) for i in range(256, len(ids))]
    assert prefixed.short[1] == pytest.approx(np.mean(short), abs=1e-5)


def test_longppl_equals_a_naive_loop(source: OnePass, yarn: OnePass, docs: list[list[int]]) -> None:
    for evaluator in (yarn, source):
        naive_keys, losses = [], []
        for document in docs:
            full, short = naive.full_and_short(evaluator.model, document, 128, 128, 32)
            naive_keys.append([b - a > 0.4 and a < 2 for a, b in zip(full, short, strict=True)])
            losses.append(naive.full_and_short(yarn.model, document, 128, 128, 32)[0])
        keys = [key_tokens(evaluator, document, LOW) for document in docs]
        for mask, expected in zip(keys, naive_keys, strict=True):
            assert not mask[:128].any()
            assert mask[128:].tolist() == expected
        found = longppl(yarn, docs, LOW, keys=keys)
        flat = [x for a, k in zip(losses, naive_keys, strict=True) for x, key in zip(a, k, strict=True) if key]
        assert found.key_tokens == len(flat) > 5
        assert found.longppl == pytest.approx(math.exp(np.mean(flat)), abs=1e-4)
        assert found.tokens == sum(len(document) - 1 for document in docs)
        np.testing.assert_allclose(found.all_values, [yarn.losses(d).double().mean() for d in docs], atol=1e-5)
        if evaluator is yarn:
            alone = longppl(yarn, docs, LOW)
            assert (alone.longppl, alone.key_tokens) == (found.longppl, found.key_tokens)


def test_published_settings_are_scaled_to_the_trained_length() -> None:
    assert LongPPLSettings.scaled(131_072) == LongPPLSettings.scaled(8192) == LongPPLSettings()
    assert LongPPLSettings.scaled(512) == LongPPLSettings(context=256, refresh=64)
    assert (LongPPLSettings().gain, LongPPLSettings().ceiling) == (2, 2)


@pytest.fixture(scope="module")
def recall() -> tuple[list[list[int]], list[list[int]]]:
    """Eight documents whose last 160 tokens are their first 160 again, and the same with another's beginning."""
    raw = documents(16, 1000)
    ends = [document[:160] for document in raw[:8]]
    true = [[*end, *raw[i + 8], *end] for i, end in enumerate(ends)]
    foreign = [[*ends[i - 1], *raw[i + 8], *end] for i, end in enumerate(ends)]
    return true, foreign


def test_only_a_model_that_uses_far_context_gains(
    source: OnePass, yarn: OnePass, recall: tuple[list[list[int]], list[list[int]]]
) -> None:
    """At 2.3 times the trained length; seen: YaRN +0.155 nats a token, its controls within 0.008 of nothing."""
    true, foreign = recall
    first = len(true[0]) - 160
    good = interval(self_long_gain(yarn, true, TRAINED, first=first))
    assert good.bounds is not None
    assert good.value > 0.1
    assert good.bounds[0] > 0.03
    # The far context is there and says nothing about what comes.
    shuffled = interval(self_long_gain(yarn, foreign, TRAINED, first=first))
    assert shuffled.value < 0.03
    # 5 layers of 48 tokens reach 240 back, and the short context is 256: nothing is lost, to rounding.
    near = self_long_gain(OnePass(windowed(yarn.model, 48), longest=1400), true, TRAINED, first=first)
    assert float(np.abs(near.values).max()) < 1e-4
    # The same weights at the source's rotation do worse with the far context than without.
    plainly = self_long_gain(source, true, TRAINED, first=first)
    assert plainly.value < -1
    # Untuned PI ignores it, though its perplexity is finite and smooth.
    squeezed = interval(self_long_gain(OnePass(extended("pi"), longest=1400), true, TRAINED, first=first))
    assert abs(squeezed.value) < 0.03


def test_delta_use_tells_an_extension_from_a_truncation(
    source: OnePass, yarn: OnePass, recall: tuple[list[list[int]], list[list[int]]]
) -> None:
    """Beyond L0 of documents twice as long; seen: YaRN +0.036 nats a token, without far context 0.000, plain -0.40."""
    short = [[*document[:860], *document[-160:]] for document in recall[0]]
    good = delta_use(source, yarn, short, TRAINED)
    none = delta_use(source, OnePass(windowed(source.model, 48), longest=1400), short, TRAINED)
    lost = delta_use(source, source, short, TRAINED)
    bounds = [interval(found).bounds for found in (good, none, lost)]
    assert bounds[0] is not None
    assert bounds[0][0] > 0
    # A model that sees the last 240 tokens is no better than cutting the text, though it stands every length.
    assert bounds[1] is not None
    assert bounds[1][0] < 0
    assert abs(none.value) < 0.02
    assert interval(LongUse(**{**vars(good), "values": good.values - none.values})).bounds[0] > 0  # type: ignore[index]
    assert lost.value < -0.2


def test_a_model_without_far_context_has_no_key_tokens(yarn: OnePass, docs: list[list[int]]) -> None:
    near = OnePass(windowed(yarn.model, 48), longest=1400)
    found = longppl(near, docs, LongPPLSettings(context=256, refresh=64, gain=0.05))
    assert found.key_tokens == 0
    assert math.isnan(found.longppl)
    assert np.isnan(found.values).all()
    assert not found.weights.any()
    assert 2 < found.ppl < 5


def test_a_model_that_depends_on_length_is_measured_from_its_short_state() -> None:
    model = tiny(rope_parameters=DYNAMIC)
    runner = OnePass(model, longest=200)
    docs = [token_ids(200, seed) for seed in range(2)]
    found = self_long_gain(runner, docs, 64)
    assert "depends on the length" in found.passes
    for index, document in enumerate(docs):
        fresh = tiny(rope_parameters=DYNAMIC)
        table = naive.log_probabilities(fresh, document)
        full = [-float(table[t - 1, document[t]]) for t in range(64, 200)]
        # An input below the trained length brings transformers' dynamic NTK back from the long pass.
        naive.log_probabilities(fresh, [1, 2])
        _full, short = naive.full_and_short(fresh, document, 64, 32, 8, short_model=fresh)
        assert found.full[index] == pytest.approx(np.mean(full), abs=1e-4)
        assert found.short[index] == pytest.approx(np.mean(short), abs=1e-4)
    # What was measured before does not matter.
    assert self_long_gain(runner, docs[1:], 64).values[0] == found.values[1]


def test_documents_that_end_too_early_have_no_weight(yarn: OnePass, docs: list[list[int]]) -> None:
    found = self_long_gain(yarn, [docs[0], docs[1][:500]], TRAINED)
    alone = self_long_gain(yarn, docs[:1], TRAINED)
    assert found.weights.tolist() == [188, 0]
    assert math.isnan(found.values[1])
    assert found.value == alone.value
    # LongPPL still counts such a document's tokens, and one of a single token has none to count.
    some = longppl(yarn, [docs[0], docs[1][:50], [5]], LOW)
    assert some.all_weights.tolist() == [699, 49, 0]
    assert some.weights[1] == 0


def test_bad_input() -> None:
    def never(_ids: object) -> list[float]:
        raise AssertionError

    with pytest.raises(UsageError, match="longest document has 5 tokens, and only what follows token 8"):
        self_long_gain(never, [[1] * 5], 8)
    with pytest.raises(UsageError, match="short context of 9 tokens"):
        self_long_gain(never, [[1] * 50], 8, context=9)
    with pytest.raises(UsageError, match="short context of 0 tokens"):
        delta_use(never, never, [[1] * 50], 8, refresh=8)
    with pytest.raises(UsageError, match="do not pair"):
        longppl(never, [[1] * 200], LOW, keys=[np.zeros(3, dtype=bool)])
    with pytest.raises(UsageError):
        longppl(never, [], LOW)


def test_keys_cross_tokenizers_by_their_characters() -> None:
    # "far away, New York": the evaluator's tokens and the model's.
    spans = [(0, 3), (3, 8), (8, 9), (9, 13), (13, 18)]
    keys = np.array([False, True, False, True, True])
    to = [(0, 2), (2, 5), (5, 8), (8, 10), (10, 14), (14, 18)]
    assert transfer_keys(keys, spans, to).tolist() == [False, False, True, False, True, True]
    assert transfer_keys(np.zeros(5, dtype=bool), spans, to).tolist() == [False] * 6


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.lists(st.integers(1, 4), min_size=30, max_size=30))
def test_keys_transfer_to_themselves_and_to_characters(flags: list[bool], sizes: list[int]) -> None:
    ends = np.cumsum(sizes[: len(flags)]).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    keys = np.array(flags)
    assert transfer_keys(keys, spans, spans).tolist() == flags
    characters = transfer_keys(keys, spans, [(i, i + 1) for i in range(ends[-1])])
    assert characters.tolist() == [flag for flag, size in zip(flags, sizes, strict=False) for _ in range(size)]
