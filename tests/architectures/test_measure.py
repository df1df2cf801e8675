"""The measuring itself: it must see layouts, speeds, temperatures, still layers and weights for what they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from tests.architectures import tiny
from tests.architectures.measure import NotARotationError, measure, turn_of
from tests.architectures.replay import cancels_scale, record, replay


def rotations(frequencies: list[float], pairs: list[tuple[int, int]], width: int, count: int = 5) -> torch.Tensor:
    """R_t, [tokens, out, in], built entry by entry."""
    matrices = torch.eye(width, dtype=torch.float64).repeat(count, 1, 1)
    for t in range(count):
        for frequency, (i, j) in zip(frequencies, pairs, strict=True):
            c, s = math.cos(t * frequency), math.sin(t * frequency)
            matrices[t, i, i], matrices[t, i, j], matrices[t, j, i], matrices[t, j, j] = c, -s, s, c
    return matrices


@pytest.mark.parametrize(
    ("layout", "pairs", "first", "width"),
    [
        ("half-split", [(0, 3), (1, 4), (2, 5)], 0, 6),
        ("half-split", [(0, 3), (1, 4), (2, 5)], 0, 8),
        ("interleaved", [(0, 1), (2, 3), (4, 5)], 0, 6),
        ("interleaved", [(2, 3), (4, 5), (6, 7)], 2, 8),
    ],
)
def test_a_rotation_is_recovered(layout: str, pairs: list[tuple[int, int]], first: int, width: int) -> None:
    wanted = [1.0, 0.03, 2e-9]
    turn = turn_of(rotations(wanted, pairs, width), list(range(5)))
    assert turn is not None
    assert (turn.layout, turn.rotated_dims, turn.first, turn.width) == (layout, 6, first, width)
    assert turn.frequencies == pytest.approx(wanted, rel=1e-9)
    assert turn.temperature == pytest.approx(1.0)


def test_outputs_in_another_order_are_seen_by_their_inputs() -> None:
    """DeepSeek takes interleaved pairs and gives them back half-split: the layout that counts is the input's."""
    matrices = rotations([1.0, 0.1], [(0, 1), (2, 3)], 4)[:, [0, 2, 1, 3], :]
    turn = turn_of(matrices, list(range(5)))
    assert turn is not None
    assert turn.layout == "interleaved"
    assert turn.frequencies == pytest.approx([1.0, 0.1])


def test_pairs_that_stand_still_count() -> None:
    turn = turn_of(rotations([1.0, 0.0, 0.0, 0.0], [(0, 4), (1, 5), (2, 6), (3, 7)], 8), list(range(5)))
    assert turn is not None
    assert turn.frequencies == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_no_rotation_is_none_and_other_matrices_are_refused() -> None:
    assert turn_of(torch.eye(4, dtype=torch.float64).repeat(5, 1, 1), list(range(5))) is None
    pairs = [(0, 2), (1, 3)]
    with pytest.raises(NotARotationError, match="not rotated"):
        turn_of(1.1 * torch.eye(4, dtype=torch.float64).repeat(5, 1, 1), list(range(5)))
    with pytest.raises(NotARotationError, match="not proportional"):
        turn_of(rotations([1.0, 0.1], pairs, 4), [0, 1, 2, 3, 5])
    shear = rotations([1.0, 0.1], pairs, 4)
    shear[1:, 0, 1] = 0.5
    with pytest.raises(NotARotationError):
        turn_of(shear, list(range(5)))
    uneven = rotations([1.0, 0.1], pairs, 4)
    uneven[:, :, [0, 2]] *= 1.2
    with pytest.raises(NotARotationError, match="stretched"):
        turn_of(uneven, list(range(5)))


def test_a_model_with_another_layout_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama with its half swapped for neighbours, cos and sin repeated to match: measured as interleaved."""

    def neighbours(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        half = cos.shape[-1] // 2
        cos, sin = (x[..., :half].repeat_interleave(2, -1).unsqueeze(1) for x in (cos, sin))

        def turned(x: Any) -> Any:
            return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

        return q * cos + turned(q) * sin, k * cos + turned(k) * sin

    model = tiny.build("llama")
    assert {turn.layout for layer in measure(model).layers for turn in layer.main} == {"half-split"}
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", neighbours)
    measured = measure(model)
    assert {turn.layout for layer in measured.layers for turn in layer.main} == {"interleaved"}
    for layer in measured.layers:
        assert layer.main[0].frequencies == pytest.approx([10000 ** (-i / 8) for i in range(8)], rel=1e-6)


def test_a_layer_that_forgets_to_rotate_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    honest = modeling_llama.apply_rotary_pos_emb
    calls = []

    def forgetful(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        calls.append(1)
        return honest(q, k, cos, sin)

    attention = model.model.layers[2].self_attn
    plain = attention.forward

    def unrotated(*positional: Any, position_embeddings: Any, **named: Any) -> Any:
        cos, sin = position_embeddings
        still = (torch.ones_like(cos), torch.zeros_like(sin))
        return plain(*positional, position_embeddings=still, **named)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", forgetful)
    monkeypatch.setattr(attention, "forward", unrotated)
    measured = measure(model)
    assert [bool(layer.main) for layer in measured.layers] == [True, True, False, True]
    assert calls


def test_replay_sees_a_scaled_query_and_any_other_edit() -> None:
    model = tiny.build("llama")
    recording = record(model, None, None)
    same = replay(model, recording, None, None)
    assert torch.equal(recording.logits, same.logits)
    factors = [f for call in same.rotary + same.attention for vector in call.factors for f in vector]
    assert factors == pytest.approx([1.0] * len(factors), abs=1e-12)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.mul_(1.5)
    scaled = replay(model, recording, None, None)
    assert torch.equal(recording.logits, scaled.logits)
    assert scaled.rotary[1].factors[0] == pytest.approx([1.5] * 16)
    assert scaled.rotary[1].factors[1] == pytest.approx([1.0] * 16)
    assert scaled.rotary[2].factors[0] == pytest.approx([1.0] * 16)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    with pytest.raises(AssertionError):
        replay(model, recording, None, None)


def test_replay_sees_a_factor_behind_the_rotation() -> None:
    model = tiny.build("hunyuan_v1_dense")
    recording = record(model, None, None)
    with torch.no_grad():
        model.model.layers[2].self_attn.query_layernorm.weight.mul_(1.3)
    scaled = replay(model, recording, None, None)
    assert torch.equal(recording.logits, scaled.logits)
    assert scaled.rotary[2].factors[0] == pytest.approx([1.0] * 16)
    assert scaled.attention[2].factors[0] == pytest.approx([1.3] * 16)
    assert scaled.attention[2].factors[1] == pytest.approx([1.0] * 16)


def test_a_norm_after_the_rotation_cancels_a_temperature() -> None:
    assert not cancels_scale(tiny.build("llama"), None, None)
    assert not cancels_scale(tiny.build("qwen3"), None, None)
    assert cancels_scale(tiny.build("nanochat"), None, None)
