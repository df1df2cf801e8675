"""Each peer's protocol against a plain re-implementation on bare forwards, on the bundled model."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ctxforge.errors import UsageError
from ctxforge.verification.onepass import OnePass
from ctxforge.verification.perplexity import by_length
from ctxforge.verification.protocols import (
    PROTOCOLS,
    ProtocolResult,
    ProtocolSettings,
    lm_eval_rolling,
    longlora,
    one_pass,
    pi,
    run_protocol,
    text_length,
    yarn,
    yarn_truncated,
)
from tests.verification import naive
from tests.verification.bundled import BOS, EOS, documents, plain, texts


@pytest.fixture(scope="module")
def runner() -> OnePass:
    return OnePass(plain(), longest=1024)


@pytest.fixture(scope="module")
def docs() -> list[list[int]]:
    # One of several windows, one whose last window is short, one shorter than the longest window.
    return [document[:size] for document, size in zip(documents(3, 900), (900, 701, 300), strict=True)]


def holds_together(result: ProtocolResult) -> None:
    """A result's documents make up its mean, and it says what it is."""
    inside = result.weights > 0
    mean = float((result.values[inside] * result.weights[inside]).sum() / result.weights.sum())
    assert mean == pytest.approx(result.nll, abs=1e-12)
    assert result.tokens == sum(document.tokens for document in result.documents)
    assert result.windows == sum(document.windows for document in result.documents)
    assert result.protocol in PROTOCOLS
    assert result.traps


@pytest.mark.parametrize("bos", [BOS, None])
def test_yarn_truncated(runner: OnePass, docs: list[list[int]], bos: int | None) -> None:
    """Every length is read off one pass; the plain version makes a forward a document and length."""
    lengths = [256, 384, 512]
    passes: list[tuple[int, ...]] = []
    # A layer and not the decoder, which the sliced head calls in a replaced form.
    layer = runner.model.model.layers[0]
    handle = layer.register_forward_hook(lambda _m, args, _o: passes.append(tuple(args[0].shape[:2])))
    found = yarn_truncated(runner, docs, lengths, bos=bos)
    handle.remove()
    # Two windows of equal length in one forward, and the document that ends before.
    assert passes == [(2, 512), (1, 300 + (bos is not None))]
    for length, result in zip(lengths, found, strict=True):
        holds_together(result)
        expected = naive.yarn(runner.model, docs, length, bos, 256, truncate=True)
        assert result.ppl == pytest.approx(expected, abs=1e-4)
        assert result.passes == "every length read off one pass of 512 tokens"
    assert [result.parameters["shorter_documents"] for result in found] == [0, 1, 1]


@pytest.mark.parametrize("bos", [BOS, None])
@pytest.mark.parametrize(("length", "stride"), [(256, 64), (512, 256), (256, 300)])
def test_yarn_sliding(runner: OnePass, docs: list[list[int]], bos: int | None, length: int, stride: int) -> None:
    result = yarn(runner, docs, length, bos=bos, stride=stride)
    holds_together(result)
    expected = naive.yarn(runner.model, docs, length, bos, stride, truncate=False)
    assert result.ppl == pytest.approx(expected, abs=1e-4)


def test_pi(runner: OnePass, docs: list[list[int]]) -> None:
    for length, stride in ((256, 64), (512, 100)):
        result = pi(runner, docs, length, stride=stride)
        holds_together(result)
        assert result.ppl == pytest.approx(naive.pi(runner.model, docs, length, stride), abs=1e-4)
        # Every token once, but each document's first.
        assert result.tokens == sum(len(document) - 1 for document in docs)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_longlora(runner: OnePass, docs: list[list[int]], batch_size: int) -> None:
    stream = [token for document in docs for token in document]
    result = longlora(runner, docs, 256, stride=64, batch_size=batch_size)
    holds_together(result)
    assert result.windows % 4, "a short last batch is what makes batches matter"
    assert result.ppl == pytest.approx(naive.longlora(runner.model, stream, 256, 64, batch_size), abs=1e-4)
    # Windows that begin in the first document, however far they reach.
    assert [document.windows for document in result.documents] == [15, 10, 0]


def test_longlora_without_concatenation(runner: OnePass, docs: list[list[int]]) -> None:
    result = longlora(runner, docs, 256, stride=64, concatenate=False)
    holds_together(result)
    for document, score in zip(docs[:2], result.documents, strict=False):
        alone = naive.longlora(runner.model, document, 256, 64, 1)
        assert 2.71828**score.value == pytest.approx(alone, abs=1e-4)
    assert result.documents[2].weight == 0
    assert math.isnan(result.documents[2].value)


@pytest.mark.parametrize("length", [256, 300, 1024])
def test_lm_eval(runner: OnePass, length: int) -> None:
    written = [text[:size] for text, size in zip(texts(3, 900), (900, 600, 256), strict=True)]
    docs = [list(text.encode()) for text in written]
    result = lm_eval_rolling(runner, docs, [text_length(text) for text in written], length, prefix_token=BOS)
    holds_together(result)
    losses = [naive.lm_eval_loss(runner.model, document, length, BOS) for document in docs]
    np.testing.assert_allclose(result.losses, losses, atol=1e-2, rtol=1e-5)
    words = sum(len(re.split(r"\s+", text)) for text in written)
    size = sum(len(text.encode()) for text in written)
    assert result.word_perplexity == pytest.approx(math.exp(sum(losses) / words), rel=1e-4)
    assert result.byte_perplexity == pytest.approx(math.exp(sum(losses) / size), abs=1e-4)
    assert result.bits_per_byte == pytest.approx(sum(losses) / size / math.log(2), abs=1e-4)
    # Bytes are this model's tokens, so that here, and only here, the two are one.
    assert result.byte_perplexity == pytest.approx(result.ppl, rel=1e-12)


def test_one_pass_is_the_reference_in_perplexity_py(runner: OnePass, docs: list[list[int]]) -> None:
    long = [document for document in docs if len(document) >= 700]
    found = one_pass(runner, long, [256, 700])
    windows = [runner.losses(document[:700]).numpy() for document in long]
    for result in found:
        holds_together(result)
        expected = by_length(windows, result.length)
        assert (result.nll, result.tokens) == (pytest.approx(expected.nll, abs=1e-6), expected.tokens)


def test_protocols_disagree_on_the_same_text(runner: OnePass, docs: list[list[int]]) -> None:
    """Why the report has to name its protocol: one model, one text, one length, and another number from each."""
    settings = ProtocolSettings(bos=BOS, eos=EOS, stride=64)
    lengths = [text_length(bytes(document).decode()) for document in docs]
    found = {name: run_protocol(name, runner, docs, [256], settings, text_lengths=lengths)[0].ppl for name in PROTOCOLS}
    ordered = sorted(found.values())
    assert min(b - a for a, b in itertools.pairwise(ordered)) > 1e-3
    assert max(ordered) / min(ordered) > 1.02
    # A cold start in every window costs, and PI's windows start cold once.
    assert found["pi"] < found["longlora"]
    assert found["pi"] < found["lm-eval"]


def test_wrong_ways_are_seen_at_this_tolerance(runner: OnePass, docs: list[list[int]]) -> None:
    """Negative controls: what the protocols are easily mistaken for is off by more than the tests allow."""
    found = yarn(runner, docs, 256, bos=BOS, stride=64)
    token_weighted = sum(d.value * d.tokens for d in found.documents) / found.tokens
    assert abs(math.exp(token_weighted) - found.ppl) > 1e-3
    assert abs(yarn(runner, docs, 256, bos=None, stride=64).ppl - found.ppl) > 1e-3
    stream = [token for document in docs for token in document]
    whole = longlora(runner, docs, 256, stride=64)
    assert abs(naive.longlora(runner.model, [*stream, *stream[:64]], 256, 64, 1) - whole.ppl) > 1e-3
    assert abs(longlora(runner, docs, 256, stride=64, batch_size=4).ppl - whole.ppl) > 1e-3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: yarn_truncated(s, [], [8], bos=None), "no document"),
        (lambda s: yarn_truncated(s, [[1, 2, 3]], [1], bos=1), "holds no prediction"),
        (lambda s: yarn(s, [[1, 2, 3]], 8, bos=1, stride=0), "stride is 0"),
        (lambda s: pi(s, [[1]], 8), "no document has a token"),
        (lambda s: longlora(s, [[1] * 264], 8), "264 tokens, and LongLoRA's protocol at 8 needs 265"),
        (lambda s: lm_eval_rolling(s, [[1, 2]], [], 8, prefix_token=1), "1 documents came with 0 text lengths"),
        (lambda s: lm_eval_rolling(s, [[]], [text_length("")], 8, prefix_token=1), "no text"),
        (lambda s: run_protocol("mean", s, [[1, 2]], [8]), "no perplexity protocol 'mean'"),
        (lambda s: run_protocol("lm-eval", s, [[1, 2]], [8]), "neither"),
    ],
)
def test_bad_input_is_one_line(call: object, said: str) -> None:
    def never(_ids: Sequence[int]) -> list[float]:
        raise AssertionError

    with pytest.raises(UsageError, match=said) as raised:
        call(never)  # type: ignore[operator]
    assert raised.value.remedy


def test_longlora_takes_the_shortest_text_it_says_it_takes() -> None:
    result = longlora(lambda ids: np.ones(len(ids) - 1), [[1] * 265], 8)
    assert (result.windows, result.ppl) == (1, 2.71828)


def test_losses_that_are_no_numbers_stay_so() -> None:
    result = pi(lambda ids: np.full(len(ids) - 1, np.nan), [[1] * 20], 8, stride=4)
    assert math.isnan(result.ppl)
    huge = pi(lambda ids: np.full(len(ids) - 1, 1e4), [[1] * 20], 8, stride=4)
    assert huge.ppl == math.inf


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, ctxforge.verification.protocols as p; print(p.PROTOCOLS[0], *sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "one-pass"
    assert not {"torch", "numpy", "transformers"} & set(out)


def test_runs_are_repeatable(runner: OnePass, docs: list[list[int]]) -> None:
    torch.manual_seed(1)
    first = yarn(runner, docs, 256, bos=BOS)
    torch.manual_seed(2)
    assert yarn(runner, docs, 256, bos=BOS) == first
