"""Which attention a measurement runs on, and that it computes what stock attention computes."""

from __future__ import annotations

import pytest
import torch

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.verification import expanded_heads
from ctxforge.verification.attention import attention_for
from ctxforge.verification.cache_check import cache_difference
from ctxforge.verification.onepass import OnePass
from tests.verification.tiny import tiny, token_ids


def test_expanded_heads_equal_sdpa() -> None:
    model = tiny()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    ids = token_ids(200)
    stock = OnePass(model).losses(ids)
    with expanded_heads.expanded_heads(model) as name:
        assert model.config._attn_implementation == name
        torch.testing.assert_close(OnePass(model).losses(ids), stock, atol=1e-5, rtol=0)
        # Chunks with a cache: explicit masks, and single tokens without one.
        assert cache_difference(model, token_ids(192), 64, 256) == pytest.approx(0, abs=1e-3)
    assert model.config._attn_implementation == "sdpa"


def test_expanded_heads_put_the_attention_back_after_an_error() -> None:
    model = tiny()
    with pytest.raises(RuntimeError), expanded_heads.expanded_heads(model):
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(UnsupportedError):
        expanded_heads.attend(torch.nn.Identity(), one, one, one, None, softcap=30.0)


def test_only_float32_on_a_gpu_needs_expanding() -> None:
    assert not expanded_heads.needs_expanding(tiny())


def test_an_attention_by_name() -> None:
    model = tiny()
    with attention_for(model, "eager", 64) as name:
        assert name == model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"
    with attention_for(model, "auto", 64) as name:
        assert name == "sdpa"
    with pytest.raises(UsageError, match="flash_attention_2"), attention_for(model, "flash_attention_2", 64):
        pass
