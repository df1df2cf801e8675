"""Held-out losses against delta_use, whole logits, and models that are known to be worse."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctxforge.attention.shifted_sparse import shifted_sparse_attention
from ctxforge.calibrate.held_out import (
    Chooser,
    HeldOut,
    HeldOutResult,
    HeldOutSettings,
    Reference,
    held_out,
    measure,
    reference,
)
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.errors import CheckpointError, UsageError
from ctxforge.verification.long_use import delta_use
from ctxforge.verification.onepass import OnePass
from ctxforge.verification.statistics import paired_bootstrap
from tests.calibrate.held_out_builders import cache_of, plain_losses, texts_of
from tests.verification import naive
from tests.verification.bundled import BOS, TRAINED, documents, extended, plain

TARGET = 1280
WANTED = HeldOutSettings(TRAINED, TARGET, windows=2, short_windows=5)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    """Two sources, one with a prefix, of the text that the bundled model was not trained on."""
    folder = tmp_path_factory.mktemp("caches")
    found = documents(5, 1400)
    parts = [cache_of(folder / "a", [found[0], found[1][:300]], prefix=(BOS,)), cache_of(folder / "b", found[2:])]
    return held_out(parts, WANTED)


@pytest.fixture(scope="module")
def source(windows: HeldOut) -> Reference:
    return reference(plain(), windows, source="bundled")


def test_use_is_that_of_delta_use(windows: HeldOut, source: Reference) -> None:
    found = measure(LossModel(extended()), windows, source)
    assert [window.prefix for window in windows.long] == [1, 0]
    runners = OnePass(plain(), longest=TARGET), OnePass(extended(), longest=TARGET)
    parts = [
        delta_use(*runners, [text], TRAINED, prefix=window.ids[: window.prefix].tolist())
        for text, window in zip(texts_of(windows), windows.long, strict=True)
    ]
    for expected, loss in zip(parts, source.long, strict=True):
        assert loss == pytest.approx(expected.short[0], abs=1e-5)
    weights = [part.tokens for part in parts]
    assert weights == [TARGET - TRAINED - 1, TARGET - TRAINED]
    assert found.use == pytest.approx(np.average([part.value for part in parts], weights=weights), abs=1e-5)
    assert found.long_nll == pytest.approx(np.average([part.full[0] for part in parts], weights=weights), abs=1e-5)
    assert found.relative_to == "source"
    assert found.use_interval is None
    assert found.full_nll is None


def test_losses_are_those_of_whole_logits(windows: HeldOut, source: Reference) -> None:
    found = measure(LossModel(extended()), windows, source)
    long, tail = [], []
    for window in windows.long:
        losses = plain_losses(extended(), window.ids)
        long.append(losses[TRAINED + window.prefix - 1 :])
        tail.append(losses[-TARGET // 8 :])
    assert found.long_nll == pytest.approx(np.concatenate(long).mean(), abs=1e-5)
    assert found.tail_nll == pytest.approx(np.concatenate(tail).mean(), abs=1e-5)
    assert found.tail_nll != pytest.approx(found.long_nll, abs=1e-3)
    short = [plain_losses(extended(), window.ids) for window in windows.short]
    assert {len(losses) for losses in short} == {TRAINED // 2 - 1}
    assert found.short_nll == pytest.approx(np.concatenate(short).mean(), abs=1e-5)
    before = [plain_losses(plain(), window.ids).mean() for window in windows.short]
    np.testing.assert_allclose(source.short, before, atol=1e-5)
    assert found.short_regression == pytest.approx(found.short_nll - np.mean(before), abs=1e-5)
    assert found.tokens == sum(map(len, [*long, *short]))


def test_enough_windows_have_an_interval(tmp_path: Path) -> None:
    small = HeldOutSettings(64, 160, windows=9, short_windows=3, refresh=20)
    found = held_out([cache_of(tmp_path / "a", documents(9, 200))], small)
    before = reference(plain(), found)
    result = measure(LossModel(extended()), found, before)
    whole = delta_use(OnePass(plain()), OnePass(extended()), texts_of(found), 64, refresh=20)
    assert result.use == pytest.approx(whole.value, abs=1e-5)
    bounds = paired_bootstrap(whole.values, whole.weights)[0].bounds
    assert bounds is not None
    assert result.use_interval == pytest.approx(bounds, abs=1e-4)
    back = HeldOutResult.from_document(json.loads(json.dumps(result.document(), allow_nan=False)))
    assert back == result


def scrambled() -> Any:
    """The extended model with the frequencies of its rotation in another order."""
    model = copy.deepcopy(extended())
    rotary = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    rotary.inv_freq.copy_(rotary.inv_freq.flip(0))
    return model


def test_known_damage_is_seen_and_refused(windows: HeldOut, source: Reference) -> None:
    """Seen, in nats of use and of short regression: YaRN -0.00 and 0.02, scrambled -2.7 and 2.9, plain -0.92 and 0."""
    good = measure(LossModel(extended()), windows, source)
    broken = measure(LossModel(scrambled()), windows, source)
    # The source itself, past its trained length: its short losses are the reference's, its long ones are not.
    past = measure(LossModel(plain()), windows, source)
    assert good.use is not None
    assert broken.use is not None
    assert past.use is not None
    assert good.use > -0.1
    assert broken.use < good.use - 1
    assert broken.short_regression > 0.5
    assert past.use < -0.2
    assert past.short_regression == 0.0
    chooser = Chooser()
    assert [chooser.add(step, one) for step, one in enumerate([past, good, broken])] == [True, True, False]
    assert chooser.best_step == 1


def test_the_start_is_the_reference_where_the_source_is_not_at_hand(windows: HeldOut) -> None:
    loss_model = LossModel(extended())
    start = reference(loss_model, windows, source="the extension", relative_to="start")
    found = measure(loss_model, windows, start)
    assert found.relative_to == "start"
    assert found.document()["relative_to"] == "start"
    assert found.short_regression == 0.0
    text, first = texts_of(windows)[1], TRAINED
    full, short = naive.full_and_short(extended(), text, first, TRAINED // 2, TRAINED // 2)
    assert start.long[1] == pytest.approx(np.mean(short), abs=1e-5)
    assert found.long_nll is not None
    assert (np.mean(full) - found.long_nll) < 0.5


def test_windows_that_go_nowhere_beyond_have_only_their_loss(tmp_path: Path) -> None:
    found = held_out([cache_of(tmp_path / "a", documents(2, 700))], WANTED)
    assert (found.length, found.beyond) == (512, False)
    before = reference(plain(), found)
    assert before.long == ()
    result = measure(LossModel(extended()), found, before)
    assert result.use is result.long_nll is result.tail_nll is result.use_interval is None
    losses = [plain_losses(extended(), window.ids) for window in found.long]
    assert result.full_nll == pytest.approx(np.concatenate(losses).mean(), abs=1e-5)
    assert result.tokens == 2 * 511 + len(found.short) * 255
    assert Chooser().score(result) == -result.full_nll - max(0.0, result.short_regression - 0.02)
    back = HeldOutResult.from_document(json.loads(json.dumps(result.document())))
    assert back == result


@pytest.mark.parametrize("world", [2, 3, 12])
def test_shared_windows_give_the_same_bits(windows: HeldOut, source: Reference, world: int) -> None:
    loss_model = LossModel(extended())
    alone = measure(loss_model, windows, source)
    assert measure(loss_model, windows, source) == alone
    parts: list[list[float]] = []
    passes = []
    handle = extended().get_decoder().register_forward_hook(lambda *_: passes.append(len(parts)))

    def keep(values: list[float]) -> list[float]:
        parts.append(values)
        return values

    def add(values: list[float]) -> list[float]:
        return np.sum([*parts, values], axis=0).tolist()  # type: ignore[no-any-return]

    try:
        for rank in range(1, world):
            measure(loss_model, windows, source, rank=rank, world=world, add=keep)
        assert measure(loss_model, windows, source, rank=0, world=world, add=add) == alone
    finally:
        handle.remove()
    # All run as many passes: where weights are sharded, one that ran fewer would leave the others waiting.
    counts = {passes.count(rank) for rank in range(world)}
    assert len(counts) == 1
    one = reference(plain(), windows)
    halves: list[list[float]] = []
    reference(plain(), windows, rank=1, world=2, add=lambda values: halves.append(values) or values)
    both = reference(plain(), windows, world=2, add=lambda v: [a + b for a, b in zip(v, halves[0], strict=True)])
    assert both == one


def test_reference_comes_back_from_json(windows: HeldOut, source: Reference, tmp_path: Path) -> None:
    text = json.dumps(source.document(), allow_nan=False)
    back = Reference.from_document(json.loads(text))
    assert back == source
    assert measure(LossModel(extended()), windows, back) == measure(LossModel(extended()), windows, source)
    good = source.document()
    for damage in (
        {},
        [],
        {**good, "long": [0.1, None]},
        {**good, "short": "0.1"},
        {**good, "long": [float("nan")]},
        {**good, "digest": 3},
        {**good, "relative_to": "x"},
        {**good, "more": 1},
    ):
        with pytest.raises(CheckpointError):
            Reference.from_document(damage)  # type: ignore[arg-type]
    other = held_out([cache_of(tmp_path / "a", documents(3, 1400))], WANTED)
    with pytest.raises(UsageError, match="losses of bundled are of other held-out windows"):
        measure(LossModel(extended()), other, source)
    refreshed = HeldOut(HeldOutSettings(TRAINED, TARGET, refresh=99), windows.long, windows.short, True, ())
    assert not source.fits(refreshed)


def test_losses_that_are_not_finite(windows: HeldOut, source: Reference) -> None:
    model = copy.deepcopy(extended())
    with torch.no_grad():
        model.get_decoder().layers[0].input_layernorm.weight[3] = torch.nan
    found = measure(LossModel(model), windows, source)
    assert not found.finite
    json.dumps(found.document(), allow_nan=False)
    chooser = Chooser()
    assert not chooser.add(4, found)
    assert chooser.stop is not None
    with pytest.raises(UsageError, match="held-out loss of broken is not a finite number"):
        reference(model, windows, source="broken")


def test_shifted_groups_are_for_training_alone(windows: HeldOut, source: Reference) -> None:
    model = copy.deepcopy(extended()).train()
    expected = measure(LossModel(extended()), windows, source)
    with shifted_sparse_attention(model, 128):
        found = measure(LossModel(model), windows, source)
        assert model.training
    assert found.use == pytest.approx(expected.use, abs=1e-5)
    assert found.short_nll == pytest.approx(expected.short_nll, abs=1e-5)
