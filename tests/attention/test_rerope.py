"""ReRoPE and Leaky ReRoPE: distances, default parameters, refusals, one function however a text is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctxforge.attention.rerope import pattern, resolve, resolve_leaky
from ctxforge.errors import UsageError
from templates.modeling.modeling_rerope import ReRoPE
from tests.attention import remapped
from tests.modeling.emitted import remote, tokens


def test_distances_stop_at_the_window_or_grow_more_slowly() -> None:
    distance = pattern({"window": 3, "factor": None}, 8, 1).distance[0]
    assert distance[7].tolist() == [3, 3, 3, 3, 3, 2, 1, 0]
    leaky = pattern({"window": 3, "factor": 4.0}, 8, 1).distance[0]
    assert leaky[7].tolist() == [4, 3.75, 3.5, 3.25, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("rerope", {"window": 20, "factor": None}),
        ("rerope", {"window": 1, "factor": None}),
        ("leaky-rerope", {"window": 20, "factor": 7.5}),
        ("leaky-rerope", {"window": 33, "factor": 1.0}),
    ],
)
def test_fast_form_is_the_dense_reference(name: str, parameters: dict[str, Any]) -> None:
    remapped.check_operator(name, ReRoPE, parameters)


@pytest.mark.parametrize("attach", ["rerope:window=20", "leaky-rerope:window=20,factor=8"])
def test_one_function_however_a_text_is_fed(attach: str, tmp_path: Path) -> None:
    remapped.check_decoding(remapped.emit(tmp_path, attach)[1])


def test_short_texts_are_the_stock_models(tmp_path: Path) -> None:
    remapped.check_degenerate(tmp_path, "rerope:window=20", 21)  # a distance of w is true as well
    remapped.check_degenerate(tmp_path / "leaky", "leaky-rerope:window=20,factor=8", 21)


def test_a_factor_of_one_is_the_stock_model(tmp_path: Path) -> None:
    remapped.check_degenerate(tmp_path, "leaky-rerope:window=9,factor=1", 60, longer=0, to=64)


def test_the_temperature_of_a_method_reaches_unrotated_keys(tmp_path: Path) -> None:
    """With a window as long as the text this is YaRN itself; the far rule is held to the reference above."""
    source, out = remapped.emit(tmp_path, "rerope:window=200", method="yarn")
    yarn = remapped.ctxforge.extend(source, method="yarn", to=256, out=tmp_path / "yarn").out
    ids = tokens(2, 150)
    plain = remapped.whole(remapped.stock(yarn), ids)
    assert remapped.difference(remapped.whole(remapped.small_blocks(remote(out)), ids), plain) < 1e-5


@pytest.mark.parametrize(("attach", "copies"), [("rerope:window=20", 1), ("leaky-rerope:window=20,factor=8", 2)])
def test_a_decoded_token_rotates_no_old_key(attach: str, copies: int, tmp_path: Path) -> None:
    model, ids = remote(remapped.emit(tmp_path, attach)[1]), tokens(1, 101)
    system = next(module.ctxforge_system for module in model.modules() if hasattr(module, "ctxforge_system"))
    with torch.no_grad():
        cache = model(ids[:, :100], use_cache=True).cache
        assert remapped.count_rotated(system, lambda: model(ids[:, 100:], cache=cache, use_cache=True)) == copies * 3


def test_parameters_follow_from_the_lengths() -> None:
    assert resolve({}, remapped.situation()) == {"window": 2048, "factor": None}
    assert resolve_leaky({}, remapped.situation()) == {"window": 1024, "factor": 10}
    assert resolve_leaky({"window": 3072}, remapped.situation()) == {"window": 3072, "factor": 14}
    for trained in (64, 512, 8192):
        for factor in (1, 2, 4, 16):
            found = resolve_leaky({}, remapped.situation(trained, trained * factor))
            assert found["window"] + (trained * factor - 1 - found["window"]) / found["factor"] < trained


@pytest.mark.parametrize(
    ("given", "said"),
    [({"window": 0}, "window of 0"), ({"window": 4096}, "window of 4096"), ({"window": -3}, "window of -3")],
)
def test_windows_out_of_range_are_refused(given: dict[str, Any], said: str) -> None:
    for system in (resolve, resolve_leaky):
        with pytest.raises(UsageError, match=said):
            system(given, remapped.situation())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"factor": 0.5}, "factor of 0.5"),
        ({"factor": float("inf")}, "factor of inf"),
        ({"factor": float("nan")}, "factor of nan"),
        ({"factor": 0.0}, "factor of 0"),
        ({"window": 1024, "factor": 2.0}, "reaches 7167"),
    ],
)
def test_factors_that_cannot_work_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_leaky(given, remapped.situation())


def test_a_table_that_changes_with_the_length_is_refused() -> None:
    for system in (resolve, resolve_leaky):
        with pytest.raises(UsageError, match="changes with the length"):
            system({}, remapped.situation(static=False, method="dynamic-ntk"))
