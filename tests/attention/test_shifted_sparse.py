"""Shifted sparse attention: groups against the dense mask, no leak, gradients, padding, packing, restoring."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

import ctxforge
from ctxforge.attention import shifted_sparse
from ctxforge.attention.shifted_sparse import grouped_attention, pattern, resolve, shifted_sparse_attention
from ctxforge.attention.types import Situation
from ctxforge.errors import UnsupportedError, UsageError
from tests.attention.calls import extended, states
from tests.modeling.emitted import chunked, difference, save_stock, stock, tokens, whole

GROUP = 16
DENSE = "dense_shifted"
Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_stock(kind, tmp_path_factory.mktemp(kind) / "source")
        return made[kind]

    return folder


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """softmax over the visible keys, explicitly."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value


def rolled(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: int) -> torch.Tensor:
    """The variant that shifts in a circle, as published code without a flash kernel does: the last half group of the
    shifted heads stands before the first one."""
    half, length = query.shape[1] // 2, query.shape[2]
    same = torch.arange(length) // group
    visible = (same[:, None] == same[None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    shift = [torch.cat((part[:, :half], part[:, half:].roll(-(group // 2), 2)), 1) for part in (query, key, value)]
    output = dense(*shift, visible[None])
    return torch.cat((output[:, :half], output[:, half:].roll(group // 2, 2)), 1)


def test_the_pattern_cuts_half_groups_at_both_ends() -> None:
    found = pattern({"group": 4}, 8, 3).visible
    rows = [["".join("x" if seen else "." for seen in row) for row in head] for head in found.tolist()]
    assert rows[0] == ["x.......", "xx......", "xxx.....", "xxxx....", "....x...", "....xx..", "....xxx.", "....xxxx"]
    assert rows[1] == ["x.......", "xx......", "..x.....", "..xx....", "..xxx...", "..xxxx..", "......x.", "......xx"]
    assert rows[2] == rows[1]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 64, 70, 75])
@pytest.mark.parametrize(("heads", "groups", "group"), [(4, 1, GROUP), (4, 2, GROUP), (9, 3, GROUP), (4, 4, 7)])
def test_groups_compute_what_the_dense_mask_does(length: int, heads: int, groups: int, group: int) -> None:
    given = [part.requires_grad_() for part in states(2, heads, groups, length)]
    visible = pattern({"group": group}, length, heads).visible
    weights = torch.randn(2, heads, length, 16, generator=torch.Generator().manual_seed(5))
    outputs, grads = [], []
    for attend in (lambda *part: grouped_attention(*part, group), lambda *part: dense(*part, visible)):
        output = attend(*given)
        outputs.append(output.detach())
        grads.append(torch.autograd.grad((output * weights).sum(), given))
    assert difference(outputs[0], outputs[1]) < 1e-5
    assert max(float((a - b).abs().max()) for a, b in zip(*grads, strict=True)) < 1e-4
    if length > group:
        unshifted = visible[:1].expand_as(visible)
        assert difference(outputs[0], dense(*given, unshifted).detach()) > 1e-3


def test_no_token_sees_a_later_one() -> None:
    """And rolling round the end, as the control, does leak."""
    query, key, value = states(1, 4, 2, 64)
    later = torch.arange(64) >= 60
    changed = [torch.where(later[:, None], part + 1, part) for part in (query, key, value)]
    mine = grouped_attention(*changed, GROUP) - grouped_attention(query, key, value, GROUP)
    assert float(mine[:, :, :60].abs().max()) == 0
    assert float(mine[:, :, 60:].abs().max()) > 1e-3
    key, value = (part.repeat_interleave(2, 1) for part in (key, value))
    changed[1:] = [part.repeat_interleave(2, 1) for part in changed[1:]]
    leak = rolled(*changed, GROUP) - rolled(query, key, value, GROUP)
    assert float(leak[:, 2:, : GROUP // 2].abs().max()) > 1e-3  # the first tokens see the last ones
    differs = (rolled(query, key, value, GROUP) - grouped_attention(query, key, value, GROUP)).abs().amax((0, 3))
    assert float(differs[:, GROUP // 2 :].max()) < 1e-5  # the two differ in nothing else
    assert float(differs[2:, : GROUP // 2].max()) > 1e-3


def test_the_cost_is_that_of_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        scores.append(query.shape[:3].numel() * key.shape[2])
        return real(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    query, key, value = states(2, 4, 2, 256)
    grouped_attention(query, key, value, 64)
    unshifted, shifted = 4 * 64**2, 3 * 64**2 + 2 * 32**2
    assert sum(scores) == 2 * (2 * unshifted + 2 * shifted)
    assert sum(scores) <= 2 * 4 * 256 * 64  # a quarter of T^2
    assert len(scores) == 4  # whole groups go together


def dense_model(folder: Path, length: int, texts: torch.Tensor | None = None) -> Any:
    """The stock model with the dense mask, each text apart where `texts` [B, T] says."""
    model = stock(folder)
    heads = model.config.num_attention_heads
    visible = pattern({"group": GROUP}, length, heads).visible[None]
    if texts is not None:
        visible = visible & (texts[:, None, :, None] == texts[:, None, None, :])

    def attention(_module: Any, query: Any, key: Any, value: Any, *_args: Any, **_kwargs: Any) -> Any:
        return dense(query, key, value, visible).transpose(1, 2), None

    AttentionInterface.register(DENSE, attention)
    model.config._attn_implementation = DENSE
    return model


def loss_and_gradients(model: Any, ids: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.train()
    output = model(input_ids=ids, labels=ids, use_cache=False, **inputs)
    output.loss.backward()
    return output.logits.detach(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox", "glm"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_equals_the_dense_mask(kind: str, checkpointing: bool, folders: Folders) -> None:
    ids = tokens(2, 75)
    model = stock(folders(kind))
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    with shifted_sparse_attention(model, GROUP):
        logits, grads = loss_and_gradients(model, ids)
    wanted_logits, wanted = loss_and_gradients(dense_model(folders(kind), 75), ids)
    assert difference(logits, wanted_logits) < 1e-5
    assert max(difference(grads[name], wanted[name]) for name in wanted) < 1e-4
    full, _ = loss_and_gradients(stock(folders(kind)), ids)
    assert difference(full, wanted_logits) > 1e-3


def test_evaluation_attends_in_full_with_and_without_a_cache(folders: Folders) -> None:
    model, ids = stock(folders("llama")), tokens(2, 75)
    wanted = whole(model, ids)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    padded = whole(model, ids, attention_mask=mask)
    with shifted_sparse_attention(model, GROUP):
        assert difference(whole(model, ids), wanted) < 1e-6
        assert difference(chunked(model, ids, 7), wanted) < 1e-5
        assert difference(whole(model, ids, attention_mask=mask)[1], padded[1]) < 1e-6
        assert difference(whole(model, ids, attention_mask=mask)[0, 9:], padded[0, 9:]) < 1e-6
        model.train()
        assert difference(whole(model, ids), wanted) > 1e-3


def test_padding_on_either_side_and_packed_texts(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ids = folders("llama"), tokens(2, 75)
    model = stock(folder).train()
    texts = torch.zeros_like(ids)
    texts[0, :9] = -1  # left
    texts[1, 60:] = -1  # right
    wanted = whole(dense_model(folder, 75, texts).train(), ids)
    with shifted_sparse_attention(model, GROUP):
        found = whole(model, ids, attention_mask=(texts >= 0).long())
        assert difference(found[texts >= 0], wanted[texts >= 0]) < 1e-5
        assert found.isfinite().all()
        assert difference(whole(model, ids)[0, 9:], wanted[0, 9:]) > 1e-3
    right = torch.ones_like(ids)
    right[0, 50:] = 0
    told: list[Any] = []
    real = shifted_sparse.grouped_attention

    def listening(*given: Any, **options: Any) -> torch.Tensor:
        told.append(options["documents"])
        return real(*given, **options)

    monkeypatch.setattr(shifted_sparse, "grouped_attention", listening)
    with shifted_sparse_attention(model, GROUP):
        found = whole(model, ids, attention_mask=right)
        assert told == [None, None, None]  # padding at the end costs no mask
        assert difference(found[0, :50], whole(model, ids[:1, :50])[0]) < 1e-5
        assert difference(found[1], whole(model, ids)[1]) < 1e-5
        found = whole(model, ids, attention_mask=right.flip(1))
        assert all(documents is not None for documents in told[-3:])
    monkeypatch.undo()
    places = torch.cat((torch.arange(40), torch.arange(35))).expand(2, -1)
    texts = (torch.arange(75) >= 40).long().expand(2, -1)
    wanted = whole(dense_model(folder, 75, texts).train(), ids, position_ids=places)
    with shifted_sparse_attention(model, GROUP):
        assert difference(whole(model, ids, position_ids=places), wanted) < 1e-5


def test_everything_is_as_it_was_afterwards(folders: Folders) -> None:
    model = stock(folders("llama"))
    before = model.config._attn_implementation
    names = set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping)
    with contextlib.suppress(ZeroDivisionError), shifted_sparse_attention(model, GROUP):
        assert model.config._attn_implementation not in (*names[0], before)
        raise ZeroDivisionError
    assert model.config._attn_implementation == before
    assert (set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping)) == names
    ids = tokens(1, 40)
    with shifted_sparse_attention(torch.nn.ModuleDict({"inside": model}), GROUP):  # as an adapter holds it
        other = stock(folders("llama")).train()
        mine = whole(model.train(), ids)
        assert difference(whole(other, ids), mine) > 1e-3  # another model goes on as it was
        with shifted_sparse_attention(other, GROUP // 2):
            assert difference(whole(other, ids), mine) > 1e-3
            assert difference(whole(model, ids), mine) < 1e-6


def test_what_is_refused(folders: Folders, tmp_path: Path) -> None:
    model, ids = stock(folders("llama")), tokens(1, 40)
    with pytest.raises(UsageError, match="group=1"), shifted_sparse_attention(model, 1):
        pass
    for kind, said in (("mistral", "attend in full"), ("gemma2", "attend in full"), ("bloom", "interface")):
        with pytest.raises(UnsupportedError, match=said), shifted_sparse_attention(stock(folders(kind)), GROUP):
            pass
    with pytest.raises(UnsupportedError, match="holds no model"), shifted_sparse_attention(torch.nn.Identity(), GROUP):
        pass
    own = extended("llama", "blockwise-causal", tmp_path)
    with pytest.raises(UnsupportedError, match="of its own"), shifted_sparse_attention(own.model, GROUP):
        pass
    with shifted_sparse_attention(model, GROUP):
        model.train()
        with pytest.raises(UnsupportedError, match="whole texts, not with a cache"):
            chunked(model, ids, 20)
        with pytest.raises(UnsupportedError, match="rows, tokens"):
            model(input_ids=ids, use_cache=False, attention_mask=torch.ones(1, 1, 40, 40, dtype=torch.bool))


def test_it_is_for_training_and_no_checkpoint_carries_it(folders: Folders) -> None:
    with pytest.raises(UnsupportedError, match="for training"):
        ctxforge.plan(folders("llama"), attach="s2-attn", to=256)
    situation = Situation(64, 256, 4, 3, "llama", static=True, method="none")
    assert resolve({}, situation) == {"group": 64}
    assert resolve({"group": 10}, situation) == {"group": 10}
    for wrong in (1, 0, 257):
        with pytest.raises(UsageError, match=f"group={wrong}"):
            resolve({"group": wrong}, situation)
