"""STRING: distances, default parameters, refusals, one function however a text is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctxforge.attention.string_shift import pattern, resolve
from ctxforge.errors import UsageError
from templates.modeling.modeling_string_shift import StringShift
from tests.attention import remapped
from tests.modeling.emitted import remote, tokens


def test_distances_from_the_shift_on_start_again_at_the_window() -> None:
    distance = pattern({"shift": 5, "window": 2}, 9, 1).distance[0]
    assert distance[8].tolist() == [5, 4, 3, 2, 4, 3, 2, 1, 0]
    assert distance[4].tolist()[:5] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(("shift", "window", "usable"), [(21, 5, 64), (60, 1, 64), (30, 30, 64)])
def test_reach_is_exact(shift: int, window: int, usable: int) -> None:
    reach = usable + shift - window
    assert int(pattern({"shift": shift, "window": window}, reach, 1).distance[0, -1].max()) == usable - 1
    assert int(pattern({"shift": shift, "window": window}, reach + 1, 1).distance[0, -1].max()) == usable


@pytest.mark.parametrize(
    "parameters", [{"shift": 21, "window": 5}, {"shift": 60, "window": 1}, {"shift": 30, "window": 30}]
)
def test_fast_form_is_the_dense_reference(parameters: dict[str, int]) -> None:
    remapped.check_operator("string", StringShift, parameters)


def test_one_function_however_a_text_is_fed(tmp_path: Path) -> None:
    remapped.check_decoding(remapped.emit(tmp_path, "string:shift=21,window=5", to=80)[1])


def test_short_texts_are_the_stock_models(tmp_path: Path) -> None:
    remapped.check_degenerate(tmp_path, "string:shift=21,window=5", 21, to=80)


def test_a_window_as_long_as_the_shift_is_the_stock_model(tmp_path: Path) -> None:
    remapped.check_degenerate(tmp_path, "string:shift=21,window=21", 150, to=64)


def test_beside_a_method_it_works_on_the_methods_length(tmp_path: Path) -> None:
    source, out = remapped.emit(tmp_path, "string", method="yarn")
    assert remote(out).config.ctxforge["parameters"] == {"shift": 85, "window": 21}
    yarn = remapped.ctxforge.extend(source, method="yarn", to=256, out=tmp_path / "yarn").out
    ids = tokens(2, 150)
    plain, found = remapped.whole(remapped.stock(yarn), ids), remapped.whole(remote(out), ids)
    assert remapped.difference(found[:, :85], plain[:, :85]) < 1e-5
    assert remapped.difference(found, plain) > 1e-3


def test_a_decoded_token_rotates_one_key_a_layer(tmp_path: Path) -> None:
    model, ids = remote(remapped.emit(tmp_path, "string:shift=21,window=5", to=80)[1]), tokens(1, 101)
    system = next(module.ctxforge_system for module in model.modules() if hasattr(module, "ctxforge_system"))
    with torch.no_grad():
        cache = model(ids[:, :100], use_cache=True).cache
        assert remapped.count_rotated(system, lambda: model(ids[:, 100:], cache=cache, use_cache=True)) == 3


def test_parameters_follow_from_the_length() -> None:
    assert resolve({}, remapped.situation(target=4096)) == {"shift": 1365, "window": 128}
    assert resolve({}, remapped.situation(method="yarn")) == {"shift": 5461, "window": 128}
    assert resolve({}, remapped.situation(64, 64)) == {"shift": 21, "window": 5}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "reaches 5333"),
        ({"shift": 4096}, "shift of 4096"),
        ({"shift": 0}, "shift of 0"),
        ({"shift": 100, "window": 101}, "window of 101"),
        ({"window": 0}, "window of 0"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(given, remapped.situation())


def test_a_table_that_changes_with_the_length_is_refused() -> None:
    with pytest.raises(UsageError, match="changes with the length"):
        resolve({}, remapped.situation(static=False, method="dynamic-ntk"))
