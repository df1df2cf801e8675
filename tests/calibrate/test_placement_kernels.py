"""What backends that do not run here are given: variable-length flash attention, FlexAttention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

from ctxforge.calibrate.placement import (
    Chunk,
    check_isolation,
    collate,
    from_chunks,
    full_length,
    model_inputs,
    pack,
    pose,
)
from ctxforge.calibrate.placement.masks import block_mask, visible
from ctxforge.errors import UnsupportedError
from tests.calibrate.placement_models import difference, logits, model_of, reference, text

TARGET = 256
PACKED = [text(30, 1), text(21, 2), text(40, 3)]
ENDING = from_chunks(text(200), [Chunk(0, 20, 0), Chunk(50, 26, 35), Chunk(120, 18, TARGET - 18)], TARGET)
COUNTED: list[list[int]] = []


def varlen(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
) -> Any:  # fmt: skip
    """The kernel's contract in plain torch: texts laid end to end, [tokens, heads, d]."""
    assert causal
    COUNTED.append(cu_seqlens_q.tolist())
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    parts = []
    for start, stop in zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist()[1:], strict=False):
        one, other, content = (x[start:stop].transpose(0, 1) for x in (q, k, v))
        groups = one.shape[0] // other.shape[0]
        scores = one @ other.repeat_interleave(groups, 0).transpose(1, 2) * softmax_scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        seen = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        if window_size[0] >= 0:
            seen = seen.triu(-window_size[0])
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        parts.append((weights @ content.repeat_interleave(groups, 0)).transpose(0, 1))
    return torch.cat(parts)


def fixed(q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
          window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0) -> Any:  # fmt: skip
    """The same for rows of one text each, [B, T, heads, d]."""
    ends = torch.tensor([0, q.shape[1]])
    given = (ends, ends, q.shape[1], q.shape[1], dropout_p, softmax_scale, causal, window_size, softcap)
    return torch.stack([varlen(*row, *given) for row in zip(q, k, v, strict=True)])


def refuse(*_given: Any) -> Any:
    raise AssertionError("padding must not be unpadded: nothing asks for it")


@pytest.fixture
def flash_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Models on transformers' flash_attention_2 path, its kernels written out in torch: the real ones need a GPU."""
    monkeypatch.setattr(flash, "_lazy_imports", lambda *_a, **_k: (fixed, varlen, None, refuse, refuse))
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn",
                 "_unpad_fn", "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"):  # fmt: skip
        monkeypatch.setattr(flash, name, None)
    COUNTED.clear()

    def make(kind: str) -> Any:
        model = model_of(kind)
        model.config._attn_implementation = "flash_attention_2"
        return model

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox"])
def test_flash_rows_with_skips_and_packed_texts(kind: str, flash_model: Any) -> None:
    model = flash_model(kind)
    for row in (ENDING, pack(PACKED)):
        assert difference(logits(model, model_inputs(row, model)), reference(model, row)) < 1e-4
    assert {tuple(ends) for ends in COUNTED} == {(0, 64), (0, 30, 51, 91)}
    # Several rows: transformers looks for packed texts in batches of one row only.
    rows = [pack(PACKED), ENDING, full_length(text(50, 4))]
    together = logits(model, model_inputs(collate(rows), model))
    for found, row in zip(together, rows, strict=True):
        assert difference(found[: row.length], reference(model, row)[0]) < 1e-4
    ones = {**model_inputs(collate([rows[0], rows[0]]), model)}
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):
        del ones[name]
    assert difference(logits(model, ones)[0], reference(model, rows[0])[0]) > 0.05
    found = check_isolation(model, rows)
    assert found.links > 0
    assert found.walls > 0


@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_flash_windows_count_tokens(kind: str, flash_model: Any) -> None:
    model = flash_model(kind)
    for row in (pack(PACKED), full_length(text(60))):
        assert difference(logits(model, model_inputs(row, model)), reference(model, row)) < 1e-4
    with pytest.raises(UnsupportedError, match="counts in tokens"):
        model_inputs(ENDING, model)


def test_flex_masks_are_the_same_rule() -> None:
    rows = collate([pack(PACKED), ENDING])
    documents, positions = torch.tensor(rows.documents), torch.tensor(rows.positions)
    at = torch.arange(rows.ids.shape[1])
    row = torch.arange(2)[:, None, None, None]
    for window in (None, 24):
        rule = block_mask(documents, positions, window)
        found = rule.mask_mod(row, 0, at[None, None, :, None], at[None, None, None, :])
        assert torch.equal(found, visible(documents, positions, window))


def test_masks_are_built_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = collate([pack(PACKED), ENDING])
    given = (torch.tensor(rows.documents), torch.tensor(rows.positions), 24)
    whole = visible(*given)
    monkeypatch.setattr("ctxforge.calibrate.placement.masks._BLOCK", 7)
    assert torch.equal(visible(*given), whole)
    order = torch.arange(rows.ids.shape[1])
    documents, positions, window = given
    plain = (documents[:, :, None] == documents[:, None]) & (order[:, None] >= order[None])
    plain &= positions[:, :, None] - positions[:, None] < window
    assert torch.equal(whole[:, 0], plain)
    assert whole.any(-1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash_attention_2", "flex_attention"])
def test_the_real_kernels(backend: str) -> None:
    plain = model_of("llama", hidden_size=256, head_dim=64).cuda()
    rows = collate([pack(PACKED), pose(text(300), 64, TARGET, 3)])
    wanted = logits(plain, model_inputs(rows, plain))
    try:
        plain.set_attn_implementation(backend)
    except (ImportError, ValueError) as error:
        pytest.skip(str(error))
    model = plain.bfloat16() if backend.startswith("flash") else plain
    assert difference(logits(model, model_inputs(rows, model)).float(), wanted) < (0.1 if model is not plain else 1e-3)
    check_isolation(model, rows)
