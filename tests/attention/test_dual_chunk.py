"""Dual Chunk Attention: distances, default parameters, refusals, one function however a text is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctxforge.attention.dual_chunk import pattern, resolve
from ctxforge.errors import UsageError
from templates.modeling.modeling_dual_chunk import DualChunk
from tests.attention import remapped
from tests.modeling.emitted import remote, tokens


def test_distances_follow_the_three_rules() -> None:
    distance = pattern({"chunk": 6, "local": 2}, 13, 1).distance[0]  # chunks of 4
    assert distance[3].tolist()[:4] == [3, 2, 1, 0]  # own chunk
    assert distance[5].tolist()[:6] == [5, 4, 3, 2, 1, 0]  # i = 1: min(1 + 4, 6) = 5, the true distances
    assert distance[7].tolist()[:8] == [6, 5, 4, 3, 3, 2, 1, 0]  # i = 3: min(3 + 4, 6) = 6
    assert distance[12].tolist() == [6, 5, 4, 3, 6, 5, 4, 3, 4, 3, 2, 1, 0]  # older: 6 - n mod 4


@pytest.mark.parametrize(("chunk", "local"), [(48, 8), (24, 7), (10, 9), (5, 1)])
def test_no_distance_is_longer_and_the_nearest_tokens_are_true(chunk: int, local: int) -> None:
    found = pattern({"chunk": chunk, "local": local}, 300, 1)
    seen = found.distance[0][found.visible[0]]
    assert int(seen.max()) == chunk
    assert int(seen.min()) == 0
    near = min(local, chunk - local)
    for back in range(near + 1):  # a chunk is never shorter, so at most one boundary lies between
        assert found.distance[0].diagonal(-back).eq(back).all()


@pytest.mark.parametrize(
    "parameters", [{"chunk": 48, "local": 8}, {"chunk": 24, "local": 7}, {"chunk": 10, "local": 9}]
)
def test_fast_form_is_the_dense_reference(parameters: dict[str, int]) -> None:
    remapped.check_operator("dual-chunk", DualChunk, parameters)


def test_one_function_however_a_text_is_fed(tmp_path: Path) -> None:
    remapped.check_decoding(remapped.emit(tmp_path, "dual-chunk:chunk=24,local=7")[1])


def test_texts_of_one_chunk_are_the_stock_models(tmp_path: Path) -> None:
    remapped.check_degenerate(tmp_path, "dual-chunk:chunk=24,local=7", 24)  # the first l tokens after it, too


def test_a_decoded_token_rotates_one_key_a_layer(tmp_path: Path) -> None:
    model, ids = remote(remapped.emit(tmp_path, "dual-chunk:chunk=24,local=7")[1]), tokens(1, 101)
    system = next(module.ctxforge_system for module in model.modules() if hasattr(module, "ctxforge_system"))
    with torch.no_grad():
        cache = model(ids[:, :100], use_cache=True).cache
        assert remapped.count_rotated(system, lambda: model(ids[:, 100:], cache=cache, use_cache=True)) == 3


def test_parameters_follow_from_the_trained_length() -> None:
    assert resolve({}, remapped.situation()) == {"chunk": 3072, "local": 512}
    assert resolve({}, remapped.situation(target=10**7)) == {"chunk": 3072, "local": 512}
    assert resolve({"chunk": 100}, remapped.situation()) == {"chunk": 100, "local": 50}
    assert resolve({"chunk": 8000}, remapped.situation(method="yarn"))["chunk"] == 8000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"chunk": 4096}, "distances up to 4096"),
        ({"chunk": 1}, "distances up to 1"),
        ({"chunk": 64, "local": 64}, "local window of 64"),
        ({"local": 0}, "local window of 0"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(given, remapped.situation())


def test_a_table_that_changes_with_the_length_is_refused() -> None:
    with pytest.raises(UsageError, match="changes with the length"):
        resolve({}, remapped.situation(static=False, method="dynamic-ntk"))
