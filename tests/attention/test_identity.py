"""The identity rotation's tables: a layer computes with them what it computes with ordinary ones, bit for bit."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attention.battery import every_architecture
from tests.modeling.emitted import remote, tokens

LONG = 300


def _code() -> Any:
    path = Path(__file__).resolve().parents[2] / "templates" / "modeling" / "ctxforge_identity.py"
    spec = importlib.util.spec_from_file_location("ctxforge_identity_alone", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rotate_half(states: torch.Tensor) -> torch.Tensor:
    half = states.shape[-1] // 2
    return torch.cat((-states[..., half:], states[..., :half]), dim=-1)


@torch.no_grad()
def test_a_rotation_by_them_is_the_tensor_itself() -> None:
    cos, sin = _code().identity_rotation(torch.empty(2, LONG, 8))
    states = torch.randn(2, 3, LONG, 8)
    turned = states * cos.unsqueeze(1) + rotate_half(states) * sin.unsqueeze(1)
    assert turned.data_ptr() == states.data_ptr()
    assert type(turned) is torch.Tensor
    interleaved = cos[..., :4].repeat_interleave(2, dim=-1)
    assert (states * interleaved.unsqueeze(1)).data_ptr() == states.data_ptr()


@torch.no_grad()
def test_any_other_operation_sees_ordinary_numbers() -> None:
    cos, sin = _code().identity_rotation(torch.empty(1, LONG, 4))
    states = torch.randn(1, LONG, 4)
    for found, wanted in (
        (cos * 2, 2.0),
        (sin + 1, 1.0),
        (cos + sin, 1.0),
        (cos * cos, 1.0),
        (sin - 3, -3.0),
        (cos.mul(cos.unsqueeze(0)), 1.0),
        (torch.cat((cos, sin + 1), dim=-1), 1.0),
    ):
        assert bool((found == wanted).all())
    # Scaled tables are not ones any more.
    assert torch.equal(states * (cos * 0.5), states * 0.5)
    # Another dtype: the product is promoted as ever.
    assert (states.bfloat16() * cos).dtype == torch.float32
    assert torch.equal(states.double() * cos, states.double())
    # A table larger than the states: the product has its shape.
    assert (states[:, :1] * cos).shape == (1, LONG, 4)


def test_short_texts_and_training_get_ordinary_tables() -> None:
    code = _code()
    assert all(type(table) is torch.Tensor for table in code.identity_rotation(torch.empty(1, LONG, 4)))
    with torch.no_grad():
        assert all(type(table) is torch.Tensor for table in code.identity_rotation(torch.empty(1, 255, 4)))
        assert all(type(table) is not torch.Tensor for table in code.identity_rotation(torch.empty(1, 256, 4)))


@every_architecture
@torch.no_grad()
def test_layers_compute_the_same(kind: str, emitted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = remote(emitted("lm-infinite", kind))
    code = sys.modules[f"{type(model).__module__.rpartition('.')[0]}.ctxforge_identity"]
    ids, used = tokens(2, LONG), []
    plain = code._covering
    monkeypatch.setattr(code, "_covering", lambda *given: used.append(given) or plain(*given))
    found = model(input_ids=ids).logits
    assert used
    monkeypatch.setattr(code, "_WORTHWHILE", 10**9)
    used.clear()
    wanted = model(input_ids=ids).logits
    assert not used
    assert torch.equal(found, wanted)
