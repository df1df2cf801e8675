"""Copies of keys beside the cache: right after whatever happens to a cache, and made once for each key."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from templates.modeling.ctxforge_attention import Call
from templates.modeling.ctxforge_key_store import KeyStore, stored

LAYERS = 2
SYSTEM: Any = SimpleNamespace(layers=LAYERS)


class Run:
    """A cache that is fed random keys, and the copies asked for after each feeding."""

    def __init__(self, copies: int = 2) -> None:
        self.cache, self.copies, self.made = DynamicCache(), copies, 0

    def feed(self, count: int, rows: int = 3, *, label: Any = None, layer: int = 0) -> None:
        new = torch.randn(rows, 2, count, 8)
        key, value = self.cache.update(new, new, layer)
        self.key = key
        call = Call(new, key, value, torch.zeros(rows, count), torch.zeros(rows, key.shape[2]), None, 1.0, 0.0)
        call.cache = self.cache

        def make(keys: slice) -> tuple[torch.Tensor, ...]:
            self.made += keys.stop - keys.start
            part = key[:, :, keys]
            return (part + 1, torch.cat((part, part), dim=-1) * 2)[: self.copies]

        found = stored(SYSTEM, SimpleNamespace(layer_idx=layer), call, make, label=label)  # type: ignore[arg-type]
        assert len(found) == self.copies
        assert torch.equal(found[0], key + 1)
        if self.copies == 2:
            assert torch.equal(found[1], torch.cat((key, key), dim=-1) * 2)


@pytest.mark.parametrize("copies", [1, 2])
def test_each_key_is_copied_once(copies: int) -> None:
    run = Run(copies)
    run.feed(50)
    for _ in range(200):
        run.feed(1)
    assert run.made == 250
    run.feed(7, layer=1)  # another layer's store holds its own
    assert run.made == 257


def test_beams_crops_repeats_and_copies_move_the_stores_along() -> None:
    run = Run()
    run.feed(20)
    run.cache.reorder_cache(torch.tensor([2, 0, 0]))
    run.feed(1)
    run.cache.crop(-7)
    run.feed(3)
    run.cache.batch_select_indices(torch.tensor([1, 2]))
    run.feed(2, rows=2)
    run.cache.batch_repeat_interleave(2)
    run.feed(1, rows=4)
    assert run.made == 27
    other = Run()
    other.cache = copy.deepcopy(run.cache)
    other.feed(4, rows=4)
    run.feed(4, rows=4)  # written to its own room, not to the copy's
    other.feed(1, rows=4)
    run.cache.reset()
    run.feed(5, rows=2)


def test_another_label_makes_all_anew() -> None:
    run = Run()
    run.feed(10, label=1)
    run.feed(1, label=2)
    run.feed(1, label=2)
    assert run.made == 10 + 11 + 1


def test_what_was_made_in_inference_mode_goes_on_outside() -> None:
    run = Run()
    with torch.inference_mode():
        run.feed(10)
    with torch.no_grad():
        run.feed(1)
    assert run.made == 11


def test_a_pass_that_trains_stores_nothing_and_is_caught_up_with() -> None:
    cache = DynamicCache()
    new = torch.randn(1, 2, 4, 8, requires_grad=True)
    key, value = cache.update(new, new, 0)
    call = Call(new, key, value, torch.zeros(1, 4), torch.zeros(1, 4), None, 1.0, 0.0, cache=cache)
    module: Any = SimpleNamespace(layer_idx=0)
    stored(SYSTEM, module, call, lambda keys: (key[:, :, keys] * 3,))[0].sum().backward()
    assert new.grad is not None
    assert not any(isinstance(layer, KeyStore) for layer in cache.layers)
    with torch.no_grad():
        assert torch.equal(stored(SYSTEM, module, call, lambda keys: (key[:, :, keys] * 3,))[0], key * 3)


def test_a_store_with_the_wrong_keys_would_be_seen() -> None:
    run = Run()
    run.feed(10)
    store = run.cache.layers[LAYERS + 1]
    store.keys[0, 0, 3, 0] += 1
    with pytest.raises(AssertionError):
        run.feed(1)
