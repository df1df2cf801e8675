"""One function however a text is fed: chunks, tokens, padding, packing, jumps, beams, precision, checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.modeling.emitted import FURTHER, ROTARY, SLOPES, Case, chunked, difference, remote, stock, tokens, whole

LENGTH = 150
CASES = (*ROTARY, *SLOPES, *FURTHER)
Folders = Callable[[Any], Path]
every = pytest.mark.parametrize("case", CASES, ids=str)
rotary = pytest.mark.parametrize("case", [*ROTARY, *FURTHER], ids=str)


@every
def test_chunks_and_single_tokens_equal_one_pass(case: Case, converted: Folders) -> None:
    ids = tokens(2, LENGTH)
    model = remote(converted(case))
    wanted = whole(model, ids)
    assert difference(chunked(model, ids, 7), wanted) < 1e-5
    assert difference(chunked(model, ids, 1), wanted) < 1e-5
    exact = model.double()
    wanted = whole(exact, ids)
    # Nothing but rounding is left: float64 leaves none.
    assert difference(chunked(exact, ids, 7), wanted) < 1e-12
    assert difference(chunked(exact, ids, 1), wanted) < 1e-12


@every
def test_no_token_sees_a_later_one(case: Case, converted: Folders) -> None:
    ids = tokens(1, LENGTH)
    model = remote(converted(case))
    changed = ids.clone()
    changed[:, 100:] = (changed[:, 100:] + 1) % 90 + 3
    assert difference(whole(model, changed)[:, :100], whole(model, ids)[:, :100]) < 1e-6


@every
def test_left_padded_rows_generate_what_they_do_alone(case: Case, converted: Folders) -> None:
    model = remote(converted(case))
    rows = [tokens(1, length, seed) for seed, length in ((1, 90), (2, 70), (3, 41))]
    padded = torch.zeros(3, 90, dtype=torch.long)
    mask = torch.zeros(3, 90, dtype=torch.long)
    for row, ids in enumerate(rows):
        padded[row, -ids.shape[1] :] = ids
        mask[row, -ids.shape[1] :] = 1
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(padded, attention_mask=mask, **options)
    for row, ids in enumerate(rows):
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert together[row, -20:].tolist() == alone[0, -20:].tolist()


@every
def test_generation_with_a_cache_equals_generation_without(case: Case, converted: Folders) -> None:
    model, ids = remote(converted(case)), tokens(2, 60)
    options = {"max_new_tokens": 30, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    for beams in (1, 3):
        found = model.generate(ids, do_sample=False, num_beams=beams, use_cache=True, **options)
        wanted = model.generate(ids, do_sample=False, num_beams=beams, use_cache=False, **options)
        assert found.tolist() == wanted.tolist()


@every
def test_bfloat16_errs_no_more_than_the_stock_model(case: Case, sources: Folders, converted: Folders) -> None:
    ids = tokens(2, 60)
    options = {"attn_implementation": "sdpa"} if case.kind.startswith("falcon") else {}
    exact = whole(stock(sources(case.kind), **options), ids)
    rounded = whole(stock(sources(case.kind), dtype=torch.bfloat16, **options), ids).float()
    found = whole(remote(converted(case), dtype=torch.bfloat16), ids)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
    wanted = whole(remote(converted(case)), ids)
    assert float((found.float() - wanted).std()) < 2 * float((rounded - exact).std())


@every
def test_gradient_checkpointing_changes_no_gradient(case: Case, converted: Folders) -> None:
    ids = tokens(2, 90)
    found: list[dict[str, torch.Tensor]] = []
    for checkpointing in (False, True):
        model = remote(converted(case)).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        for part in (ids[:1], ids[1:]):  # two graphs at once: nothing may be kept from one call for the next
            loss = model(input_ids=part, labels=part).loss
            loss = loss + model(input_ids=part[:, :50], labels=part[:, :50]).loss
            loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found[0].values())
    assert max(difference(found[1][name], found[0][name]) for name in found[0]) < 1e-5


@rotary
def test_packed_rows_are_separate_texts(case: Case, converted: Folders) -> None:
    model = remote(converted(case))
    first, second = tokens(1, 80, 1), tokens(1, 70, 2)
    positions = torch.cat((torch.arange(80), torch.arange(70)))[None]
    packed = whole(model, torch.cat((first, second), dim=1), position_ids=positions)
    assert difference(packed[:, :80], whole(model, first)) < 1e-5
    assert difference(packed[:, 80:], whole(model, second)) < 1e-5


@pytest.mark.parametrize("case", [case for case in ROTARY if "block_length" not in case.parameters], ids=str)
def test_positions_with_jumps_stand_beside_the_cache(case: Case, converted: Folders) -> None:
    """Skipped positions, as PoSE trains with: keys must keep the positions that they were given."""
    model, ids = remote(converted(case)), tokens(1, 80)
    positions = torch.cat((torch.arange(40), torch.arange(100, 140)))[None]
    mask = torch.ones(1, 80, dtype=torch.long)  # an explicit mask: the jump is no boundary between texts
    wanted = whole(model, ids, position_ids=positions, attention_mask=mask)
    assert difference(chunked(model, ids, 7, positions), wanted) < 1e-5
    assert difference(whole(model, ids), wanted) > 1e-3


def test_far_jumps_under_a_strong_decay_neither_overflow_nor_change(converted: Folders) -> None:
    """Within one block of queries n/B jumps by 50 000."""
    model, ids = remote(converted(Case("llama", "xpos", {"scale_base": 2}))), tokens(1, 80)
    positions = torch.cat((torch.arange(37), torch.arange(100_000, 100_043)))[None]
    mask = torch.ones(1, 80, dtype=torch.long)
    wanted = whole(model, ids, position_ids=positions, attention_mask=mask)
    assert wanted.isfinite().all()
    assert difference(chunked(model, ids, 1, positions), wanted) < 1e-5
    blocks = remote(converted(Case("llama", "xpos", {"scale_base": 0.1, "block_length": 40})))
    wanted = whole(blocks, ids)  # a block spans 400 scale bases
    assert wanted.isfinite().all()
    assert difference(chunked(blocks, ids, 1), wanted) < 1e-5


@every
def test_a_cropped_cache_goes_on_rightly(case: Case, converted: Folders) -> None:
    """As assisted decoding crops rejected tokens."""
    if case.kind in ("mistral", "gemma2"):
        pytest.skip("transformers crops no windowed cache")
    model, ids = remote(converted(case)), tokens(1, 100)
    wrong = ids.clone()
    wrong[:, 80:] = 5
    with torch.no_grad():
        cache = model(input_ids=wrong, use_cache=True).cache
        cache.crop(-20)
        found = model(input_ids=ids[:, 80:], use_cache=True, cache=cache).logits
    assert difference(found, whole(model, ids)[:, 80:]) < 1e-5
