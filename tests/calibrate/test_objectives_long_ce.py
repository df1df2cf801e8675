"""LongCE against an independent reading of its definition, token by token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ctxforge.calibrate.objectives.long_ce import (
    LongCESettings,
    LongCEWeigher,
    WeightCache,
    long_ce_weights,
    losses_of,
    short_losses,
)
from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens, next_weights
from ctxforge.errors import ResourceError, UsageError
from tests.verification.tiny import reference_losses, tiny, token_ids

SETTINGS = LongCESettings(context=8, refresh=3)
LENGTH = 30


def reference_short(model: Any, ids: list[int], start: int, end: int) -> dict[int, float]:
    """Loss of each token that has more than the short context before it in its document, one window a token."""
    found = {}
    for token in range(start + SETTINGS.context, end):
        rank = (token - start - SETTINGS.context) % SETTINGS.refresh
        window = ids[token - rank - SETTINGS.context : token + 1]
        assert SETTINGS.context < len(window) <= SETTINGS.context + SETTINGS.refresh
        found[token] = float(reference_losses(model, window)[-1])
    return found


@pytest.mark.parametrize("windows", [1, 4])
def test_short_losses(windows: int) -> None:
    model, ids = tiny(), token_ids(LENGTH)
    settings = LongCESettings(context=8, refresh=3, windows=windows)
    found = short_losses(losses_of(LossModel(model)), torch.tensor(ids), settings)
    expected = reference_short(model, ids, 0, LENGTH)
    assert found[:8].isnan().all()
    assert sorted(expected) == list(range(8, LENGTH))
    for token, loss in expected.items():
        assert float(found[token]) == pytest.approx(loss, abs=1e-4)


def test_a_context_stays_in_its_document() -> None:
    model, ids = tiny(), token_ids(LENGTH)
    found = short_losses(losses_of(LossModel(model)), torch.tensor(ids), SETTINGS, [(0, 13), (13, 15), (15, LENGTH)])
    expected = reference_short(model, ids, 0, 13) | reference_short(model, ids, 15, LENGTH)
    assert [token for token in range(LENGTH) if not found[token].isnan()] == sorted(expected)
    for token, loss in expected.items():
        assert float(found[token]) == pytest.approx(loss, abs=1e-4)


def test_weights() -> None:
    short = torch.tensor([torch.nan, 3.0, 1.0, 9.0])
    full = torch.tensor([2.0, 2.0, 2.0, 2.0])
    expected = [1.0, math.e, 1 / math.e, 5.0]
    assert long_ce_weights(short, full, 5.0).tolist() == pytest.approx(expected)


def test_on_the_fly_in_the_training_pass() -> None:
    model = tiny().requires_grad_(True)
    ids = torch.tensor([token_ids(LENGTH)])
    loss_model = LossModel(model, slice_rows=4)
    short = short_losses(losses_of(loss_model), ids[0], SETTINGS)[None]
    found = loss_model(ids, next_tokens(ids), LENGTH - 1.0, weights=LongCEWeigher(short))

    logits = model(ids).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    weights = torch.ones(LENGTH - 1)
    for token, loss in reference_short(model, ids[0].tolist(), 0, LENGTH).items():
        weights[token - 1] = min(5.0, math.exp(loss - float(losses[token - 1].detach())))
    assert weights.std() > 0.3
    # Divided by tokens and not by the sum of weights, as the authors' mean is.
    expected = (losses * weights).sum() / (LENGTH - 1)
    torch.testing.assert_close(found.loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.weights[0, :-1], weights, rtol=1e-3, atol=1e-3)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_cached_weights_are_those_of_the_base_model(tmp_path: Path) -> None:
    model = tiny()
    ids = torch.tensor(token_ids(LENGTH))
    parts = [(0, 18), (18, LENGTH)]
    runs = 0

    def counted(batch: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return losses_of(LossModel(model))(batch)

    found = WeightCache(tmp_path / "weights", "base", SETTINGS).weights(ids, counted, parts)
    assert runs > 0
    for start, end in parts:
        full = reference_losses(model, ids[start:end].tolist())
        short = reference_short(model, ids.tolist(), start, end)
        for token in range(start, end):
            expected = min(5.0, math.exp(short[token] - float(full[token - start - 1]))) if token in short else 1.0
            assert float(found[token]) == pytest.approx(expected, rel=1e-3)
    runs = 0
    # Other numbers of windows at once give the same weights.
    again = WeightCache(tmp_path / "weights", "base", LongCESettings(8, 3, 5.0, windows=2)).weights(ids, counted, parts)
    assert runs == 0
    assert torch.equal(again, found)
    for model_name, settings, other in [
        ("other", SETTINGS, ids),
        ("base", LongCESettings(8, 4), ids),
        ("base", SETTINGS, ids.flip(0)),
    ]:
        runs = 0
        WeightCache(tmp_path / "weights", model_name, settings).weights(other, counted, parts)
        assert runs > 0
    assert next_weights(found[None])[0, 8] == found[9]


def test_a_damaged_file_is_computed_anew_and_a_folder_that_is_none_refused(tmp_path: Path) -> None:
    ids, compute = torch.tensor(token_ids(LENGTH)), losses_of(LossModel(tiny()))
    found = WeightCache(tmp_path, "base", SETTINGS).weights(ids, compute)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert torch.equal(WeightCache(tmp_path, "base", SETTINGS).weights(ids, compute), found)
    with pytest.raises(ResourceError) as caught:
        WeightCache(path / "under", "base", SETTINGS).weights(ids, compute)
    assert "another folder" in caught.value.remedy


def test_published_settings() -> None:
    published = LongCESettings()
    assert (published.context, published.refresh, published.ceiling) == (4096, 1024, 5.0)


@pytest.mark.parametrize("change", [{"context": 0}, {"refresh": 0}, {"ceiling": 0.0}, {"windows": 0}])
def test_bad_settings(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LongCESettings(**change)
