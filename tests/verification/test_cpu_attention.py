"""CPU attention in blocks: equal to a dense float64 reference and to stock models, and a wrong mask is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxforge.errors import UnsupportedError
from ctxforge.verification.cpu_attention import (
    ATTENTION_NAME,
    bands,
    blocked_attention,
    blocks,
    cpu_attention,
    plan,
    worth_it,
)
from tests.verification.tiny import YARN, tiny, token_ids


def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    return k <= q


def window(size: int) -> Any:
    return lambda _b, _h, q, k: (k <= q) & (k > q - size)


def chunk(size: int) -> Any:
    return lambda _b, _h, q, k: (k <= q) & (k // size == q // size)


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: Any,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition, in float64, with whole matrices: [B, L, H, d_v]."""
    group = query.shape[1] // key.shape[1]
    q, k, v = (x.double() for x in (query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)))
    at = torch.arange(query.shape[2])
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.exp() * rule(0, 0, at[:, None], at[None, :])
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp().view(1, -1, 1, 1)
    return (weights / total @ v).transpose(1, 2)


def draw(
    heads: int, shared: int, length: int, width: int, *, seed: int = 0, batch: int = 1, wide: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Strided as transformers hands them over, and with scores up to about 10."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((heads, width), (shared, width), (shared, wide or width))
    q, k, v = (torch.randn(batch, length, *size, generator=generator).transpose(1, 2) for size in sizes)
    return 2 * q, k, v


RULES = {"causal": causal, "window 37": window(37), "window 300": window(300), "chunk 64": chunk(64)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("heads", "shared", "length", "width"), [(9, 3, 1100, 64), (4, 4, 256, 80), (8, 2, 301, 128), (2, 1, 1, 64)]
)
@pytest.mark.parametrize("extra", ["plain", "softcap", "sinks", "both"])
def test_equals_the_definition(rule: str, heads: int, shared: int, length: int, width: int, extra: str) -> None:
    q, k, v = draw(heads, shared, length, width)
    softcap = 5.0 if extra in ("softcap", "both") else None
    sinks = torch.linspace(-2, 3, heads) if extra in ("sinks", "both") else None
    planned = None if rule == "causal" else plan(RULES[rule], length)
    found = blocked_attention(q, k, v, scale=0.15, bands=planned, softcap=softcap, sinks=sinks)
    expected = dense(q, k, v, RULES[rule], 0.15, softcap, sinks)
    assert found.shape == (1, length, heads, width)
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("softcap", [None, 5.0, 100.0])
@pytest.mark.parametrize("size", [None, 100])
def test_bfloat16_is_as_near_as_its_rounding(softcap: float | None, size: int | None) -> None:
    q, k, v = (x.bfloat16() for x in draw(6, 2, 400, 64))
    sinks = torch.linspace(-2, 3, 6).bfloat16()
    rule = causal if size is None else window(size)
    planned = None if size is None else plan(rule, 400)
    found = blocked_attention(q, k, v, bands=planned, softcap=softcap, sinks=sinks)
    expected = dense(q, k, v, rule, 0.125, softcap, sinks)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.06
    assert (found - expected).abs().mean() < 0.004


def test_values_of_another_width_and_a_batch() -> None:
    for wide in (None, 24):
        q, k, v = draw(4, 2, 300, 32, batch=2, wide=wide)
        sinks = torch.linspace(-1, 1, 4)
        for planned, rule in ((None, causal), (plan(window(50), 300, 2), window(50))):
            found = blocked_attention(q, k, v, bands=planned, sinks=sinks)
            assert (found - dense(q, k, v, rule, 32**-0.5, None, sinks)).abs().max() < 1e-5


def test_scores_too_large_for_exp() -> None:
    q, k, v = draw(2, 2, 64, 16)
    for softcap, sinks in ((500.0, None), (500.0, torch.tensor([200.0, -200.0]))):
        found = blocked_attention(40 * q, k, v, scale=1.0, softcap=softcap, sinks=sinks)
        expected = dense(40 * q, k, v, causal, 1.0, softcap, sinks)
        assert torch.isfinite(found).all()
        assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_window_off_by_one_is_noticed(off: int, softcap: float | None) -> None:
    q, k, v = draw(4, 2, 300, 64)
    found = blocked_attention(q, k, v, bands=plan(window(50 + off), 300), softcap=softcap)
    assert (found - dense(q, k, v, window(50), 0.125, softcap)).abs().max() > 1e-2


@settings(max_examples=100, deadline=None)
@example(1, 1, 3, 8, 1, 1, 2, None, None)
@given(
    shared=st.integers(1, 3),
    group=st.integers(1, 4),
    length=st.integers(1, 90),
    width=st.sampled_from([8, 16, 24]),
    rows=st.integers(1, 40),
    scores=st.integers(1, 4000),
    size=st.none() | st.integers(1, 100),
    softcap=st.none() | st.floats(1, 200),
    sink=st.none() | st.floats(-20, 20),
)
def test_any_shape_and_block(
    shared: int, group: int, length: int, width: int, rows: int, scores: int, size: int | None, softcap: Any, sink: Any
) -> None:
    q, k, v = draw(shared * group, shared, length, width, seed=length)
    sinks = None if sink is None else torch.full((shared * group,), sink)
    rule = causal if size is None else window(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "BAND_ROWS", rows)
        patch.setattr(blocks, "_SCORES", scores)
        planned = None if size is None else plan(rule, length)
        found = blocked_attention(q, k, v, bands=planned, softcap=softcap, sinks=sinks)
    assert (found - dense(q, k, v, rule, width**-0.5, softcap, sinks)).abs().max() < 2e-5


def test_a_window_is_planned_as_a_band_with_one_mask() -> None:
    planned = plan(window(1000), 4096)
    assert [band.rows.start for band in planned] == list(range(0, 4096, 256))
    last, before = planned[-1], planned[-2]
    assert (last.keys.start, last.keys.stop) == (3840 - 999, 4096)
    assert last.mask is before.mask
    rule = window(1000)
    for band in planned:
        rows, keys = (torch.arange(s.start, s.stop) for s in (band.rows, band.keys))
        assert torch.equal(band.whole(), rule(0, 0, rows[:, None], keys))
    assert planned[0].open == 1


def test_runs_of_a_window_are_few_and_cover_every_band() -> None:
    planned = plan(window(1024), 4096 + 100)
    found = list(bands.runs(planned))
    assert [band for run in found for band in run] == planned
    # The causal start, the shifted bands, and the short last block.
    assert [len(run) for run in found] == [4, 12, 1]
    assert [bands.is_causal(run) for run in found] == [True, False, False]
    assert not bands.is_causal(plan(window(200), 256))


def test_runs_with_a_gap_are_not_merged() -> None:
    """Rows that all see the same last keys, and not keys that move with them."""
    q, k, v = draw(4, 2, 1000, 16)

    def rule(_b: Any, _h: Any, q: Any, k: Any) -> Any:
        return (k <= 255) & (q >= 0)

    planned = plan(rule, 1000)
    assert (blocked_attention(q, k, v, bands=planned) - dense(q, k, v, rule, 0.25)).abs().max() < 1e-5


def test_a_causal_block_behind_chunks_is_no_causal_run() -> None:
    q, k, v = draw(4, 2, 1000, 16)

    def rule(_b: Any, _h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & ((k // 256 == q // 256) | (q >= 512))

    assert [len(run) for run in bands.runs(plan(rule, 1000))] == [2, 1, 1]
    assert (blocked_attention(q, k, v, bands=plan(rule, 1000)) - dense(q, k, v, rule, 0.25)).abs().max() < 1e-5


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": 24, "head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 24, "attn_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": 24, "num_hidden_layers": 6}),
    "gpt-oss": ("gpt_oss", {"head_dim": 16, "sliding_window": 24, "num_local_experts": 4}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gpt_neox": ("gpt_neox", {}),
}
LENGTH = 290


def build(name: str) -> Any:
    kind, changes = MODELS[name]
    model = tiny(kind, max_position_embeddings=512, **changes)
    if kind == "gpt_oss":
        for layer in model.model.layers:
            layer.self_attn.sinks.data.normal_()
    return model


def logits(model: Any, seed: int = 0, **options: Any) -> torch.Tensor:
    ids = torch.tensor([token_ids(LENGTH, seed)])
    with torch.no_grad():
        found: torch.Tensor = model(ids, use_cache=False, **options).logits
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_what_they_computed(name: str, masked: bool) -> None:
    model = build(name)
    before = model.config._attn_implementation
    options = {"attention_mask": torch.ones(1, LENGTH, dtype=torch.long)} if masked else {}
    stock = logits(model, **options)
    with cpu_attention(model) as used:
        assert used == model.config._attn_implementation == ATTENTION_NAME
        ours = logits(model, **options)
    assert model.config._attn_implementation == before
    assert stock.std() > 0.1
    assert (ours - stock).abs().max() < 1e-4
    assert torch.equal(logits(model, **options), stock)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt-oss"])
def test_a_model_with_its_window_off_by_one_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    stock = logits(model)

    def wrong(allowed: Any, length: int, batch: int = 1) -> Any:
        return plan(lambda b, h, q, k: allowed(b, h, q, k) & (k > q - 23), length, batch)

    monkeypatch.setattr("ctxforge.verification.cpu_attention.switch.plan", wrong)
    with cpu_attention(model):
        assert (logits(model) - stock).abs().max() > 1e-2


def test_without_its_sinks_gpt_oss_is_another_model() -> None:
    model = build("gpt-oss")
    stock = logits(model)
    for layer in model.model.layers:
        layer.self_attn.sinks.data.fill_(-100.0)
    with cpu_attention(model):
        assert (logits(model) - stock).abs().max() > 1e-2


def test_what_it_cannot_do_is_refused_and_the_attention_put_back() -> None:
    model = build("llama")
    before = model.config._attn_implementation
    padded = torch.ones(1, LENGTH, dtype=torch.long)
    padded[0, :5] = 0
    with pytest.raises(UnsupportedError, match="mask"), cpu_attention(model):
        logits(model, attention_mask=padded)
    assert model.config._attn_implementation == before
    with pytest.raises(UnsupportedError, match="cache"), torch.no_grad(), cpu_attention(model):
        model.generate(torch.tensor([token_ids(20)]), max_new_tokens=2, do_sample=False)
    assert model.config._attn_implementation == before
    q, k, v = draw(2, 2, 16, 8)
    with pytest.raises(UnsupportedError, match="gradients"):
        blocked_attention(q.requires_grad_(), k, v)
    with pytest.raises(UnsupportedError, match="nothing"):
        plan(lambda _b, _h, q, k: (k <= q) & (q > 3), 16)
    with pytest.raises(UnsupportedError, match="of their own"):
        plan(lambda b, _h, q, k: (k <= q) & (k >= q - b), 16, 2)


def test_packed_documents_stay_apart() -> None:
    """Without a mask transformers reads a jump in the positions as a new document: the rule carries that over."""
    model = build("llama")
    positions = torch.cat([torch.arange(100), torch.arange(LENGTH - 100)])[None]
    stock = logits(model, position_ids=positions)
    assert (stock - logits(model)).abs().max() > 1e-2
    with cpu_attention(model):
        assert (logits(model, position_ids=positions) - stock).abs().max() < 1e-4


def test_worth_it_where_stock_attention_wastes_work() -> None:
    assert not worth_it(build("llama"), 1 << 20)
    assert worth_it(build("mistral"), 2048)
    assert not worth_it(build("mistral"), 2047)
    assert not worth_it(tiny("mistral", sliding_window=None, head_dim=16), 1 << 20)
    assert not worth_it(tiny("qwen2", use_sliding_window=False, sliding_window=24), 1 << 20)
    assert worth_it(build("gemma2"), 2048)
    assert worth_it(build("gpt-oss"), 2048)
    assert not worth_it(build("gpt-oss"), 2047)
