"""Battery, points 4 to 6 and 11: one function however a text is fed, in which company it is, and by beams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.attention.battery import LENGTH, every_architecture, every_system, holds_or_is_refused
from tests.modeling.emitted import chunked, difference, remote, tokens, whole

Folders = Callable[..., Path]
GREEDY: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@every_architecture
@every_system
def test_chunks_and_single_tokens_equal_one_pass(name: str, kind: str, emitted: Folders) -> None:
    def check() -> None:
        ids = tokens(2, LENGTH)
        model = remote(emitted(name, kind))
        wanted = whole(model, ids)
        for size in (1, 7, LENGTH):
            assert difference(chunked(model, ids, size), wanted) < 1e-5, size

    holds_or_is_refused(name, "chunks", kind, check)


@every_system
def test_greedy_generation_with_a_cache_equals_generation_without(name: str, emitted: Folders) -> None:
    def check() -> None:
        model, ids = remote(emitted(name, "llama")), tokens(2, 90)
        options = {**GREEDY, "attention_mask": torch.ones_like(ids)}
        found = model.generate(ids, use_cache=True, **options)
        assert found.tolist() == model.generate(ids, use_cache=False, **options).tolist()

    holds_or_is_refused(name, "generation", "llama", check)


@every_system
def test_rows_of_a_batch_are_what_they_are_alone(name: str, emitted: Folders) -> None:
    def check() -> None:
        model, ids = remote(emitted(name, "llama")), tokens(2, LENGTH)
        for found in (whole(model, ids), chunked(model, ids, 40)):
            for row in range(2):
                assert difference(found[row : row + 1], whole(model, ids[row : row + 1])) < 1e-5

    holds_or_is_refused(name, "batch", "llama", check)


def _padded() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Texts of 120, 97 and 41 tokens, and as one left-padded batch with its mask."""
    rows = [tokens(1, length, seed) for seed, length in ((1, 120), (2, 97), (3, 41))]
    padded, mask = torch.zeros(3, 120, dtype=torch.long), torch.zeros(3, 120, dtype=torch.long)
    for row, ids in enumerate(rows):
        padded[row, -ids.shape[1] :] = ids
        mask[row, -ids.shape[1] :] = 1
    return rows, padded, mask


@every_system
def test_left_padded_rows_compute_what_they_do_alone(name: str, emitted: Folders) -> None:
    def check() -> None:
        model = remote(emitted(name, "llama"))
        rows, padded, mask = _padded()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = whole(model, padded, attention_mask=mask, position_ids=positions)
        for row, ids in enumerate(rows):
            assert difference(found[row : row + 1, -ids.shape[1] :], whole(model, ids)) < 1e-5

    holds_or_is_refused(name, "padding", "llama", check)


@every_system
def test_left_padded_rows_generate_what_they_do_alone(name: str, emitted: Folders) -> None:
    def check() -> None:
        model = remote(emitted(name, "llama"))
        rows, padded, mask = _padded()
        together = model.generate(padded, attention_mask=mask, **GREEDY)
        for row, ids in enumerate(rows):
            alone = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
            assert together[row, -30:].tolist() == alone[0, -30:].tolist()

    holds_or_is_refused(name, "padded generation", "llama", check)


@every_system
def test_packed_rows_are_separate_texts(name: str, emitted: Folders) -> None:
    def check() -> None:
        model = remote(emitted(name, "llama"))
        first, second = tokens(1, 110, 1), tokens(1, 70, 2)
        positions = torch.cat((torch.arange(110), torch.arange(70)))[None]
        packed = whole(model, torch.cat((first, second), dim=1), position_ids=positions)
        assert difference(packed[:, :110], whole(model, first)) < 1e-5
        assert difference(packed[:, 110:], whole(model, second)) < 1e-5

    holds_or_is_refused(name, "packing", "llama", check)


@every_system
def test_beams_with_a_cache_equal_beams_without(name: str, emitted: Folders) -> None:
    def check() -> None:
        model, ids = remote(emitted(name, "llama")), tokens(2, 90)
        options = {**GREEDY, "num_beams": 2, "attention_mask": torch.ones_like(ids)}
        found = model.generate(ids, use_cache=True, **options)
        assert found.tolist() == model.generate(ids, use_cache=False, **options).tolist()

    holds_or_is_refused(name, "beams", "llama", check)
