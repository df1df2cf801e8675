"""Decoding with rotated keys beside the cache: one key rotated a token, all of them where the table changes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.modeling.emitted import TRAINED, Case, chunked, difference, learned_tables, remote, tokens, whole

Folders = Callable[[Any], Path]
CASES = (
    Case("llama", "dynamic-yarn", {"steps": 4}),
    Case("qwen3", "dynamic-ntk-exact"),
    Case("gpt_neox", "clex-dynamic", {"frequencies": learned_tables(4)}),
    Case("llama", "xpos", {"scale_base": 10}),
    Case("llama", "xpos", {"scale_base": 10, "block_length": 16}),
)
# Tokens after which the table changes: L0 / steps, and two scale bases.
PERIODS = (16, 8, TRAINED, 20, 20)
every = pytest.mark.parametrize("case", CASES, ids=str)


@contextmanager
def rotations(model: Any) -> Iterator[list[int]]:
    """How many tokens each rotation in the model's own code turned."""
    system = next(module.ctxforge_system for module in model.modules() if hasattr(module, "ctxforge_system"))
    code = next(sys.modules[cls.__module__] for cls in type(system).__mro__ if "rotate" in vars(_module(cls)))
    stock, found = code.rotate, []

    def counted(states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found.append(states.shape[2])
        return stock(states, *args, **kwargs)

    code.rotate = counted
    try:
        yield found
    finally:
        code.rotate = stock


def _module(cls: type) -> Any:
    return sys.modules[cls.__module__]


@pytest.mark.parametrize(("case", "period"), list(zip(CASES, PERIODS, strict=True)), ids=str)
def test_a_token_rotates_one_key_except_where_the_table_changes(case: Case, period: int, converted: Folders) -> None:
    model, ids, start = remote(converted(case)), tokens(2, 150), 70
    with torch.no_grad():
        cache = model(input_ids=ids[:, :start], use_cache=True).cache
        whole_again = []
        for at in range(start, 150):
            with rotations(model) as turned:
                cache = model(input_ids=ids[:, at : at + 1], use_cache=True, cache=cache).cache
            if max(turned) > 1:
                assert max(turned) == at + 1
                whole_again.append(at)
            else:
                assert len(turned) == 2 * 3  # a query and a key in each of three layers
    # The prefill crossed changes and kept nothing, so the first token makes all keys.
    assert whole_again == [start, *(at for at in range(start + 1, 150) if at % period == 0)]


@every
def test_feeding_in_any_pieces_is_one_pass(case: Case, converted: Folders) -> None:
    """Pieces that begin and end anywhere around the steps, single tokens among them."""
    model, ids = remote(converted(case), dtype=torch.float64), tokens(2, 200)
    wanted = whole(model, ids)
    generator = torch.Generator().manual_seed(5)
    cache, found, at = None, [], 0
    with torch.no_grad():
        while at < 200:
            size = int(torch.randint(1, 12, (1,), generator=generator)) if at % 3 else 1
            step = model(input_ids=ids[:, at : at + size], use_cache=True, cache=cache)
            cache, at = step.cache, at + size
            found.append(step.logits)
    assert difference(torch.cat(found, dim=1), wanted) < 1e-12


@every
def test_a_crop_back_over_a_change_of_table(case: Case, converted: Folders) -> None:
    """Rejected tokens may lie past a change: the keys kept for it must not serve the tokens before."""
    model, ids = remote(converted(case), dtype=torch.float64), tokens(1, 160)
    wrong = ids.clone()
    wrong[:, 120:] = 5
    wanted = whole(model, ids)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :118], use_cache=True).cache
        for at in range(118, 140):
            cache = model(input_ids=wrong[:, at : at + 1], use_cache=True, cache=cache).cache
        cache.crop(-20)
        for at in range(120, 160):
            step = model(input_ids=ids[:, at : at + 1], use_cache=True, cache=cache)
            cache = step.cache
            assert difference(step.logits[:, 0], wanted[:, at]) < 1e-12


@every
def test_rows_of_other_lengths_change_tables_apart(case: Case, converted: Folders) -> None:
    """Left-padded rows, decoded, then swapped with their cache as a beam search may: each row goes on as alone."""
    model = remote(converted(case), dtype=torch.float64)
    rows, lengths = [tokens(1, 150, seed) for seed in (1, 2)], (90, 61)
    wanted = [whole(model, row) for row in rows]
    ids, mask = torch.zeros(2, 90, dtype=torch.long), torch.zeros(2, 90, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 90 - length :], mask[row, 90 - length :] = rows[row][0, :length], 1
    order, cache = [0, 1], None
    with torch.no_grad():
        for new in range(50):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            step = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, cache=cache)
            cache = step.cache
            for place, row in enumerate(order):
                at = lengths[row] + new - 1
                assert difference(step.logits[place, -1], wanted[row][0, at]) < 1e-12
            if new % 9 == 4:
                order = order[::-1]
                cache.reorder_cache(torch.tensor([1, 0]))
                mask = mask.flip(0)
            ids = torch.stack([rows[row][0, lengths[row] + new : lengths[row] + new + 1] for row in order])
            mask = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1)


@every
def test_beams_over_padded_rows_search_as_without_a_cache(case: Case, converted: Folders) -> None:
    model = remote(converted(case), dtype=torch.float64)
    ids, mask = tokens(2, 70), torch.ones(2, 70, dtype=torch.long)
    ids[1, :23], mask[1, :23] = 0, 0
    options = {"max_new_tokens": 20, "do_sample": False, "num_beams": 3, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=mask, use_cache=True, **options)
    assert found.tolist() == model.generate(ids, attention_mask=mask, use_cache=False, **options).tolist()


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_keys_kept_over_a_change_would_be_wrong(
    case: Case, converted: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a store that is never told of the change."""
    model, ids = remote(converted(case)), tokens(1, 150)
    wanted = whole(model, ids)
    assert difference(chunked(model, ids, 1), wanted) < 1e-5
    system = next(module.ctxforge_system for module in model.modules() if hasattr(module, "ctxforge_system"))
    code = next(_module(cls) for cls in type(system).__mro__ if "stored" in vars(_module(cls)))
    kept = code.stored
    monkeypatch.setattr(code, "stored", lambda *args, label=None: kept(*args, label=None))  # noqa: ARG005
    assert difference(chunked(model, ids, 1), wanted) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every
def test_kept_keys_round_as_keys_do(case: Case, dtype: torch.dtype, converted: Folders) -> None:
    """Half precision, token by token: no worse than one pass in the same precision."""
    ids = tokens(1, 150)
    exact = whole(remote(converted(case)), ids)
    model = remote(converted(case), dtype=dtype)
    once, by_token = (float((found.float() - exact).std()) for found in (whole(model, ids), chunked(model, ids, 1)))
    assert by_token < 1.5 * once
