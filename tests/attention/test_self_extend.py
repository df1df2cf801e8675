"""Self-Extend: distances, default parameters, refusals, one function however a text is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctxforge.attention.self_extend import pattern, resolve
from ctxforge.errors import UsageError
from templates.modeling.modeling_self_extend import SelfExtend
from tests.attention import remapped
from tests.modeling.emitted import remote, tokens


def test_distances_are_the_papers() -> None:
    distance = pattern({"group": 2, "window": 4}, 10, 1).distance[0]
    # The last query: far keys 0 ... 5 at 9 // 2 + 4 - 2 - n // 2, near ones at 9 - n.
    assert distance[9].tolist() == [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]
    assert distance[8].tolist()[:9] == [6, 6, 5, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(("group", "window", "trained"), [(2, 4, 10), (4, 8, 20), (8, 16, 64), (5, 5, 17)])
def test_reach_is_exact(group: int, window: int, trained: int) -> None:
    reach = (trained - window) * group + window
    assert int(pattern({"group": group, "window": window}, reach, 1).distance[0, -1].max()) == trained - 1
    assert int(pattern({"group": group, "window": window}, reach + 1, 1).distance[0, -1].max()) == trained


@pytest.mark.parametrize(
    "parameters", [{"group": 4, "window": 8}, {"group": 3, "window": 27}, {"group": 1, "window": 5}]
)
def test_fast_form_is_the_dense_reference(parameters: dict[str, int]) -> None:
    remapped.check_operator("self-extend", SelfExtend, parameters)


def test_one_function_however_a_text_is_fed(tmp_path: Path) -> None:
    remapped.check_decoding(remapped.emit(tmp_path, "self-extend:group=8,window=16")[1])


def test_layers_without_rotation_and_windows_are_left_as_they_are(tmp_path: Path) -> None:
    remapped.check_decoding(remapped.emit(tmp_path, "self-extend:group=8,window=16", "gemma2")[1], crops=False)
    remapped.check_degenerate(tmp_path / "smollm3", "self-extend:group=8,window=16", 16, kind="smollm3")


def test_short_texts_are_the_stock_models(tmp_path: Path) -> None:
    remapped.check_degenerate(tmp_path, "self-extend:group=8,window=16", 16)


def test_a_group_of_one_is_the_stock_model(tmp_path: Path) -> None:
    remapped.check_degenerate(tmp_path, "self-extend:group=1,window=7", 60, longer=0, to=64)


def test_a_static_method_stands_beside_it(tmp_path: Path) -> None:
    """YaRN's table and temperature reach the rotation: with groups of one this is YaRN itself."""
    source, out = remapped.emit(tmp_path, "self-extend:group=1,window=7", method="yarn")
    yarn = remapped.ctxforge.extend(source, method="yarn", to=256, out=tmp_path / "yarn").out
    ids = tokens(2, 150)
    plain = remapped.whole(remapped.stock(yarn), ids)
    assert remapped.difference(remapped.whole(remapped.small_blocks(remote(out)), ids), plain) < 1e-5
    assert remapped.difference(remapped.whole(remapped.stock(source), ids), plain) > 1e-3


def test_a_decoded_token_rotates_two_keys_a_layer(tmp_path: Path) -> None:
    model, ids = remote(remapped.emit(tmp_path, "self-extend:group=8,window=16")[1]), tokens(1, 101)
    system = next(module.ctxforge_system for module in model.modules() if hasattr(module, "ctxforge_system"))
    with torch.no_grad():
        cache = model(ids[:, :100], use_cache=True).cache
        assert remapped.count_rotated(system, lambda: model(ids[:, 100:], cache=cache, use_cache=True)) == 2 * 3


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"group": 9, "window": 1017}),
        ({"window": 1024}, {"group": 16, "window": 1024}),
        ({"group": 8}, {"group": 8, "window": 1024}),
        ({"group": 5, "window": 1000}, {"group": 5, "window": 1000}),
        ({"window": 3072}, {"group": 16, "window": 3072}),  # too wide for the rule of thumb: what reaches at all
    ],
)
def test_parameters_follow_from_the_lengths(given: dict[str, Any], wanted: dict[str, int]) -> None:
    assert resolve(given, remapped.situation()) == wanted


def test_defaults_reach_every_target() -> None:
    for trained in (64, 512, 2048, 8192, 131072):
        for factor in (1, 2, 4, 8, 16):
            found = resolve({}, remapped.situation(trained, trained * factor))
            last = trained * factor - 1
            longest = last // found["group"] + found["window"] - found["window"] // found["group"]
            assert longest < trained
            assert found["window"] % found["group"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"group": 3, "window": 1024}, "no multiple"),
        ({"group": 2, "window": 1024}, "reaches 7168"),
        ({"group": 0, "window": 1024}, "group of 0"),
        ({"window": 4096}, "window of 4096"),
        ({"window": 0}, "window of 0"),
        ({"window": 1021}, None),  # a prime: its own group is the only one
        ({"group": 2000}, "quarter"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert resolve(given, remapped.situation()) == {"group": 1021, "window": 1021}
        return
    with pytest.raises(UsageError, match=said):
        resolve(given, remapped.situation())


def test_a_table_that_changes_with_the_length_is_refused() -> None:
    with pytest.raises(UsageError, match="changes with the length"):
        resolve({}, remapped.situation(static=False, method="dynamic-ntk"))
