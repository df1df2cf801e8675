"""InfLLM's cache: one function however a text is fed, keys in the processor's memory, rows, beams, and refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.attention.calls import Extended, extended, states
from tests.modeling.emitted import chunked, difference, tokens, whole

SETTINGS = "window=16,sinks=3,block=5,topk=2,representatives=2"
OPTIONS: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
Models = Callable[..., Extended]
both = pytest.mark.parametrize("offload", [False, True])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made: dict[tuple[str, bool], Extended] = {}

    def model(kind: str = "llama", *, offload: bool = False) -> Extended:
        if (kind, offload) not in made:
            settings = f"{SETTINGS},offload={str(offload).lower()}"
            made[kind, offload] = extended(kind, f"infllm:{settings}", tmp_path_factory.mktemp("infllm"))
        return made[kind, offload]

    return model


@both
@pytest.mark.parametrize("size", [1, 7, 16, 40, 150])
def test_chunks_of_any_size_equal_one_pass(models: Models, size: int, offload: bool) -> None:
    for kind in ("llama", "gpt_neox", "gemma2"):
        exact, ids = copy.deepcopy(models(kind, offload=offload).model).double(), tokens(2, 150)
        assert difference(chunked(exact, ids, size), whole(exact, ids)) < 1e-12


@pytest.mark.parametrize("size", [1, 7, 50])
def test_keys_in_the_processors_memory_give_the_same_numbers(models: Models, size: int) -> None:
    """And only the window, two blocks and what comes before the next block moves stay on the device."""
    ids = tokens(2, 150)
    here, away = models().model, models(offload=True).model
    assert torch.equal(chunked(away, ids, size), chunked(here, ids, size))
    with torch.no_grad():
        cache = None
        for start in range(0, 150, size):
            cache = away(input_ids=ids[:, start : start + size], use_cache=True, cache=cache).cache
            assert cache.layers[0].keys.shape[2] <= 16 + 3 * 5
            assert cache.layers[0].all_keys().moved + cache.layers[0].keys.shape[2] == start + min(size, 150 - start)
    assert cache.layers[0].all_keys().moved > 100
    assert cache.get_seq_length() == 150


@both
@pytest.mark.parametrize("size", [1, 7, 60])
def test_padded_rows_in_chunks(models: Models, size: int, offload: bool) -> None:
    model, ids = models(offload=offload).model, tokens(2, 120)
    mask = torch.ones(2, 120, dtype=torch.long)
    mask[0, :25] = 0
    mask[1, 50:70] = 0  # padding in the midst, as of a second turn
    places = (mask.cumsum(1) - 1).clamp(min=0)
    wanted = whole(model, ids, attention_mask=mask, position_ids=places)
    cache, found = DynamicCache(config=model.config), []
    with torch.no_grad():
        for start in range(0, 120, size):
            part = slice(start, start + size)
            given = {"attention_mask": mask[:, : part.stop], "position_ids": places[:, part]}
            found.append(model(input_ids=ids[:, part], use_cache=True, cache=cache, **given).logits)
    real = mask.bool()
    assert difference(torch.cat(found, dim=1)[real], wanted[real]) < 1e-5
    assert difference(wanted[:1, 25:], whole(model, ids[:1, 25:])) < 1e-5
    joined = whole(model, torch.cat((ids[1:, :50], ids[1:, 70:]), dim=1))
    assert difference(wanted[1:, 70:], joined[:, 50:]) < 1e-5


@both
def test_padded_rows_generate_what_they_do_alone(models: Models, offload: bool) -> None:
    model = models(offload=offload).model
    rows = [tokens(1, length, seed) for seed, length in ((1, 90), (2, 83), (3, 41), (4, 6))]
    padded, mask = torch.zeros(4, 90, dtype=torch.long), torch.zeros(4, 90, dtype=torch.long)
    for row, ids in enumerate(rows):
        padded[row, -ids.shape[1] :] = ids
        mask[row, -ids.shape[1] :] = 1
    together = model.generate(padded, attention_mask=mask, max_new_tokens=40, **OPTIONS)
    for row, ids in enumerate(rows):
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, **OPTIONS)
        assert together[row, -40:].tolist() == alone[0, -40:].tolist()


@both
def test_beams_move_with_their_keys_and_blocks(models: Models, offload: bool) -> None:
    model, ids = models(offload=offload).model, tokens(2, 60)
    options = {**OPTIONS, "max_new_tokens": 30, "num_beams": 3, "attention_mask": torch.ones_like(ids)}
    found = model.generate(ids, use_cache=True, **options)
    assert found.tolist() == model.generate(ids, use_cache=False, **options).tolist()


@both
def test_a_cache_is_copied_repeated_and_reset(models: Models, offload: bool) -> None:
    model, ids = models(offload=offload).model, tokens(1, 120)
    wanted = whole(model, ids)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :100], use_cache=True).cache
        several = copy.deepcopy(cache)
        several.batch_repeat_interleave(3)
        several.batch_select_indices(torch.tensor([2, 0]))
        found = model(input_ids=ids[:, 100:].expand(2, -1), use_cache=True, cache=several).logits
        assert difference(found, wanted[:, 100:].expand(2, -1, -1)) < 1e-5
        assert difference(model(input_ids=ids[:, 100:], use_cache=True, cache=cache).logits, wanted[:, 100:]) < 1e-5
        cache.reset()
        assert cache.get_seq_length() == 0
        assert difference(model(input_ids=ids, use_cache=True, cache=cache).logits, wanted) < 1e-5


def test_rows_in_another_order_without_their_blocks_would_be_wrong(models: Models) -> None:
    """A control: the memory of blocks must move with the keys."""
    model, ids = models().model, tokens(2, 120)
    wanted = whole(model, ids)[:, 100:].flip(0)
    with torch.no_grad():
        for lost in (False, True):
            cache = model(input_ids=ids[:, :100], use_cache=True).cache
            kept = [copy.deepcopy(layer.memory) for layer in cache.layers[:3]]
            cache.reorder_cache(torch.tensor([1, 0]))
            if lost:
                for layer, memory in zip(cache.layers, kept, strict=False):
                    layer.memory = memory
            found = model(input_ids=ids[:, 100:].flip(0), use_cache=True, cache=cache).logits
            assert (difference(found, wanted) > 1e-3) == lost


def test_tokens_are_not_taken_back(models: Models) -> None:
    model, ids = models().model, tokens(1, 60)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).cache
    with pytest.raises(NotImplementedError, match="without an assistant"):
        cache.crop(-1)
    options = {**OPTIONS, "max_new_tokens": 20, "attention_mask": torch.ones_like(ids)}
    with pytest.raises((NotImplementedError, ValueError)):
        model.generate(ids, prompt_lookup_num_tokens=3, **options)


def test_what_is_refused(models: Models) -> None:
    model, ids = models().model, tokens(1, 40)
    with pytest.raises(NotImplementedError, match="dynamic cache only"):
        model(input_ids=ids, use_cache=True, cache=StaticCache(config=model.config, max_cache_len=64))
    filled = DynamicCache(config=model.config)
    for layer in range(3):
        filled.update(torch.zeros(1, 2, 5, 16), torch.zeros(1, 2, 5, 16), layer)
    with pytest.raises(RuntimeError, match="filled itself"):
        model(input_ids=ids, use_cache=True, cache=filled)
    own = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
    assert difference(whole(model, ids, attention_mask=own), whole(model, ids)) < 1e-5
    own[..., 20:, 3] = False
    with pytest.raises(NotImplementedError, match="padding masks only"):
        model(input_ids=ids, attention_mask=own, use_cache=True)
    with pytest.raises(NotImplementedError, match="count up from 0"):
        model(input_ids=ids, position_ids=torch.arange(5, 45)[None], use_cache=False)
    with pytest.raises(NotImplementedError, match="attention weights"):
        model(input_ids=ids, output_attentions=True)
    query, key, value = states(1, 4, 2, 60)
    with pytest.raises(RuntimeError, match="needs its own cache"):
        models().attend(query[:, :, -1:], key, value)


def test_a_layer_with_a_window_of_its_own_keeps_its_cache(models: Models) -> None:
    """Gemma 2's windowed layers hold 23 keys, as the stock model's do; the others hold all."""
    model, ids = models("gemma2").model, tokens(1, 120)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).cache
    held = [layer.keys.shape[2] for layer in cache.layers[:3]]
    windowed = [index for index, kind in enumerate(model.config.layer_types) if kind == "sliding_attention"]
    assert windowed
    assert held == [23 if index in windowed else 120 for index in range(3)]
