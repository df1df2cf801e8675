"""Calling a distance-remapping system's attention on random tensors, and the checks that each of them must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import ctxforge
from ctxforge.attention import find_attachment
from ctxforge.attention.reference import Pattern, dense_attention
from ctxforge.attention.types import Situation
from templates.modeling.ctxforge_attention import Call
from tests.modeling.emitted import TARGET, chunked, difference, remote, save_stock, stock, tokens, whole

HEADS, KEY_HEADS, WIDTH, PAIRS = 4, 2, 16, 6
TABLE = 10000.0 ** (-torch.arange(PAIRS) / PAIRS)
TEMPERATURE = 1.2
SCALING = 0.3
MODULE: Any = SimpleNamespace(
    layer_idx=0, ctxforge_rotary=SimpleNamespace(inv_freq=TABLE, attention_scaling=TEMPERATURE)
)


def situation(trained: int = 4096, target: int = 16384, *, static: bool = True, method: str = "none") -> Situation:
    return Situation(trained, target, HEADS, 2, "llama", static, method)


def build(system: Any, parameters: Mapping[str, Any], *, interleaved: bool = False, block: int = 16) -> Any:
    """The system itself, without a model."""
    layout = "interleaved" if interleaved else "half"
    made = system({"layout": layout, "parameters": dict(parameters)}, 1)
    made.block = block
    return made


def states(length: int, rows: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Unrotated query, key and value with sharp scores."""
    generator = torch.Generator().manual_seed(7)
    shapes = ((HEADS, WIDTH), (KEY_HEADS, WIDTH), (KEY_HEADS, WIDTH))
    return [torch.randn(rows, h, length, d, generator=generator).mul(1.5).to(dtype) for h, d in shapes]


def answer(system: Any, tensors: list[torch.Tensor], **options: Any) -> torch.Tensor:
    """The fast form on positions 0, 1, ..."""
    query, key, value = tensors
    at = torch.arange(key.shape[2]).expand(key.shape[0], -1)
    call = Call(query, key, value, at[:, -query.shape[2] :], at, None, SCALING, 0.0)
    for name, value_given in options.items():
        setattr(call, name, value_given)
    found: torch.Tensor = system.attend(MODULE, call)
    return found


def reference(pattern: Pattern, tensors: list[torch.Tensor], **options: Any) -> torch.Tensor:
    """The dense form, in float64."""
    query, key, value = (one.double() for one in tensors)
    return dense_attention(
        query, key, value, TABLE.double(), pattern, scaling=SCALING, temperature=TEMPERATURE, **options
    )


def check_operator(name: str, system: Any, parameters: Mapping[str, Any], length: int = 130) -> None:
    """The fast form is the dense reference: layouts, caps, sinks, gradients, precision; a wrong distance would show."""
    found_pattern = find_attachment(name).pattern
    assert found_pattern is not None
    pattern = found_pattern(parameters, length, HEADS)
    tensors = states(length)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for options in ({}, {"sinks": sinks}, {"softcap": 4.0}, {"softcap": 4.0, "sinks": sinks}):
        for interleaved in (False, True):
            wanted = reference(pattern, tensors, interleaved=interleaved, **options)
            for block in (16, 512):
                fast = build(system, parameters, interleaved=interleaved, block=block)
                assert difference(answer(fast, tensors, **options), wanted.float()) < 1e-5
    fast = build(system, parameters)
    wanted = reference(pattern, tensors).float()
    for dtype, error in ((torch.bfloat16, 0.01), (torch.float16, 0.0015)):  # 8 and 11 bits of outputs of about 1
        rounded = [one.to(dtype) for one in tensors]
        found = answer(fast, rounded)
        assert found.dtype == dtype
        assert float((found.double() - reference(pattern, rounded)).abs().mean()) < error
    for wrong in _wrong(pattern):
        assert difference(reference(wrong, tensors).float(), wanted) > 1e-3
    _check_gradients(fast, pattern, tensors)


def _wrong(pattern: Pattern) -> list[Pattern]:
    """Some far keys hidden, or a token farther away."""
    hidden = pattern.visible.clone()
    hidden[:, 100:, :8] = False
    moved = pattern.distance.clone()
    moved[:, 100:, :8] += 1
    return [Pattern(hidden, pattern.distance), Pattern(pattern.visible, moved)]


def _check_gradients(fast: Any, pattern: Pattern, tensors: list[torch.Tensor]) -> None:
    gradients = []
    weights = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(3))
    for run in (lambda given: answer(fast, given), lambda given: reference(pattern, given).float()):
        leaves = [one.clone().requires_grad_() for one in tensors]
        (run(leaves) * weights).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for found, wanted in zip(*gradients, strict=True):
        assert found is not None
        assert wanted is not None
        assert difference(found, wanted) < 1e-4


def emit(folder: Path, attach: str, kind: str = "llama", to: int = TARGET, **options: Any) -> tuple[Path, Path]:
    """A stock model and its conversion."""
    source = save_stock(kind, folder / f"{kind}-source")
    return source, ctxforge.extend(source, attach=attach, to=to, out=folder / "out", **options).out


def small_blocks(model: Any, block: int = 16) -> Any:
    """The model with its queries in blocks so short that a text has many."""
    for module in model.modules():
        system = getattr(module, "ctxforge_system", None)
        if system is not None:
            system.block = block
    return model


def check_decoding(folder: Path, length: int = 150, *, crops: bool = True) -> None:
    """One function however the text is fed: chunks, padding, beams, crops; transformers crops no windowed cache."""
    model, ids = small_blocks(remote(folder)), tokens(2, length)
    wanted = whole(model, ids)
    for size in (1, 7, length):
        assert difference(chunked(model, ids, size), wanted) < 1e-5
    exact = small_blocks(remote(folder)).double()
    assert difference(chunked(exact, ids, 7), whole(exact, ids)) < 1e-12
    _check_padding(model)
    _check_beams(model)
    if crops:
        _check_crop(model)


def _check_padding(model: Any) -> None:
    rows = [tokens(1, length, seed) for seed, length in ((1, 90), (2, 70), (3, 41))]
    padded, mask = torch.zeros(3, 90, dtype=torch.long), torch.zeros(3, 90, dtype=torch.long)
    for row, ids in enumerate(rows):
        padded[row, -ids.shape[1] :], mask[row, -ids.shape[1] :] = ids, 1
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    together = model.generate(padded, attention_mask=mask, **options)
    for row, ids in enumerate(rows):
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert together.sequences[row, -20:].tolist() == alone.sequences[0, -20:].tolist()
        for found, wanted in zip(together.scores, alone.scores, strict=True):
            assert difference(found[row], wanted[0]) < 1e-4


def _check_beams(model: Any) -> None:
    ids = tokens(2, 60)
    options = {"max_new_tokens": 30, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    found = model.generate(ids, do_sample=False, num_beams=3, use_cache=True, **options)
    assert found.tolist() == model.generate(ids, do_sample=False, num_beams=3, use_cache=False, **options).tolist()


def _check_crop(model: Any) -> None:
    ids = tokens(1, 100)
    wrong = ids.clone()
    wrong[:, 80:] = 5
    with torch.no_grad():
        cache = model(input_ids=wrong, use_cache=True).cache
        cache.crop(-20)
        found = model(input_ids=ids[:, 80:], use_cache=True, cache=cache).logits
    assert difference(found, whole(model, ids)[:, 80:]) < 1e-5


def check_degenerate(folder: Path, attach: str, length: int, *, longer: int = 150, **options: Any) -> None:
    """The stock model's logits up to `length` tokens, not so at `longer`."""
    source, out = emit(folder, attach, **options)
    plain, model = stock(source), small_blocks(remote(out))
    assert difference(whole(model, tokens(2, length)), whole(plain, tokens(2, length))) < 1e-5
    if longer > length:
        assert difference(whole(model, tokens(2, longer)), whole(plain, tokens(2, longer))) > 1e-3


def count_rotated(system: Any, run: Callable[[], Any]) -> int:
    """How many key vectors the system's key_position places while `run` runs."""
    placed, original = [0], type(system).key_position

    def counting(self: Any, copy: int, positions: torch.Tensor) -> torch.Tensor:
        placed[0] += positions.numel()
        result: torch.Tensor = original(self, copy, positions)
        return result

    type(system).key_position = counting
    try:
        run()
    finally:
        type(system).key_position = original
    return placed[0]
