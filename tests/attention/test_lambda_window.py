"""LM-Infinite and StreamingLLM: blocks against the dense reference, sinks by row, linear memory, parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ctxforge
from ctxforge.attention.lambda_window import pattern
from ctxforge.attention.reference import causal, distances
from ctxforge.errors import UnsupportedError, UsageError
from tests.attention.calls import Extended, extended, states
from tests.modeling.emitted import difference, read_config, remote, save_stock, stock, tokens, whole

WINDOW, SINKS = 16, 3
NAMES = ("lm-infinite", "streaming-llm")
every = pytest.mark.parametrize("name", NAMES)
Models = Callable[..., Extended]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made: dict[tuple[str, str, str], Extended] = {}

    def model(name: str, kind: str = "llama", settings: str = f"window={WINDOW},sinks={SINKS}") -> Extended:
        if (name, kind, settings) not in made:
            made[name, kind, settings] = extended(kind, f"{name}:{settings}", tmp_path_factory.mktemp(name))
        return made[name, kind, settings]

    return model


def geometry(model: Extended, length: int) -> Any:
    return pattern(read_config(model.folder)["ctxforge"]["parameters"], length, 4)


def test_the_patterns_by_hand() -> None:
    """W = 3, G = 2: distances of the visible keys, written out."""
    ceiling = [[0], [1, 0], [2, 1, 0], [3, 2, 1, 0], [3, 3, 2, 1, 0], [3, 3, 2, 1, 0], [3, 3, 2, 1, 0]]
    cache = [[0], [1, 0], [2, 1, 0], [3, 2, 1, 0], [4, 3, 2, 1, 0], [4, 3, 2, 1, 0], [4, 3, 2, 1, 0]]
    for rule, wanted in (("ceiling", ceiling), ("cache", cache)):
        found = pattern({"window": 3, "sinks": 2, "sink_distance": rule}, 7, 4)
        rows = zip(found.distance[0], found.visible[0], strict=True)
        assert [row[seen].tolist() for row, seen in rows] == wanted
        assert found.visible[0, 6].tolist() == [True, True, False, False, True, True, True]
        assert found.bias is None


@every
@pytest.mark.parametrize("length", [5, 16, 17, 64, 150, 300])
def test_blocks_compute_what_the_dense_reference_does(models: Models, name: str, length: int) -> None:
    for kind in ("llama", "glm"):
        model = models(name, kind)
        query, key, value = states(2, 4, 2, length)
        wanted = geometry(model, length)
        exact = model.attend(query.double(), key.double(), value.double())
        assert difference(exact, model.dense(query, key, value, wanted)) < 1e-12
        found = model.attend(query, key, value)
        assert difference(found, exact) < 1e-5
        for late in (1, 7, min(length, 40)):
            assert difference(model.attend(query[:, :, -late:], key, value), exact[:, :, -late:]) < 1e-5


@every
def test_what_would_be_wrong_shows(models: Models, name: str) -> None:
    """Controls: a window one wider, a sink too many, the other rule, a distance off by one."""
    model = models(name)
    query, key, value = states(2, 4, 2, 150)
    found = model.attend(query, key, value)
    parameters = read_config(model.folder)["ctxforge"]["parameters"]
    other = {"ceiling": "cache", "cache": "ceiling"}[parameters["sink_distance"]]
    for change in ({"window": WINDOW + 1}, {"sinks": SINKS + 1}, {"sink_distance": other}):
        assert difference(found, model.dense(query, key, value, pattern({**parameters, **change}, 150, 4))) > 1e-3
    wanted = geometry(model, 150)
    nearer = torch.where(wanted.distance == wanted.distance.max(), wanted.distance - 1, wanted.distance)
    assert difference(found, model.dense(query, key, value, replace(wanted, distance=nearer))) > 1e-3


@every
@pytest.mark.parametrize("sinks", [10, 15])
def test_few_and_many_sinks_a_dimension_of_the_head(models: Models, name: str, sinks: int) -> None:
    """Up to 15 sinks their scores are further dimensions, of 16; past that, with half precision, whole queries are."""
    model = models(name, settings=f"window={WINDOW},sinks={sinks}")
    query, key, value = states(1, 4, 2, 150)
    wanted = model.dense(query, key, value, geometry(model, 150))
    assert difference(model.attend(query, key, value), wanted) < 1e-5
    rounded = [part.bfloat16() for part in (query, key, value)]
    found = model.attend(*rounded)
    assert found.dtype == torch.bfloat16
    exact = model.dense(*rounded, geometry(model, 150))
    plain = torch.nn.functional.scaled_dot_product_attention(
        *(part.repeat_interleave(4 // part.shape[1], 1) for part in rounded), is_causal=True, scale=0.6
    )
    precise = torch.nn.functional.scaled_dot_product_attention(
        *(part.double().repeat_interleave(4 // part.shape[1], 1) for part in rounded), is_causal=True, scale=0.6
    )
    # As large as the error of attention in bfloat16 itself, with the rotation's rounding on top.
    assert float((found.double() - exact).std()) < 4 * float((plain.double() - precise).std())


@every
def test_short_texts_are_the_stock_models(models: Models, name: str) -> None:
    for kind in ("llama", "qwen3", "gpt_neox"):
        model = models(name, kind)
        plain, ids = stock(model.source), tokens(2, WINDOW)
        assert difference(whole(model.model, ids), whole(plain, ids)) < 1e-5
        longer = tokens(2, 60)
        assert difference(whole(model.model, longer)[:, -1], whole(plain, longer)[:, -1]) > 1e-3


def test_streaming_is_the_stock_model_until_its_cache_is_full(models: Models) -> None:
    """Sinks keep their distance up to G + W - 1, so nothing but hidden keys differs; with these hidden anyway, none."""
    model = models("streaming-llm")
    query, key, value = states(1, 4, 2, WINDOW + SINKS)
    plain = replace(geometry(model, WINDOW + SINKS), distance=distances(WINDOW + SINKS))
    assert difference(model.attend(query, key, value), model.dense(query, key, value, plain)) < 1e-5
    assert bool((plain.visible == causal(WINDOW + SINKS)).all())


def test_without_sinks_it_is_a_sliding_window(models: Models, tmp_path: Path) -> None:
    """The same weights as Mistral, whose window of W tokens transformers masks itself."""
    source = save_stock("mistral", tmp_path / "source")
    windowed = stock(source)
    assert windowed.config.sliding_window == 24
    config = read_config(source)
    config["sliding_window"] = None
    (source / "config.json").write_text(json.dumps(config))
    for name in NAMES:
        ctxforge.extend(source, attach=f"{name}:window=24,sinks=0", to=256, out=tmp_path / name)
        ids = tokens(2, 150)
        assert difference(whole(remote(tmp_path / name), ids), whole(windowed, ids)) < 1e-5
        assert difference(whole(windowed, ids), whole(stock(source), ids)) > 1e-3


@every
def test_each_row_has_its_own_sinks_and_window(models: Models, name: str) -> None:
    """Left padding, and positions that a row starts late at: those have no sinks."""
    model = models(name)
    rows = [tokens(1, length, seed) for seed, length in ((1, 130), (2, 71), (3, 20))]
    padded, mask = torch.zeros(3, 130, dtype=torch.long), torch.zeros(3, 130, dtype=torch.long)
    for row, ids in enumerate(rows):
        padded[row, -ids.shape[1] :] = ids
        mask[row, -ids.shape[1] :] = 1
    found = whole(model.model, padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for row, ids in enumerate(rows):
        assert difference(found[row, -ids.shape[1] :], whole(model.model, ids)[0]) < 1e-5
    query, key, value = states(2, 4, 2, 100)
    places = torch.tensor([[0], [50]]) + torch.arange(100)
    both = model.attend(query, key, value, query_positions=places, key_positions=places)
    plain = {"window": WINDOW, "sinks": 0, "sink_distance": "ceiling"}
    assert difference(both[1:], model.dense(query[1:], key[1:], value[1:], pattern(plain, 100, 4))) < 1e-5
    assert difference(both[:1], model.dense(query[:1], key[:1], value[:1], geometry(model, 100))) < 1e-5


@every
def test_packed_texts_have_sinks_of_their_own(models: Models, name: str) -> None:
    model, lengths = models(name), (80, 70, 33)
    texts = [tokens(1, length, seed) for seed, length in enumerate(lengths)]
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = whole(model.model, torch.cat(texts, dim=1), position_ids=places).split(lengths, dim=1)
    for found, ids in zip(packed, texts, strict=True):
        assert difference(found, whole(model.model, ids)) < 1e-5


@every
def test_gradients_are_the_dense_references(models: Models, name: str) -> None:
    model = models(name)
    given = [part.double().requires_grad_() for part in states(1, 4, 2, 150)]
    weights = torch.randn(1, 4, 150, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours, theirs = model.attend(*given), model.dense(*given, geometry(model, 150))
    assert difference(ours.detach(), theirs.detach()) < 1e-12  # masked blocks; without gradients a CPU has bands
    assert difference(model.attend(*(part.detach() for part in given)), theirs.detach()) < 1e-12
    found = torch.autograd.grad((ours * weights).sum(), given)
    wanted = torch.autograd.grad((theirs * weights).sum(), given)
    for one, other in zip(found, wanted, strict=True):
        assert difference(one, other) < 1e-9


def test_bands_end_where_positions_jump(models: Models) -> None:
    """A gap in the positions narrows windows, also far from its place: masked blocks, with the same result."""
    model = models("streaming-llm")
    query, key, value = (part.double() for part in states(1, 4, 2, 150))
    places = torch.cat((torch.arange(90), torch.arange(95, 155)))[None]
    found = model.attend(query, key, value, query_positions=places, key_positions=places)
    full = geometry(model, 155)
    index = places[0]
    gapped = replace(full, visible=full.visible[:, index][:, :, index], distance=full.distance[:, index][:, :, index])
    assert difference(found, model.dense(query, key, value, gapped)) < 1e-12
    assert difference(found, model.attend(query, key, value)) > 1e-3


class _Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation makes."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.found = max(self.found, one.untyped_storage().nbytes() // one.element_size())
        return made


@every
@pytest.mark.parametrize("padded", [False, True])
def test_no_tensor_grows_with_the_square_of_the_length(models: Models, name: str, padded: bool) -> None:
    """At 2048 tokens a T x T mask has 4.2 million elements; the model's largest tensor has T x 96."""
    largest = []
    for length in (1024, 2048):
        ids, mask = tokens(1, length), torch.ones(1, length, dtype=torch.long)
        mask[:, : 5 if padded else 0] = 0
        with _Largest() as seen:
            whole(models(name).model, ids, attention_mask=mask)
        largest.append(seen.found)
    assert largest[1] <= 2 * largest[0]
    assert largest[1] <= 2048 * 96


def test_parameters(tmp_path: Path) -> None:
    source = save_stock("llama", tmp_path / "source")  # trained on 64 tokens

    def planned(attachment: str, **options: Any) -> Any:
        made = ctxforge.plan(source, attach=attachment, to=256, **options)
        assert made.attached is not None
        return made.attached.parameters

    assert planned("lm-infinite") == {"window": 54, "sinks": 10, "sink_distance": "ceiling", "evict": True}
    assert planned("streaming-llm") == {"window": 60, "sinks": 4, "sink_distance": "cache", "evict": True}
    assert planned("streaming-llm:window=20,evict=false")["evict"] is False
    assert planned("streaming-llm", method="yarn")["window"] == 252
    for name in NAMES:
        for wrong, said in (
            ("window=10,sinks=10", "not larger than 10 sinks"),
            ("sinks=-1", "sinks=-1"),
            ("sinks=40", "not larger"),
            ("window=61,sinks=4", "exceed the 64 tokens"),
            ("window=two", "whole number"),
        ):
            with pytest.raises(UsageError, match=said):
                planned(f"{name}:{wrong}")
        with pytest.raises(UsageError, match="exceed the 256"):
            planned(f"{name}:window=255,sinks=4", method="yarn")
        with pytest.raises(UnsupportedError, match="stretches"):
            planned(name, method="dynamic-ntk")


@every
def test_distances_stay_below_the_trained_length_by_default(name: str) -> None:
    sinks = {"lm-infinite": 10, "streaming-llm": 4}[name]
    rule = {"lm-infinite": "ceiling", "streaming-llm": "cache"}[name]
    found = pattern({"window": 64 - sinks, "sinks": sinks, "sink_distance": rule}, 300, 4)
    assert int(found.distance[found.visible].max()) <= 63
    assert int(found.visible.sum(-1).max()) == 64
