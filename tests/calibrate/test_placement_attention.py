"""Stock models compute what rows say: against explicit distances, against separate passes, with controls that fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ctxforge.calibrate.placement import (
    Chunk,
    Layout,
    check_isolation,
    collate,
    from_chunks,
    full_length,
    model_inputs,
    pack,
    pose,
    randomised,
)
from ctxforge.errors import ResourceError, UnsupportedError, UsageError
from tests.calibrate.placement_models import KINDS, PAIRS, difference, logits, model_of, reference, text

TARGET = 256
every_pair = pytest.mark.parametrize(("kind", "backend"), PAIRS)
# Chunks with skips smaller and larger than the windows of 24, the last one ending at L' - 1.
ENDING = from_chunks(text(200), [Chunk(0, 20, 0), Chunk(50, 26, 35), Chunk(120, 18, TARGET - 18)], TARGET)
PACKED = [text(30, 1), text(21, 2), text(40, 3)]


def jumping(layout: Layout) -> dict[str, Any]:
    """The trap: positions, no mask, no cache."""
    ids, positions = torch.tensor(layout.ids)[None], torch.tensor(layout.positions)[None]
    return {"input_ids": ids, "position_ids": positions, "attention_mask": None, "use_cache": False}


@every_pair
def test_skipped_rows_equal_explicit_distances(kind: str, backend: str) -> None:
    model = model_of(kind, backend)
    assert ENDING.positions[-1] == TARGET - 1
    assert difference(logits(model, model_inputs(ENDING, model)), reference(model, ENDING)) < 1e-4


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_fractional_positions_equal_explicit_distances(kind: str) -> None:
    model, row = model_of(kind), randomised(text(60), 5)
    assert difference(logits(model, model_inputs(row, model)), reference(model, row)) < 1e-4
    assert difference(logits(model, model_inputs(full_length(row.ids), model)), reference(model, row)) > 1e-2


@every_pair
def test_the_trap_isolates_chunks_and_is_caught(kind: str, backend: str) -> None:
    """Negative control: without a mask a jump is taken for a new text, and losses look healthy."""
    model = model_of(kind, backend)
    row = pose(text(300), 64, TARGET, 3)
    trapped = logits(model, jumping(row))
    first, second = row.runs()
    # Equal to two separate texts, bit for bit or nearly so ...
    alone = [full_length(row.ids[run.start : run.stop]) for run in (first, second)]
    apart = torch.cat([logits(model, model_inputs(part, model)) for part in alone], dim=1)
    assert difference(trapped, apart) < 1e-4
    if kind == "mistral":  # windows only, and a skip beyond them: there is nothing to see
        return
    # ... and not to what the row says.
    assert difference(trapped, reference(model, row)) > 0.1
    with pytest.raises(UnsupportedError, match="does not let one chunk"):
        check_isolation(model, row, inputs=lambda *_given: jumping(row))


@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_windows_count_positions_not_tokens(kind: str) -> None:
    """transformers' own mask counts tokens, and lets a windowed layer see across a skip."""
    model = model_of(kind)
    stock = {**model_inputs(ENDING, model), "attention_mask": torch.ones(1, ENDING.length, dtype=torch.long)}
    assert difference(logits(model, stock), reference(model, ENDING, count_tokens=True)) < 1e-4
    assert difference(logits(model, stock), reference(model, ENDING)) > 0.05


@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_one_mask_for_all_layers_loses_windows(kind: str) -> None:
    """Control: the mask of packed texts without windows is taken as it is, by windowed layers too."""
    model = model_of(kind)
    row = pack(PACKED)
    wrong = model_inputs(row, model)
    open_mask = model_inputs(row, model_of("llama"))["attention_mask"]
    assert difference(logits(model, wrong), reference(model, row)) < 1e-4
    assert difference(logits(model, {**wrong, "attention_mask": open_mask}), reference(model, row)) > 0.05


@every_pair
def test_packed_texts_equal_separate_ones_with_gradients(kind: str, backend: str) -> None:
    model = model_of(kind, backend)
    row = pack(PACKED)
    direction = torch.randn(1, row.length, model.config.vocab_size, generator=torch.Generator().manual_seed(1))

    def run(parts: list[Layout], arguments: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.requires_grad_(True).zero_grad()
        found, done = [], 0
        for part in parts:
            output = model(**arguments(part)).logits
            (output * direction[:, done : done + part.length]).sum().backward()
            found.append(output.detach())
            done += part.length
        return torch.cat(found, dim=1), [parameter.grad.clone() for parameter in model.parameters()]

    wanted, wanted_gradients = run([full_length(part) for part in PACKED], lambda part: model_inputs(part, model))
    found, gradients = run([row], lambda part: model_inputs(part, model))
    assert difference(found, wanted) < 1e-5
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))
    # Control: a mask of ones lets the texts see one another (transformers#46634).
    ones = lambda part: {**model_inputs(part, model), "attention_mask": torch.ones(1, row.length, dtype=torch.long)}  # noqa: E731
    leaking, leaking_gradients = run([row], ones)
    assert difference(leaking, wanted) > 0.05
    assert max(difference(a, b) for a, b in zip(leaking_gradients, wanted_gradients, strict=True)) > 0.05


@every_pair
def test_packed_texts_with_skips_equal_explicit_distances(kind: str, backend: str) -> None:
    parts = [pose(text(200, seed), 30, TARGET, seed) for seed in (1, 2)]
    joined = [np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "positions")]
    row = Layout(*joined, np.repeat([0, 1], 30), np.tile(parts[0].weights, 2), np.ones(60, dtype=bool))
    model = model_of(kind, backend)
    assert difference(logits(model, model_inputs(row, model)), reference(model, row)) < 1e-4


@every_pair
def test_one_token_changes_its_own_text_alone(kind: str, backend: str) -> None:
    model = model_of(kind, backend)
    near = from_chunks(text(200), [Chunk(0, 20, 0), Chunk(50, 26, 35), Chunk(120, 18, 80)], TARGET)

    def change(row: Layout) -> torch.Tensor:
        """Change of the logits at each token when the last token of the row's first stretch is another."""
        arguments = model_inputs(row, model)
        before = logits(model, arguments)
        arguments["input_ids"][0, row.runs()[0].stop - 1] ^= 1
        return (logits(model, arguments) - before).abs().amax(-1)[0]

    assert change(near)[:19].max() == 0
    assert change(near)[20:46].max() > 1e-3
    assert change(pack(PACKED))[29] > 1e-3
    assert change(pack(PACKED))[30:].max() == 0


@every_pair
def test_the_trial_passes(kind: str, backend: str) -> None:
    model = model_of(kind, backend)
    skipping, packed = pose(text(300), 64, TARGET, 3, chunks=3), pack(PACKED)
    found = check_isolation(model, [skipping, packed], backend)
    assert found.worst_leak <= found.noise <= 1e-6
    assert found.mask_error is not None
    assert found.mask_error < 1e-6
    if kind == "mistral":
        assert (found.links, found.walls) == (0, 8)
    else:
        assert (found.links, found.walls) == (3, 5)
        assert found.weakest_link > 1e-2
    assert check_isolation(model, full_length(text(20))).links == 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_trial_catches_leaks(kind: str) -> None:
    model = model_of(kind)

    def ones(batch: Any, *_given: Any) -> dict[str, Any]:
        mask = torch.ones(batch.ids.shape, dtype=torch.long)
        return {**model_inputs(batch, model), "attention_mask": mask}

    def ahead(batch: Any, *_given: Any) -> dict[str, Any]:
        arguments = model_inputs(batch, model)
        size = batch.ids.shape[1]
        return {**arguments, "attention_mask": torch.zeros(1, 1, size, size)}

    for wrong in (ones, ahead):
        with pytest.raises(UnsupportedError, match="lets a text see another"):
            check_isolation(model, pack(PACKED), inputs=wrong)


def test_the_trial_holds_with_dropout_and_leaves_the_random_state() -> None:
    model = model_of("llama", attention_dropout=0.3).train()
    before = torch.random.get_rng_state()
    found = check_isolation(model, [pose(text(300), 64, TARGET, 3), pack(PACKED)])
    assert found.noise == 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_trial_catches_an_unknown_window() -> None:
    """A model whose layers see by a rule that its config does not tell."""
    model = model_of("mistral")

    def blind(batch: Any, _model: Any, _backend: Any) -> dict[str, Any]:
        return model_inputs(batch, model)

    stock = model.model.forward

    def narrower(**given: Any) -> Any:
        if torch.is_tensor(given["attention_mask"]) and given["attention_mask"].ndim == 2:
            model.config.sliding_window = 5
        try:
            return stock(**given)
        finally:
            model.config.sliding_window = 24

    model.model.forward = narrower
    with pytest.raises(UnsupportedError, match="explicit masks do not give"):
        check_isolation(model, pack(PACKED), inputs=blind)


@every_pair
def test_padding_changes_nothing(kind: str, backend: str) -> None:
    model = model_of(kind, backend)
    for rows in ([full_length(text(50, 1)), full_length(text(31, 2))], [pack(PACKED), ENDING]):
        together = logits(model, model_inputs(collate(rows, multiple=8), model))
        assert together.isfinite().all()
        for found, row in zip(together, rows, strict=True):
            alone = logits(model, model_inputs(row, model))[0]
            assert difference(found[: row.length], alone) < 1e-5


def test_masks_are_explicit_only_where_they_must_be() -> None:
    llama, gemma = model_of("llama", "sdpa"), model_of("gemma2")
    for row in (full_length(text(40)), pose(text(300), 64, TARGET, 3)):
        given = model_inputs(row, llama)
        assert given["attention_mask"].shape == (1, row.length)
        assert given["attention_mask"].all()
        assert given["use_cache"] is False
    mask = model_inputs(pack(PACKED), llama)["attention_mask"]
    assert (mask.shape, mask.dtype) == ((1, 1, 91, 91), torch.bool)
    assert int(mask.sum()) == sum(size * (size + 1) // 2 for size in (30, 21, 40))
    assert set(model_inputs(ENDING, gemma)["attention_mask"]) == {"full_attention", "sliding_attention"}
    # A long text at its own positions leaves windows to transformers.
    assert model_inputs(full_length(text(100)), gemma)["attention_mask"].ndim == 2
    # sdpa keeps its fast kernel in full layers when only windows need a mask.
    qwen = model_of("qwen3", "sdpa", use_sliding_window=True, sliding_window=24, max_window_layers=1)
    given = model_inputs(ENDING, qwen)["attention_mask"]
    assert given["full_attention"] is None
    assert given["sliding_attention"].dtype == torch.bool
    assert difference(logits(qwen, model_inputs(ENDING, qwen)), reference(qwen, ENDING)) < 1e-4


def test_what_cannot_be_right_is_refused() -> None:
    llama = model_of("llama", "sdpa")
    with pytest.raises(UsageError, match="attends with 'sdpa'"):
        model_inputs(ENDING, llama, "eager")
    with pytest.raises(ResourceError, match=r"91 tokens take 0.0 GiB"):
        model_inputs(pack(PACKED), llama, mask_limit=8000)
    llama.config._attn_implementation = "paged|sdpa"
    with pytest.raises(UnsupportedError, match="not known how"):
        model_inputs(ENDING, llama)
    gemma = model_of("gemma2")
    gemma.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedError, match="counts in tokens"):
        model_inputs(ENDING, gemma)
    model_inputs(full_length(text(100)), gemma)
    hybrid = model_of("llama")
    hybrid.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(UnsupportedError, match="carry one packed text"):
        model_inputs(pack(PACKED), hybrid)
    model_inputs(ENDING, hybrid)
    hybrid.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(UnsupportedError, match="chunks of tokens"):
        model_inputs(ENDING, hybrid)
