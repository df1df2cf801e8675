"""What the distance-remapping systems share: no score matrix on the fast path, packed rows, positions with jumps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from templates.modeling import ctxforge_score_sets
from templates.modeling.ctxforge_attention import Call
from templates.modeling.modeling_dual_chunk import DualChunk
from templates.modeling.modeling_rerope import ReRoPE
from templates.modeling.modeling_self_extend import SelfExtend
from templates.modeling.modeling_string_shift import StringShift
from tests.attention import remapped
from tests.modeling.emitted import chunked, difference, remote, tokens, whole

SYSTEMS: tuple[tuple[Any, dict[str, Any], str], ...] = (
    (SelfExtend, {"group": 8, "window": 64}, "self-extend:group=8,window=16"),
    (ReRoPE, {"window": 64, "factor": None}, "rerope:window=16"),
    (ReRoPE, {"window": 64, "factor": 8.0}, "leaky-rerope:window=16,factor=8"),
    (DualChunk, {"chunk": 96, "local": 16}, "dual-chunk:chunk=24,local=7"),
    (StringShift, {"shift": 700, "window": 64}, "string:shift=60,window=40"),
)
every = pytest.mark.parametrize(
    ("system", "parameters", "attach"), SYSTEMS, ids=["self-extend", "rerope", "leaky", "dual-chunk", "string"]
)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, and all that the attention kernel read of keys."""

    elements = 0
    scores = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        if "flash_attention" in str(func):
            self.scores += args[0].shape[2] * args[1].shape[2]
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return found


def measure(system: Any, parameters: dict[str, Any], length: int) -> Largest:
    tensors = remapped.states(length, rows=1)
    with torch.no_grad(), Largest() as found:
        remapped.answer(remapped.build(system, parameters, block=64), tensors)
    return found


@every
def test_no_score_matrix_is_made_and_few_scores_are_computed_twice(
    system: Any, parameters: dict[str, Any], attach: str
) -> None:
    del attach
    short, long = (measure(system, parameters, length) for length in (2048, 4096))
    assert long.elements < 2.1 * short.elements
    assert long.elements <= 4096 * remapped.HEADS * remapped.WIDTH
    # The kernel's queries are those of two heads, folded; half of the matrix is visible.
    assert long.scores < 1.2 * 2 * 4096**2 / 2


def test_the_measure_sees_a_score_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctxforge_score_sets, "needs_scores", lambda _call: True)
    tensors = remapped.states(2048, rows=1)
    with torch.no_grad(), Largest() as found:
        remapped.answer(remapped.build(ReRoPE, {"window": 64, "factor": None}, block=2048), tensors)
    assert found.elements >= 2048**2


@every
def test_packed_rows_are_separate_texts(system: Any, parameters: dict[str, Any], attach: str, tmp_path: Path) -> None:
    del system, parameters
    model = remapped.small_blocks(remote(remapped.emit(tmp_path, attach, to=80)[1]))
    lengths = (80, 70, 3, 1, 40)
    texts = [tokens(1, length, seed) for seed, length in enumerate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = whole(model, torch.cat(texts, dim=1), position_ids=positions)
    for text, found in zip(texts, packed.split(lengths, dim=1), strict=True):
        assert difference(found, whole(model, text)) < 1e-5


@every
def test_positions_with_jumps_stand_beside_the_cache(
    system: Any, parameters: dict[str, Any], attach: str, tmp_path: Path
) -> None:
    del system, parameters
    model, ids = remapped.small_blocks(remote(remapped.emit(tmp_path, attach, to=80)[1])), tokens(2, 80)
    positions = torch.stack(
        (torch.cat((torch.arange(40), torch.arange(100, 140))), torch.cat((torch.arange(9), torch.arange(20, 91))))
    )
    mask = torch.ones(2, 80, dtype=torch.long)
    wanted = whole(model, ids, position_ids=positions, attention_mask=mask)
    assert difference(chunked(model, ids, 7, positions), wanted) < 1e-5
    assert difference(whole(model, ids), wanted) > 1e-3


def test_many_ranges_become_one_a_rule() -> None:
    """Positions that go back and forth: the same answer, by masks."""
    tensors = remapped.states(90, rows=1)
    at = torch.arange(90)[None]
    jumping = torch.where(at % 3 == 0, at // 3, at)
    system = remapped.build(ReRoPE, {"window": 10, "factor": None}, block=8)
    found = remapped.answer(system, tensors, query_positions=jumping, key_positions=jumping)
    call = Call(*tensors, jumping, jumping, None, remapped.SCALING, 0.0)
    assert len(system._ranges(call, slice(80, 90))) <= 2
    one = remapped.build(ReRoPE, {"window": 10, "factor": None}, block=1)
    wanted = remapped.answer(one, tensors, query_positions=jumping, key_positions=jumping)
    assert difference(found, wanted) < 1e-5


def test_a_layer_without_rotation_attends_plainly() -> None:
    tensors = remapped.states(50)
    system = remapped.build(SelfExtend, {"group": 4, "window": 8})
    system.unrotated = frozenset({0})
    query, key, value = tensors
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True, scale=remapped.SCALING
    )
    assert difference(remapped.answer(system, tensors), wanted) < 1e-5


def test_a_masked_part_with_its_scores_in_memory_is_the_kernels() -> None:
    query, key, value = remapped.states(40)
    mask = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, :, 3] = False  # a query that sees nothing here
    call = Call(query, key, value, *(torch.zeros(2, 40),) * 2, None, remapped.SCALING, 0.0)
    one = ctxforge_score_sets.ScoreSet(query, key, value, mask)
    found, wanted = ctxforge_score_sets._explicit_part(call, one), ctxforge_score_sets._part(call, one)
    seen = mask.any(dim=-1).expand(-1, remapped.KEY_HEADS, -1).repeat(1, 1, remapped.HEADS // remapped.KEY_HEADS)
    assert difference(found[0][seen], wanted[0][seen]) < 1e-5
    assert difference(found[1][seen], wanted[1][seen]) < 1e-5
    assert found[1][~seen].max() < -1e38
    assert wanted[1][~seen].max() < -1e38


@pytest.mark.gpu
@every
def test_half_precision_on_a_gpu(system: Any, parameters: dict[str, Any], attach: str) -> None:
    del attach
    tensors = [one.bfloat16() for one in remapped.states(1500)]
    wanted = remapped.answer(remapped.build(system, parameters, block=64), [one.float() for one in tensors])
    at = torch.arange(1500, device="cuda").expand(2, -1)
    found = remapped.answer(
        remapped.build(system, parameters, block=128),
        [one.cuda() for one in tensors],
        query_positions=at,
        key_positions=at,
    )
    assert float((found.float().cpu() - wanted).abs().mean()) < 0.01
