"""The evicting cache: constant size, the dense reference at any point of a stream, rows, beams, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from ctxforge.attention.lambda_window import pattern
from ctxforge.attention.reference import dense_attention
from tests.attention.calls import Extended, extended
from tests.modeling.emitted import chunked, difference, read_config, tokens, whole

WINDOW, SINKS = 16, 3
KEPT = WINDOW + SINKS - 1
NAMES = ("lm-infinite", "streaming-llm")
every = pytest.mark.parametrize("name", NAMES)
Models = Callable[..., Extended]
OPTIONS = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made: dict[tuple[str, str, bool], Extended] = {}

    def model(name: str, kind: str = "llama", *, evict: bool = True) -> Extended:
        if (name, kind, evict) not in made:
            settings = f"window={WINDOW},sinks={SINKS}" + ("" if evict else ",evict=false")
            made[name, kind, evict] = extended(kind, f"{name}:{settings}", tmp_path_factory.mktemp(name))
        return made[name, kind, evict]

    return model


def layers(cache: Any) -> list[Any]:
    return list(cache.layers[:3])


@every
def test_a_stream_of_thousands_of_tokens(models: Models, name: str) -> None:
    """Token by token: the cache stays as large as it is, and what the last layer gives is the dense formula's.

    The dense reference is computed from that layer's own inputs, caught on the way: all keys of the stream, most of
    which the cache has dropped. Besides, the logits are those of one pass over the whole text.
    """
    model, length = models(name), 2500
    caught: list[Any] = []
    attend = type(model.system).attend

    def catching(self: Any, module: Any, call: Any) -> torch.Tensor:
        made: torch.Tensor = attend(self, module, call)
        if module.layer_idx == 2:
            last = slice(-call.query.shape[2], None)
            caught.append((call.query, call.key[:, :, last], call.value[:, :, last], made))
        return made

    ids = tokens(1, length)
    wanted = whole(model.model, ids)
    type(model.system).attend = catching
    try:
        cache, found, sizes = DynamicCache(config=model.model.config), [], []
        with torch.no_grad():
            for step in range(length):
                output = model.model(input_ids=ids[:, step : step + 1], use_cache=True, cache=cache)
                found.append(output.logits)
                held = layers(cache)
                sizes.append([one.untyped_storage().nbytes() for layer in held for one in (layer.keys, layer.values)])
                assert cache.get_seq_length() == step + 1
    finally:
        type(model.system).attend = attend
    assert sizes[KEPT] == sizes[-1] == [KEPT * 2 * 16 * 4] * 6
    assert len(cache.layers) == 3
    assert difference(torch.cat(found, dim=1), wanted) < 2e-5
    query, key, value, made = (torch.cat(parts, dim=2).double() for parts in zip(*caught, strict=True))
    table, _ = model.system.frequencies(model.module, query.device)
    parameters = read_config(model.folder)["ctxforge"]["parameters"]
    for at in (KEPT - 1, KEPT, KEPT + 1, 100, 1000, 2499):
        span = slice(max(at - 300, SINKS), at + 1)  # sinks and the newest 300, at their true positions
        index = torch.cat((torch.arange(SINKS), torch.arange(span.start, span.stop)))
        full = pattern(parameters, at + 1, 4)
        here = type(full)(full.visible[:, index][:, :, index], full.distance[:, index][:, :, index])
        assert int(here.visible[0, -1].sum()) == int(full.visible[0, -1].sum())
        dense = dense_attention(*(part[:, :, index] for part in (query, key, value)), table, here, scaling=16**-0.5)
        assert difference(made[:, :, at], dense[:, :, -1]) < 1e-5


@every
@pytest.mark.parametrize("size", [1, 7, KEPT, 40, 150])
def test_chunks_of_any_size_equal_one_pass(models: Models, name: str, size: int) -> None:
    """Also those longer than the cache."""
    for kind in ("llama", "gpt_neox", "qwen3"):
        model, ids = models(name, kind), tokens(2, 150)
        assert difference(chunked(model.model, ids, size), whole(model.model, ids)) < 1e-5
    exact = copy.deepcopy(models(name).model).double()
    assert difference(chunked(exact, ids, size), whole(exact, ids)) < 1e-12


@every
def test_evicting_and_keeping_compute_the_same(models: Models, name: str) -> None:
    ids = tokens(2, 150)
    kept = models(name, evict=False)
    wanted = whole(models(name).model, ids)
    for size in (1, 7, 50):
        assert difference(chunked(kept.model, ids, size), wanted) < 1e-5
    with torch.no_grad():
        cache = kept.model(input_ids=ids, use_cache=True).cache
        assert cache.layers[0].keys.shape[2] == 150
        cache = models(name).model(input_ids=ids, use_cache=True).cache
        assert cache.layers[0].keys.shape[2] == KEPT


@every
def test_padded_rows_generate_what_they_do_alone(models: Models, name: str) -> None:
    """Each row keeps its own sinks: rows whose padding is longer than the cache, and shorter."""
    model = models(name).model
    rows = [tokens(1, length, seed) for seed, length in ((1, 90), (2, 83), (3, 41), (4, 6))]
    padded, mask = torch.zeros(4, 90, dtype=torch.long), torch.zeros(4, 90, dtype=torch.long)
    for row, ids in enumerate(rows):
        padded[row, -ids.shape[1] :] = ids
        mask[row, -ids.shape[1] :] = 1
    together = model.generate(padded, attention_mask=mask, max_new_tokens=40, **OPTIONS)
    for row, ids in enumerate(rows):
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, **OPTIONS)
        assert together[row, -40:].tolist() == alone[0, -40:].tolist()


@every
@pytest.mark.parametrize("size", [1, 7, 60])
def test_padded_rows_in_chunks(models: Models, name: str, size: int) -> None:
    model, ids = models(name).model, tokens(2, 120)
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
    alone = whole(model, ids[:1, 25:])
    assert difference(wanted[:1, 25:], alone) < 1e-5
    joined = whole(model, torch.cat((ids[1:, :50], ids[1:, 70:]), dim=1))
    assert difference(wanted[1:, 70:], joined[:, 50:]) < 1e-5


@every
def test_beams_move_with_their_keys(models: Models, name: str) -> None:
    model, ids = models(name).model, tokens(2, 60)
    options = {**OPTIONS, "max_new_tokens": 30, "num_beams": 3, "attention_mask": torch.ones_like(ids)}
    found = model.generate(ids, use_cache=True, **options)
    assert found.tolist() == model.generate(ids, use_cache=False, **options).tolist()


def test_a_cache_is_copied_repeated_and_reset(models: Models) -> None:
    model, ids = models("streaming-llm").model, tokens(1, 120)
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


def test_tokens_are_taken_back_only_while_none_was_dropped(models: Models) -> None:
    model, ids = models("streaming-llm").model, tokens(1, 40)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :KEPT], use_cache=True).cache
        cache.crop(-5)
        found = model(input_ids=ids[:, KEPT - 5 :], use_cache=True, cache=cache).logits
        assert difference(found, whole(model, ids)[:, KEPT - 5 :]) < 1e-5
        with pytest.raises(NotImplementedError, match="evict=false"):
            cache.crop(-1)
    kept = models("streaming-llm", evict=False).model
    with torch.no_grad():
        cache = kept(input_ids=torch.cat((ids, ids), dim=1), use_cache=True).cache
        cache.crop(-40)
        found = kept(input_ids=ids, use_cache=True, cache=cache).logits
    assert difference(found, whole(kept, torch.cat((ids, ids), dim=1))[:, 40:]) < 1e-5


def test_assisted_decoding_needs_a_cache_that_keeps(models: Models) -> None:
    model, kept, ids = models("streaming-llm").model, models("streaming-llm", evict=False).model, tokens(1, 60)
    options = {**OPTIONS, "max_new_tokens": 20, "attention_mask": torch.ones_like(ids)}
    with pytest.raises((NotImplementedError, ValueError)):
        model.generate(ids, prompt_lookup_num_tokens=3, **options)
    wanted = model.generate(ids, **options)
    assert kept.generate(ids, prompt_lookup_num_tokens=3, **options).tolist() == wanted.tolist()


def test_what_an_evicting_cache_refuses(models: Models) -> None:
    model, ids = models("streaming-llm").model, tokens(1, 40)
    for cache in (StaticCache(config=model.config, max_cache_len=64),):
        with pytest.raises(NotImplementedError, match="dynamic cache only"):
            model(input_ids=ids, use_cache=True, cache=cache)
    filled = DynamicCache(config=model.config)
    for layer in range(3):
        filled.update(torch.zeros(1, 2, 5, 16), torch.zeros(1, 2, 5, 16), layer)
    with pytest.raises(RuntimeError, match="filled itself"):
        model(input_ids=ids, use_cache=True, cache=filled)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).cache
        own = torch.ones(1, 1, 1, 41, dtype=torch.bool)
        with pytest.raises(NotImplementedError, match="drops no keys"):
            model(input_ids=ids[:, :1], attention_mask=own, use_cache=True, cache=cache)
        own = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
        with pytest.raises(NotImplementedError, match="padding masks"):
            model(input_ids=ids, attention_mask=own, use_cache=True)
        kept = models("streaming-llm", evict=False).model
        assert difference(kept(input_ids=ids, attention_mask=own, use_cache=True).logits, whole(kept, ids)) < 1e-5
    with pytest.raises(NotImplementedError, match="attention weights"):
        model(input_ids=ids, output_attentions=True)
