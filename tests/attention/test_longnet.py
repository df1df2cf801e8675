"""LongNet: pieces against the dense form with its log-count bias, gradients, caches, cost, refusals."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ctxforge
from ctxforge.attention.longnet import pattern
from ctxforge.attention.reference import causal
from ctxforge.errors import UnsupportedError, UsageError
from tests.attention.calls import SCALING, Extended, Largest, extended, states
from tests.modeling.emitted import chunked, difference, remote, save_stock, stock, tokens, whole

SETTINGS = "segments=12/24/100,dilations=1/2/6"
PARAMETERS = {"segments": [12, 24, 100], "dilations": [1, 2, 6]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Extended:
    return extended("llama", f"longnet:{SETTINGS}", tmp_path_factory.mktemp("longnet"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Extended:
    """One segment that holds all, undilated."""
    return extended("llama", "longnet:segments=256,dilations=1", tmp_path_factory.mktemp("all"))


def without_fused_kernel(model: Extended, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = sys.modules[f"{type(model.model).__module__.rpartition('.')[0]}.ctxforge_pieces"]
    monkeypatch.setattr(shared, "_is_fused", lambda *_: False)
    monkeypatch.setattr(shared, "_BLOCK", 5)


def mixture(query: Any, key: Any, value: Any, head: int) -> torch.Tensor:
    """One head's output [T, Dv] as the paper writes it: branch by branch, mixed by the denominators; no rotation."""
    length = query.shape[0]
    numerator, denominator = torch.zeros_like(value), torch.zeros(length, 1, dtype=value.dtype)
    for segment, dilation in zip(PARAMETERS["segments"], PARAMETERS["dilations"], strict=True):
        for start in range(0, length, segment):
            kept = range(start + head % dilation, min(start + segment, length), dilation)
            for number, i in enumerate(kept):
                keys = list(kept)[: number + 1]
                weights = torch.exp(key[keys] @ query[i] * SCALING)
                numerator[i] += weights @ value[keys]  # s_b O_b
                denominator[i] += weights.sum()
    return numerator / denominator


def test_the_bias_form_is_the_papers_mixture() -> None:
    query, key, value = states(1, 6, 1, 70, dtype=torch.float64)
    geometry = pattern(PARAMETERS, 70, 6)
    assert geometry.bias is not None
    scores = (query @ key.transpose(2, 3) * SCALING + geometry.bias).masked_fill(~geometry.visible, -math.inf)
    found = scores.softmax(-1) @ value
    wanted = torch.stack([mixture(query[0, head], key[0, head], value[0, head], head) for head in range(6)])
    torch.testing.assert_close(found[0], wanted, atol=1e-12, rtol=0)
    without = scores - geometry.bias
    assert float((without.softmax(-1) @ value - found).abs().max()) > 1e-3


def test_the_pattern_of_a_small_case() -> None:
    found = pattern({"segments": [2, 6], "dilations": [1, 3]}, 7, 2)
    assert found.bias is not None
    met = torch.where(found.visible, found.bias.exp(), 0).round().int()
    # head 0 keeps places 0 and 3 of the segment of six, head 1 places 1 and 4
    rows = [["".join(map(str, row)) for row in head] for head in met.tolist()]
    assert rows[0] == ["2000000", "1100000", "0010000", "1012000", "0000100", "0000110", "0000002"]
    assert rows[1] == ["1000000", "1200000", "0010000", "0011000", "0100200", "0000110", "0000001"]


@pytest.mark.parametrize("length", [1, 12, 13, 60, 150])
@pytest.mark.parametrize(("heads", "groups"), [(6, 1), (6, 3), (4, 2), (9, 3)])
@pytest.mark.parametrize("fused", [True, False])
def test_pieces_compute_what_the_dense_reference_does(
    model: Extended, length: int, heads: int, groups: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        without_fused_kernel(model, monkeypatch)
    query, key, value = states(2, heads, groups, length)
    geometry = pattern(PARAMETERS, length, heads)
    found = model.attend(query, key, value)
    assert difference(found, model.dense(query, key, value, geometry)) < 1e-5
    for last in (1, 5):  # on a cache
        later = model.attend(query[:, :, -last:], key, value)
        assert difference(later, found[:, :, -last:]) < 1e-5
    mask = causal(length)[None]  # an explicit mask takes the other form
    assert difference(model.attend(query, key, value, mask=mask), found) < 1e-5
    if length > 13:
        assert geometry.bias is not None
        unbiased = replace(geometry, bias=None)
        assert difference(found, model.dense(query, key, value, unbiased)) > 1e-3
        farther = torch.where(geometry.distance == 4, 5, geometry.distance)
        assert difference(found, model.dense(query, key, value, replace(geometry, distance=farther))) > 1e-3
        other_heads = replace(geometry, visible=geometry.visible.roll(1, 0), bias=geometry.bias.roll(1, 0))
        assert difference(found, model.dense(query, key, value, other_heads)) > 1e-3


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("fused", [True, False])
def test_gradients_are_those_of_the_dense_reference(
    model: Extended, groups: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        without_fused_kernel(model, monkeypatch)
    weights = torch.randn(2, 4, 130, 16, generator=torch.Generator().manual_seed(9))

    def gradients(attend: Any) -> list[torch.Tensor]:
        leaves = [part.clone().requires_grad_() for part in states(2, 4, groups, 130)]
        (attend(*leaves) * weights).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    found = gradients(model.attend)
    wanted = gradients(lambda *given: model.dense(*given, pattern(PARAMETERS, 130, 4)))
    masked = gradients(lambda *given: model.attend(*given, mask=causal(130)[None]))
    unbiased = gradients(lambda *given: model.dense(*given, replace(pattern(PARAMETERS, 130, 4), bias=None)))
    for mine, other, dense, wrong in zip(found, masked, wanted, unbiased, strict=True):
        assert difference(mine, dense) < 1e-4
        assert difference(other, dense) < 1e-4
        assert difference(wrong, dense) > 1e-2


@pytest.mark.parametrize(("softcap", "fused"), [(None, True), (None, False), (2.0, True)])
def test_the_derivative_of_merged_pieces(
    model: Extended, softcap: float | None, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By finite differences in float64: output and denominators, of overlapping pieces."""
    if not fused:
        without_fused_kernel(model, monkeypatch)
    code = sys.modules[f"{type(model.model).__module__.rpartition('.')[0]}.ctxforge_pieces"]
    evens, threes = slice(0, None, 2), slice(1, 7, 3)
    pieces = [
        code.Piece(slice(None), slice(None), slice(None), True),
        code.Piece(evens, threes, threes, True),
        code.Piece(slice(1, None, 2), slice(0, 7), slice(2, 5), False),
    ]
    given = [part.requires_grad_() for part in states(1, 4, 2, 7, dims=2, dtype=torch.float64)]

    def merged(*leaves: torch.Tensor) -> Any:
        return code.attend_pieces(*leaves, pieces, scaling=SCALING, softcap=softcap)

    assert torch.autograd.gradcheck(merged, given)
    assert torch.autograd.gradcheck(lambda *leaves: merged(*leaves)[0], given)


def test_soft_caps_and_sinks(model: Extended) -> None:
    query, key, value = states(2, 4, 2, 70)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    mask = causal(70)[None]
    plain = model.attend(query, key, value)
    for options in ({"softcap": 1.5}, {"sinks": sinks}, {"softcap": 1.5, "sinks": sinks}):
        found = model.attend(query, key, value, **options)
        assert difference(found, model.attend(query, key, value, mask=mask, **options)) < 1e-5
        assert difference(found, plain) > 1e-3
        last = model.attend(query[:, :, -1:], key, value, **options)
        assert difference(last, found[:, :, -1:]) < 1e-5


def test_segments_start_at_multiples_of_the_position(model: Extended) -> None:
    query, key, value = states(2, 4, 2, 90)
    geometry = pattern(PARAMETERS, 97, 4)
    assert geometry.bias is not None
    parts = {name: getattr(geometry, name)[:, 7:, 7:] for name in ("visible", "distance", "bias")}
    wanted = model.dense(query, key, value, replace(geometry, **parts))
    for starts in ([[7], [7]], [[0], [7]]):  # rows alike take the pieces, others the explicit bias
        at = torch.tensor(starts) + torch.arange(90)
        found = model.attend(query, key, value, query_positions=at, key_positions=at)
        assert difference(found[1], wanted[1]) < 1e-5
        assert (difference(found[0], wanted[0]) < 1e-5) == (starts[0] == [7])


def test_one_segment_without_dilation_is_the_stock_model(everything: Extended) -> None:
    plain, ids = stock(everything.source), tokens(2, 200)
    assert difference(whole(everything.model, ids), whole(plain, ids)) < 1e-5
    assert difference(chunked(everything.model, ids, 7), whole(plain, ids)) < 1e-5


@pytest.mark.parametrize("size", [1, 7, 130])
def test_chunks_equal_one_pass(model: Extended, size: int) -> None:
    ids = tokens(2, 130)
    assert difference(chunked(model.model, ids, size), whole(model.model, ids)) < 1e-5


def test_a_single_branch_is_chunked_attention(tmp_path: Path) -> None:
    found = extended("llama", "longnet:segments=20,dilations=1", tmp_path)
    plain, ids = stock(found.source), tokens(1, 60)
    mine = whole(found.model, ids)
    at = torch.arange(20)[None]
    for start in (0, 20, 40):
        alone = whole(plain, ids[:, start : start + 20], position_ids=at + start)
        assert difference(mine[:, start : start + 20], alone) < 1e-5


def test_left_padding_changes_nothing(model: Extended) -> None:
    ids = tokens(1, 70)
    padded = torch.cat((torch.zeros(1, 9, dtype=torch.long), ids), dim=1)
    mask = torch.cat((torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 70, dtype=torch.long)), dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    found = whole(model.model, padded, attention_mask=mask, position_ids=places)[:, 9:]
    assert difference(found, whole(model.model, ids)) < 1e-5


def test_training_with_checkpointing_gives_the_same_gradients(model: Extended) -> None:
    ids = tokens(2, 90)
    found = []
    for checkpointing in (False, True):
        trained = remote(model.folder).train()
        if checkpointing:
            enable = getattr(trained, "activation_checkpointing_enable", None) or trained.gradient_checkpointing_enable
            enable()
        trained(input_ids=ids, labels=ids).loss.backward()
        found.append({name: weight.grad for name, weight in trained.named_parameters()})
    assert all(float(grad.abs().max()) > 0 for grad in found[0].values())
    assert max(difference(found[1][name], found[0][name]) for name in found[0]) < 1e-5


def test_dropout_is_served(model: Extended) -> None:
    """By the other form: its mean over many draws is the output without."""
    query, key, value = states(1, 4, 2, 30)
    torch.manual_seed(0)
    draws = torch.stack([model.attend(query, key, value, dropout=0.2) for _ in range(400)])
    assert float(draws.std(0).max()) > 0.05
    assert difference(draws.mean(0), model.attend(query, key, value)) < 0.1


def test_the_pieces_are_no_more_than_the_branches_scores(model: Extended) -> None:
    """Twice the length, twice the scores: T sum w / r^2, halved by causality."""
    scores = []
    for length in (1200, 2400):
        query, key, value = states(1, 6, 1, length, dims=2)
        call = model.call(query, key, value)
        pieces = list(model.system._pieces(call))
        at, heads = range(length), range(6)
        scores.append(sum(len(heads[piece.heads]) * len(at[piece.queries]) * len(at[piece.keys]) for piece in pieces))
    assert scores[1] == 2 * scores[0]
    assert scores[0] / 6 / 1200 == pytest.approx(12 + 24 / 4 + 100 / 36, rel=0.02)
    single = list(model.system._pieces(model.call(query[:, :, -1:], key, value)))
    assert sum(len(heads[piece.heads]) * len(at[piece.keys]) for piece in single) <= 6 * (12 + 24 / 2 + 100 / 6)


def test_no_tensor_grows_with_the_square_of_the_length(model: Extended) -> None:
    """Neither a prompt, nor its gradient, nor a decoded token makes one larger than the query by more than a bit."""
    query, key, value = (part.requires_grad_() for part in states(1, 4, 2, 4096))
    with Largest() as largest:
        model.attend(query, key, value).sum().backward()
        model.attend(query[:, :, -1:], key, value)
    assert query.numel() <= largest.elements <= 2 * query.numel() < 4096**2 / 8


def test_parameters(tmp_path: Path) -> None:
    source = save_stock("llama", tmp_path / "source")
    expected = {
        "": ([64, 128, 256], [1, 2, 4]),
        ":segments=16/32/64/128": ([16, 32, 64, 128], [1, 2, 4, 4]),
        ":dilations=1/3": ([64, 128], [1, 3]),
        ":segments=16/2k,dilations=1/16": ([16, 2048], [1, 16]),
    }
    for given, (segments, dilations) in expected.items():
        made = ctxforge.plan(source, attach=f"longnet{given}", to=256)
        assert made.attached is not None
        assert made.attached.parameters == {"segments": segments, "dilations": dilations}
    wrong = {
        "segments=16/32,dilations=1/2/4": "2 segments",
        "segments=16/32,dilations=2/4": "start with 1",
        "segments=32/16": "do not grow",
        "segments=16/16": "do not grow",
        "segments=0/16": "do not grow",
        "segments=16/32/64,dilations=1/4/2": "do not grow",
        "segments=4/8,dilations=1/9": "longer than its segment",
        "segments=16/x": "list of whole numbers",
    }
    for given_wrong, said in wrong.items():
        with pytest.raises(UsageError, match=said):
            ctxforge.plan(source, attach=f"longnet:{given_wrong}", to=256)
    with pytest.raises(UnsupportedError, match="one table"):
        ctxforge.plan(source, attach="longnet", method="dynamic-ntk", to=256)
