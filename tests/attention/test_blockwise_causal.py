"""Blockwise causal attention: the block form against the dense one, blocks by position, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ctxforge
from ctxforge.attention import find_attachment
from ctxforge.attention.blockwise_causal import pattern
from ctxforge.attention.reference import causal
from ctxforge.errors import UnsupportedError, UsageError
from tests.attention.calls import Extended, Largest, extended, states
from tests.modeling.emitted import chunked, difference, remote, save_stock, stock, tokens, whole

BLOCK = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Extended:
    return extended("llama", f"blockwise-causal:block={BLOCK}", tmp_path_factory.mktemp("blocks"))


def test_the_pattern_is_two_blocks_at_true_distances() -> None:
    found = pattern({"block": 3}, 8, 4)
    rows = ["".join("x" if seen else "." for seen in row) for row in found.visible[0].tolist()]
    assert rows == ["x.......", "xx......", "xxx.....", "xxxx....", "xxxxx...", "xxxxxx..", "...xxxx.", "...xxxxx"]
    assert found.bias is None
    far = pattern({"block": BLOCK}, 200, 4)
    assert int(far.distance[far.visible].max()) == 2 * BLOCK - 1
    assert int(far.visible.sum(-1).min()) == 1  # the first token alone
    assert int(far.visible[0, BLOCK:].sum(-1).min()) == BLOCK + 1


@pytest.mark.parametrize("length", [5, 16, 32, 33, 100])
def test_blocks_compute_what_the_dense_reference_does(model: Extended, length: int) -> None:
    query, key, value = states(2, 4, 2, length)
    found = model.attend(query, key, value)
    geometry = pattern({"block": BLOCK}, length, 4)
    assert difference(found, model.dense(query, key, value, geometry)) < 1e-5
    farther = torch.where(geometry.distance == 4, 5, geometry.distance)
    assert difference(found, model.dense(query, key, value, replace(geometry, distance=farther))) > 1e-3
    if length > 2 * BLOCK:
        wider = pattern({"block": BLOCK + 1}, length, 4)
        assert difference(found, model.dense(query, key, value, wider)) > 1e-3


def test_blocks_start_at_multiples_of_the_position_in_each_row(model: Extended) -> None:
    """Rows that stand elsewhere see other keys; a row's output is that of the row alone."""
    query, key, value = states(2, 4, 2, 60)
    starts = torch.tensor([[0], [7]])
    positions = starts + torch.arange(60)
    found = model.attend(query, key, value, query_positions=positions, key_positions=positions)
    geometry = pattern({"block": BLOCK}, 67, 4)
    shifted = replace(geometry, visible=geometry.visible[:, 7:, 7:], distance=geometry.distance[:, 7:, 7:])
    assert difference(found[1:], model.dense(query[1:], key[1:], value[1:], shifted)) < 1e-5
    assert difference(found[1:], model.attend(query[1:], key[1:], value[1:])) > 1e-3
    assert difference(found[:1], model.attend(query[:1], key[:1], value[:1])) < 1e-5


def test_short_texts_are_the_stock_models(model: Extended) -> None:
    """Up to two blocks every query sees everything before it."""
    plain = stock(model.source)
    ids = tokens(2, 2 * BLOCK)
    assert difference(whole(model.model, ids), whole(plain, ids)) < 1e-5
    longer = tokens(2, 2 * BLOCK + 2)
    assert difference(whole(model.model, longer)[:, -1], whole(plain, longer)[:, -1]) > 1e-3


@pytest.mark.parametrize("size", [1, 7, 100])
def test_chunks_equal_one_pass(model: Extended, size: int) -> None:
    ids = tokens(2, 100)
    assert difference(chunked(model.model, ids, size), whole(model.model, ids)) < 1e-5


def test_left_padding_changes_nothing(model: Extended) -> None:
    ids = tokens(1, 70)
    padded = torch.cat((torch.zeros(1, 9, dtype=torch.long), ids), dim=1)
    mask = torch.cat((torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 70, dtype=torch.long)), dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    found = whole(model.model, padded, attention_mask=mask, position_ids=places)[:, 9:]
    assert difference(found, whole(model.model, ids)) < 1e-5


def test_what_is_out_of_sight_changes_nothing(model: Extended) -> None:
    """In one layer; the layers together reach farther, which the last line controls."""
    query, key, value = states(1, 4, 2, 100)
    changed = value.clone()
    changed[:, :, : 4 * BLOCK] += 1
    moved = (model.attend(query, key, changed) - model.attend(query, key, value)).abs().amax(dim=(0, 1, 3))
    assert float(moved[5 * BLOCK :].max()) == 0
    assert float(moved[4 * BLOCK : 5 * BLOCK].min()) > 1e-3


def test_a_query_costs_at_most_two_blocks(model: Extended, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is cut into its blocks, each with itself and with the block before; a decoded token reads both."""
    query, key, value = states(2, 4, 2, 200)
    blocks = list(model.system._query_blocks(model.call(query, key, value)))
    pieces = list(model.system._pieces(blocks, 0, 0))
    size = [(len(range(200)[piece.queries]), len(range(200)[piece.keys]), piece.causal) for piece in pieces]
    assert [one for one in size if one[2]] == [(BLOCK, BLOCK, True)] * 12 + [(8, 8, True)]
    assert [one for one in size if not one[2]] == [(BLOCK, BLOCK, False)] * 11 + [(8, BLOCK, False)]
    seen: list[tuple[int, int]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append((query.shape[2], key.shape[2]))
        return real(query, key, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model.attend(query, key, value, mask=causal(200)[None])
    assert max(keys for _, keys in seen) == 2 * BLOCK
    seen.clear()
    model.attend(query[:, :, -1:], key, value)
    assert seen == [(2, 200 - (199 // BLOCK - 1) * BLOCK)]  # two heads of a group as two queries


def test_the_forms_with_and_without_masks_are_one_function(model: Extended) -> None:
    """Values and gradients, with soft caps and sinks."""
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for options in ({}, {"softcap": 1.5}, {"sinks": sinks}):
        outputs, grads = [], []
        for mask in (None, causal(70)[None]):
            given = [part.requires_grad_() for part in states(2, 4, 2, 70)]
            output = model.attend(*given, mask=mask, **options)
            outputs.append(output.detach())
            grads.append(torch.autograd.grad(output.pow(2).sum(), given))
        assert difference(*outputs) < 1e-5
        assert max(difference(a, b) for a, b in zip(*grads, strict=True)) < 1e-4


def test_no_tensor_grows_with_the_square_of_the_length(model: Extended) -> None:
    """Neither a prompt, nor its gradient, nor a decoded token makes one larger than the query by more than a bit."""
    query, key, value = (part.requires_grad_() for part in states(1, 4, 2, 4096))
    with Largest() as largest:
        model.attend(query, key, value).sum().backward()
        model.attend(query[:, :, -1:], key, value)
    assert query.numel() <= largest.elements <= 2 * query.numel() < 4096**2 / 8


def test_parameters(tmp_path: Path) -> None:
    source = save_stock("llama", tmp_path / "source")
    for given, wanted in (("", 32), (":block=5", 5)):
        made = ctxforge.plan(source, attach=f"blockwise-causal{given}", to=256)
        assert made.attached is not None
        assert made.attached.parameters == {"block": wanted}
    for wrong in ("0", "-3", "33"):
        with pytest.raises(UsageError, match=f"block={wrong}"):
            ctxforge.plan(source, attach=f"blockwise-causal:block={wrong}", to=256)
    with pytest.raises(UnsupportedError, match="stretches"):
        ctxforge.plan(source, attach="blockwise-causal", method="dynamic-ntk", to=256)
    # A rotation made for 256 tokens takes blocks of up to 128.
    stretched = ctxforge.plan(source, attach="blockwise-causal:block=128", method="yarn", to=256)
    assert stretched.attached is not None
    assert stretched.attached.parameters == {"block": 128}
    assert find_attachment("blockwise-causal").needs == "nothing"


def test_yarn_keeps_its_table_and_temperature(tmp_path: Path) -> None:
    source = save_stock("llama", tmp_path / "source")
    ctxforge.extend(source, method="yarn", to=256, out=tmp_path / "yarn")
    ctxforge.extend(source, method="yarn", attach="blockwise-causal:block=128", to=256, out=tmp_path / "both")
    ids = tokens(1, 150)
    found, wanted = whole(remote(tmp_path / "both"), ids), whole(stock(tmp_path / "yarn"), ids)
    assert difference(found, wanted) < 1e-5
    assert difference(wanted, whole(stock(source), ids)) > 1e-3
