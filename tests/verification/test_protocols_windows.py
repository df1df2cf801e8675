"""What every protocol stands on: windows scored in batches, by the last rows only, and models that depend on length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.errors import InternalError
from ctxforge.verification.onepass import OnePass
from ctxforge.verification.protocols import (
    FunctionScorer,
    ModelScorer,
    Window,
    as_scorer,
    one_pass,
    yarn,
    yarn_truncated,
)
from ctxforge.verification.protocols.rolling import rolling_windows
from ctxforge.verification.protocols.sliding import sliding_windows
from tests.verification.tiny import DYNAMIC, LONGROPE, YARN, reference_losses, tiny, token_ids


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral", "cohere"])
def test_batches_equal_bare_forwards(kind: str, batch_tokens: int) -> None:
    changes = {"gemma2": {"head_dim": 16, "sliding_window": 24}, "mixtral": {"num_local_experts": 4, "head_dim": 16}}
    model = tiny(kind, rope_parameters=YARN, **changes.get(kind, {}))
    sizes = [(40, 39), (40, 7), (40, 20), (25, 24), (40, 1), (2, 1)]
    windows = [Window(token_ids(size, seed), scored) for seed, (size, scored) in enumerate(sizes)]
    found = list(ModelScorer(OnePass(model), batch_tokens=batch_tokens).score(windows))
    assert len(found) == len(windows)
    for window, losses in zip(windows, found, strict=True):
        expected = reference_losses(model, list(window.ids))[-window.scored :]
        np.testing.assert_allclose(losses, expected.numpy(), atol=3e-4, rtol=1e-5)


def test_batches_are_what_is_asked_for_and_the_head_sees_scored_rows_only() -> None:
    model = tiny()
    runner = OnePass(model)
    shapes: list[tuple[int, ...]] = []
    rows: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _m, args: shapes.append(tuple(args[0].shape[:2])))
    model.lm_head.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[1]))
    done: list[int] = []
    windows = [Window(token_ids(64, seed), 8) for seed in range(5)]
    assert len(list(ModelScorer(runner, batch_tokens=130, count=done.append).score(windows))) == 5
    assert shapes == [(2, 64), (2, 64), (1, 64)]
    assert rows == [16, 16, 8]
    assert done == [2, 2, 1]


def test_a_model_whose_head_cannot_be_separated_still_scores() -> None:
    model = tiny()
    runner = OnePass(model)
    windows = [Window(token_ids(50, seed), 9) for seed in range(3)]
    expected = list(ModelScorer(runner).score(windows))
    runner.head_kind = "full"
    for a, b in zip(ModelScorer(runner).score(windows), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE])
def test_a_model_that_depends_on_length_gets_a_pass_a_length(rope: dict[str, object]) -> None:
    model = tiny(rope_parameters=rope)
    runner = OnePass(model, longest=256)
    docs = [token_ids(256, seed) for seed in range(2)]
    lengths = [48, 128, 256]
    found = yarn_truncated(runner, docs, lengths, bos=1)
    for length, result in zip(lengths, found, strict=True):
        assert result.passes.startswith("one pass a length")
        means = []
        for document in docs:
            # A short input first brings transformers' dynamic NTK back to its short state.
            reference_losses(model, [1, 2])
            means.append(float(reference_losses(model, [1, *document[: length - 1]]).mean()))
        assert result.nll == pytest.approx(sum(means) / len(means), abs=1e-4)
    # Read off one pass, as for other models, it would be another number.
    runner.prefix_invariant = True
    wrong = yarn_truncated(runner, docs, lengths, bos=1)
    assert abs(wrong[0].nll - found[0].nll) > 1e-3
    # And the order of lengths must not matter.
    runner.prefix_invariant = False
    assert one_pass(runner, docs, [256, 48])[1] == one_pass(runner, docs, [48, 256])[0]
    assert "depends on the length" in yarn(runner, docs, 64, bos=1).passes


def test_functions_are_sources_too() -> None:
    model = tiny()
    docs = [token_ids(200, seed) for seed in range(2)]
    runner = OnePass(model)
    by_model = yarn(runner, docs, 64, bos=1, stride=20)
    by_function = yarn(lambda ids: runner.losses(ids).numpy(), docs, 64, bos=1, stride=20)
    assert by_function.nll == pytest.approx(by_model.nll, abs=1e-5)
    scorer = FunctionScorer(lambda ids: [0.0] * len(ids))
    assert as_scorer(scorer) is scorer
    with pytest.raises(InternalError, match="gave losses of shape"):
        list(scorer.score([Window([1, 2, 3], 2)]))


@pytest.mark.parametrize("scored", [0, 3, -1])
def test_a_window_scores_what_has_a_prediction(scored: int) -> None:
    with pytest.raises(InternalError):
        Window([1, 2, 3], scored)


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 80), window=st.integers(2, 20), stride=st.integers(1, 19), prefix=st.integers(0, 1))
def test_sliding_windows_score_every_token_once(size: int, window: int, stride: int, prefix: int) -> None:
    document = list(range(size))
    stride = min(stride, window - prefix)
    found = list(sliding_windows(document, window, stride, [-1] * prefix))
    assert all(len(each.ids) <= window for each in found)
    scored = [token for each in found for token in each.ids[-each.scored :]]
    # Without a prefix the first token of a window that begins where the last ended has nothing to stand on.
    lost = {0} if prefix else {i for i in range(0, size, stride) if i == 0 or stride == window}
    assert scored == [token for token in document if token not in (lost - ({0} if prefix else set()))]


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 80), length=st.integers(1, 20))
def test_rolling_windows_partition_the_document_and_feed_no_more_than_the_length(size: int, length: int) -> None:
    document = list(range(size))
    found = list(rolling_windows(document, length, -1))
    assert [token for each in found for token in each.ids[-each.scored :]] == document
    assert all(len(each.ids) - 1 <= length for each in found)
    # Only the first may be short: a last one is filled up from before.
    assert all(len(each.ids) - 1 == length for each in found[1:])
    assert found[0].ids[0] == -1


@settings(max_examples=300, deadline=None)
@given(size=st.integers(1, 80), length=st.integers(1, 20))
def test_rolling_windows_are_those_of_lm_eval(size: int, length: int) -> None:
    theirs = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed")
    document = list(range(size))
    pairs = map(theirs.make_disjoint_window, theirs.get_rolling_token_windows(document, -1, length, 1))
    # lm-eval's own cut to max_length, as its models make it before the forward.
    expected = [((context + scored)[-(length + 1) :], len(scored)) for context, scored in pairs]
    assert [(list(each.ids), each.scored) for each in rolling_windows(document, length, -1)] == expected


def test_dtype_of_losses_is_float32_on_the_cpu() -> None:
    (losses,) = ModelScorer(OnePass(tiny(dtype=torch.bfloat16))).score([Window(token_ids(30), 5)])
    assert losses.dtype == np.float32
