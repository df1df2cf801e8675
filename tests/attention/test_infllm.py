"""InfLLM against the written-out form: which blocks are chosen, what is seen, and nothing of what comes later."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import ctxforge
from ctxforge.attention import find_attachment
from ctxforge.attention.infllm import resolve
from ctxforge.attention.reference import causal, distances
from ctxforge.attention.types import Situation
from ctxforge.errors import UnsupportedError, UsageError
from tests.attention.calls import SCALING, Extended, Largest, extended, states
from tests.attention.retrieval import Rotation, Settings, choices, moved, pattern_of, written_out, written_out_model
from tests.modeling.emitted import difference, save_stock, tokens, whole

SETTINGS = Settings(window=16, sinks=3, block=5, topk=2, representatives=2)
Models = Callable[..., Extended]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made: dict[tuple[str, str], Extended] = {}

    def model(kind: str = "llama", settings: str = SETTINGS.text, name: str = "infllm") -> Extended:
        if (kind, name + settings) not in made:
            made[kind, name + settings] = extended(kind, f"{name}:{settings}", tmp_path_factory.mktemp("infllm"))
        return made[kind, name + settings]

    return model


def rotation_of(model: Extended) -> Rotation:
    table, temperature = model.system.frequencies(model.module, torch.device("cpu"))
    return Rotation(table, temperature, model.system.interleaved)


def reference(model: Extended, tensors: Any, settings: Settings = SETTINGS, **options: Any) -> torch.Tensor:
    return written_out(*tensors, rotation_of(model), settings, scaling=SCALING, **options)


def test_what_is_seen_by_hand() -> None:
    """W = 4, G = 1, blocks of 2 from position 1 on: the query at 8 may choose of 1-2 and 3-4."""
    settings = Settings(window=4, sinks=1, block=2, topk=1, representatives=1)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(h, 11, 4, generator=generator) for h in (2, 1))
    found = choices(query, key, Rotation(torch.tensor([1.0, 0.1])), settings)
    assert [len(blocks) for blocks in found] == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    wanted = {4: [0, 1, 2, 3, 4], 5: [0, 1, 2, 3, 4, 5], 6: [0, 1, 2, 3, 4, 5, 6], 7: [0, 1, 2, 3, 4, 5, 6, 7]}
    pattern = pattern_of([[], [], [], [], [], [], [0], [0], [1], [1], [0]], settings)
    wanted |= {8: [0, 3, 4, 5, 6, 7, 8], 9: [0, 3, 4, 5, 6, 7, 8, 9], 10: [0, 1, 2, 7, 8, 9, 10]}
    for m, seen in wanted.items():
        assert pattern.visible[0, m].nonzero()[:, 0].tolist() == seen
    assert pattern.distance[0, 10, [0, 1, 2, 7, 8, 9, 10]].tolist() == [4, 4, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("length", [5, 16, 17, 40, 150, 300])
@pytest.mark.parametrize("kind", ["llama", "glm"])
def test_it_computes_what_is_written_out(models: Models, kind: str, length: int) -> None:
    model = models(kind)
    tensors = states(2, 4, 2, length)
    wanted = reference(model, tensors)
    assert difference(model.attend(*(part.double() for part in tensors)), wanted) < 1e-12
    assert difference(model.attend(*tensors), wanted) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        Settings(16, 0, 5, 2, 2),
        Settings(15, 3, 5, 3, 1),
        Settings(16, 3, 16, 1, 4),
        Settings(16, 3, 1, 4, 1),
        Settings(40, 7, 3, 5, 3),
        Settings(16, 3, 4, 30, 4),
    ],
    ids=lambda settings: settings.text,
)
def test_other_settings(models: Models, settings: Settings) -> None:
    model, tensors = models(settings=settings.text), states(1, 4, 2, 150, dtype=torch.float64)
    assert difference(model.attend(*tensors), reference(model, tensors, settings)) < 1e-12


def test_what_would_be_wrong_shows(models: Models) -> None:
    """Controls: each setting off by one changes the output, and so does the sum over too few queries."""
    model, tensors = models(), states(1, 4, 2, 150, dtype=torch.float64)
    found = model.attend(*tensors)
    assert difference(found, reference(model, tensors)) < 1e-12
    for name in vars(SETTINGS):
        wrong = moved(SETTINGS, **{name: getattr(SETTINGS, name) + 1})
        assert difference(found, reference(model, tensors, wrong)) > 1e-3, name
    chosen = choices(tensors[0][0], tensors[1][0], rotation_of(model), SETTINGS)
    assert any(blocks != list(range(len(blocks))) for blocks in chosen)
    newest = [[*range(max(m - 16 - 3 + 1, 0) // 5)][-2:] for m in range(150)]
    assert difference(found, model.dense(*tensors, pattern_of(newest, SETTINGS))) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox", "glm", "gemma2", "mistral"])
def test_whole_models_compute_what_is_written_out(models: Models, kind: str) -> None:
    """Layers choose by their own queries and keys; those with a window of their own keep to it."""
    model, ids = models(kind), tokens(1, 120)
    wanted = whole(written_out_model(model.source, SETTINGS, interleaved=kind == "glm"), ids)
    found = whole(model.model, ids)
    assert difference(found, wanted) < 2e-5
    if kind != "mistral":  # all of its layers have windows
        other = written_out_model(model.source, moved(SETTINGS, topk=1), interleaved=kind == "glm")
        assert difference(found, whole(other, ids)) > 1e-3


@pytest.mark.parametrize("sizes", [(32, 64, 8, 2**25), (8, 16, 500, 2**13), (256, 300, 1, 2**10)])
def test_however_queries_are_put_together(
    models: Models, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    """Tiles, groups that choose together, when blocks are attended to singly, and the scores in memory."""
    model, tensors = models(), states(2, 4, 2, 300, dtype=torch.float64)
    module = sys.modules[f"{type(model.model).__module__.rpartition('.')[0]}.ctxforge_block_attention"]
    for name, size in zip(("TILE", "_GROUP", "_MANY", "_SCORES"), sizes, strict=True):
        monkeypatch.setattr(module, name, size)
    for options in ({}, {"softcap": 4.0}):
        assert difference(model.attend(*tensors, **options), reference(model, tensors, **options)) < 1e-12


def test_soft_caps_and_sinks_of_the_model(models: Models) -> None:
    model, tensors = models(), states(2, 4, 2, 150)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for options in ({"sinks": sinks}, {"softcap": 4.0}, {"softcap": 4.0, "sinks": sinks}):
        found, wanted = model.attend(*tensors, **options), reference(model, tensors, **options)
        assert difference(found, wanted) < 1e-5
        assert difference(found, model.attend(*tensors)) > 1e-3


def test_gradients_are_those_of_attention_to_what_was_chosen(models: Models) -> None:
    model = models()
    given = [part.requires_grad_() for part in states(1, 4, 2, 120, dtype=torch.float64)]
    weights = torch.randn(1, 4, 120, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    outputs = model.attend(*given), reference(model, given)
    found, wanted = (torch.autograd.grad((one * weights).sum(), given) for one in outputs)
    for one, other in zip(found, wanted, strict=True):
        assert difference(one, other) < 1e-9


def test_half_precision_chooses_the_same(models: Models) -> None:
    """The choice is made in float32 whatever the inputs are, so only attention itself is rounded."""
    model = models()
    rounded = [part.bfloat16() for part in states(1, 4, 2, 300)]
    found = model.attend(*rounded)
    assert found.dtype == torch.bfloat16
    error = (found.double() - reference(model, rounded)).abs()
    assert float(error.mean()) < 0.01
    assert float(error.max()) < 0.2


def test_nothing_chosen_with_blocks_of_one_is_lm_infinite(models: Models) -> None:
    settings = Settings(window=16, sinks=3, block=1, topk=0, representatives=1)
    ids = tokens(2, 150)
    for kind in ("llama", "gpt_neox"):
        model, other = models(kind, settings.text), models(kind, "window=16,sinks=3", "lm-infinite")
        assert difference(whole(model.model, ids), whole(other.model, ids)) < 1e-5
    tensors = states(1, 4, 2, 150, dtype=torch.float64)
    longer = moved(settings, block=5)  # what is not yet a whole block stays seen
    found = models(settings=longer.text).attend(*tensors)
    assert difference(found, models().dense(*tensors, pattern_of([[]] * 150, longer))) < 1e-12


def test_every_block_chosen_is_full_attention_within_the_window(models: Models) -> None:
    tensors = states(1, 4, 2, 150, dtype=torch.float64)
    model = models(settings=moved(SETTINGS, topk=26).text)  # (150 - 16 - 3) // 5
    everything = replace(pattern_of([[]] * 150, SETTINGS), visible=causal(150))
    assert torch.equal(everything.distance, distances(150).clamp(max=16))
    assert difference(model.attend(*tensors), model.dense(*tensors, everything)) < 1e-12
    fewer = models(settings=moved(SETTINGS, topk=20).text)
    assert difference(fewer.attend(*tensors), model.dense(*tensors, everything)) > 1e-3


def test_no_query_chooses_by_later_ones(models: Models) -> None:
    """What queries see does not change with what comes after; chosen by means of 32 queries, it does."""
    model, ids = models(), tokens(1, 150)
    leaking = written_out_model(model.source, SETTINGS, interleaved=False, averaged=32)
    changed = ids.clone()
    changed[:, 140:] = (changed[:, 140:] + 1) % 90 + 3
    kept = whole(model.model, ids)[:, :140], whole(model.model, changed)[:, :140]
    leaked = whole(leaking, ids)[:, :140], whole(leaking, changed)[:, :140]
    assert difference(*kept) < 1e-6
    assert difference(*leaked) > 1e-3


def test_a_needle_is_found_where_lm_infinite_sees_nothing(models: Models) -> None:
    """The query at the end asks for a key 200 tokens back, far out of the window."""
    query, key, value = states(1, 4, 2, 300)
    query[:, :, -1] = 0.1 * query[:, :, -1]
    model, needle, last = models(settings=moved(SETTINGS, topk=1).text), 100, 299
    rotation = rotation_of(model)
    key[:, :, needle] = 3.0
    # Towards the key, as seen 16 tokens away; and the tokens right after it ask for it too.
    angles = rotation.table * 16
    cos, sin = (torch.cat((part, part)) for part in (angles.cos(), angles.sin()))
    ahead = torch.full((16,), 3.0)
    turned = ahead * cos - torch.cat((-ahead[8:], ahead[:8])) * sin
    query[:, :, last] = turned
    query[:, :, needle + 1 : needle + 3] = 3.0
    other = value.clone()
    other[:, :, needle] += 1.0
    plain = models(settings="window=16,sinks=3", name="lm-infinite")
    moves = [(one.attend(query, key, other) - one.attend(query, key, value))[:, :, last] for one in (model, plain)]
    assert float(moves[0].min()) > 0.99  # its weight
    assert float(moves[1].abs().max()) == 0
    blocks = choices(query[0], key[0], rotation, moved(SETTINGS, topk=1))[last]
    assert blocks == [(needle - 3) // 5]


def test_no_tensor_grows_with_the_square_of_the_length(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a group of queries that choose together, whose size does not grow."""
    model = models()
    package = type(model.model).__module__.rpartition(".")[0]
    monkeypatch.setattr(sys.modules[f"{package}.ctxforge_block_attention"], "_GROUP", 256)
    largest = []
    for length in (2048, 4096):
        with Largest() as seen:
            model.attend(*states(1, 4, 2, length))
        largest.append(seen.elements)
    assert largest[1] <= 2.1 * largest[0]
    assert largest[1] < 4096**2 / 16


def test_parameters(tmp_path: Any) -> None:
    def at(length: int, **given: Any) -> Any:
        return resolve({"offload": False, **given}, Situation(length, 4 * length, 4, 2, "llama", True, "none"))

    known = {"window": 5888, "sinks": 128, "block": 128, "topk": 16, "representatives": 4, "offload": False}
    assert at(8192) == known
    assert at(512) == {**known, "window": 368, "sinks": 8, "block": 8}  # the bundled model's
    assert at(64) == {**known, "window": 46, "sinks": 1, "block": 1, "representatives": 1}
    assert at(8192, topk=64)["window"] == 4096
    assert at(8192, topk=1000, window=8000)["topk"] == 1000
    source = save_stock("llama", tmp_path / "source")
    made = ctxforge.plan(source, attach="infllm:window=20,block=4,offload=true", to=256)
    assert made.attached is not None
    assert made.attached.parameters["offload"] is True
    for wrong, said in (
        ("sinks=-1", "sinks=-1"),
        ("topk=-1", "topk=-1"),
        ("block=0", "block=0"),
        ("representatives=0", "representatives=0"),
        ("window=10,sinks=10", "not larger than 10 sinks"),
        ("window=10,block=11", "a block of 11"),
        ("window=61,sinks=4", "exceed the 64 tokens"),
        ("block=4,representatives=5", "a block of 4 tokens"),
    ):
        with pytest.raises(UsageError, match=said):
            ctxforge.plan(source, attach=f"infllm:{wrong}", to=256)
    with pytest.raises(UnsupportedError, match="stretches"):
        ctxforge.plan(source, attach="infllm", method="dynamic-ntk", to=256)
    assert find_attachment("infllm").pattern is None
