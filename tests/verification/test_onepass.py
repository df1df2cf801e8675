"""One pass: equal to a plain forward, valid for shorter lengths where it says so, and blind to no early token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ctxforge.verification.head import SlicedHead
from ctxforge.verification.onepass import OnePass, length_dependent
from ctxforge.verification.perplexity import by_bucket, by_length, perplexity
from tests.verification.tiny import DYNAMIC, LONGROPE, YARN, reference_losses, tiny, token_ids

KINDS = {
    "llama": {"rope_parameters": YARN},
    "qwen3": {"head_dim": 16},
    "gpt_neox": {},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 5.0, "sliding_window": 24},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 7.0},
    "mixtral": {"num_local_experts": 4},
    "mistral": {"sliding_window": 24, "head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24},
    "olmo2": {},
    "stablelm": {},
    "phi3": {},
    "smollm3": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sliced_losses_equal_a_plain_forward(kind: str) -> None:
    model = tiny(kind, **KINDS[kind])
    ids = token_ids(150)
    runner = OnePass(model, head_slice=32, longest=200)
    assert runner.head_kind == "sliced"
    assert runner.prefix_invariant
    expected = reference_losses(model, ids)
    # The models differ from uniform guessing by far, so equality means something.
    assert float((expected - math.log(300)).abs().max()) > 1
    torch.testing.assert_close(runner.losses(ids).double(), expected, atol=2e-4, rtol=1e-5)


def test_prefix_of_one_pass_is_the_shorter_forward() -> None:
    model = tiny(rope_parameters=YARN)
    ids = token_ids(256)
    runner = OnePass(model, longest=256)
    whole = runner.losses(ids).numpy()
    for length in (32, 64, 128, 200):
        alone = by_length([runner.losses(ids[:length]).numpy()], length)
        assert by_length([whole], length).nll == pytest.approx(alone.nll, abs=1e-6)


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE])
def test_length_dependent_rope_is_found_and_its_prefix_is_not_valid(rope: dict[str, object]) -> None:
    model = tiny(rope_parameters=rope)
    ids = token_ids(256)
    assert length_dependent(model.config)
    runner = OnePass(model, longest=256)
    assert not runner.prefix_invariant
    short = runner.losses(ids[:64])
    whole = runner.losses(ids)
    assert float((whole[:63] - short).abs().mean()) > 1e-3
    runner.settle()
    torch.testing.assert_close(runner.losses(ids[:64]), short)


def test_probe_finds_length_dependence_that_the_config_does_not_show() -> None:
    model = tiny(rope_parameters=DYNAMIC)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0, "factor": 4.0}
    assert not length_dependent(model.config)
    assert not OnePass(model, longest=256).prefix_invariant


def test_an_early_token_reaches_late_logits_across_a_jump_in_positions() -> None:
    """With neither mask nor cache transformers would read the jump as a border between documents."""
    model = tiny()
    runner = OnePass(model)
    ids = token_ids(60)
    other = [ids[0] - 1, *ids[1:]]
    positions = [*range(30), *range(100, 130)]
    late = runner.hidden(ids, positions)[0][30:]
    assert float((runner.hidden(other, positions)[0][30:] - late).abs().max()) > 1e-3
    # The trap itself, as a control: drop the mask and the second part no longer sees the first.
    bare = {"position_ids": torch.tensor([positions]), "use_cache": False}
    one, two = (model.model(torch.tensor([x]), **bare).last_hidden_state[0, 30:] for x in (ids, other))
    assert float((one - two).abs().max()) == 0


def test_sliced_head_never_makes_all_logits() -> None:
    model = tiny()
    widths: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, _i, out: widths.append(out.shape[1]))
    runner = OnePass(model, head_slice=16)
    widths.clear()
    runner.losses(token_ids(200))
    assert max(widths) == 16


def test_head_puts_the_decoder_back_even_after_an_error() -> None:
    model = tiny()
    head = SlicedHead(model)
    with pytest.raises(RuntimeError):
        head.logits(torch.zeros(3, 7), type(model.model(torch.tensor([[5]]))))
    assert "forward" not in model.model.__dict__


def test_a_head_that_cannot_be_separated_falls_back_to_full_logits() -> None:
    model = tiny()
    plain = model.forward

    def odd(**kwargs: object) -> object:
        output = plain(**kwargs)
        # A model whose logits depend on more than the hidden states of a row.
        output.logits = output.logits * output.logits.shape[1]
        return output

    model.forward = odd
    runner = OnePass(model, head_slice=16)
    assert runner.head_kind == "full"
    ids = token_ids(50)
    with torch.no_grad():
        logits = odd(input_ids=torch.tensor([ids])).logits[0, :-1]  # type: ignore[attr-defined]
    torch.testing.assert_close(
        runner.losses(ids), torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    )


def test_bfloat16_is_close_to_float32() -> None:
    ids = token_ids(100)
    full = OnePass(tiny(initializer_range=0.05)).losses(ids).mean()
    half = OnePass(tiny(initializer_range=0.05, dtype=torch.bfloat16)).losses(ids)
    assert half.dtype == torch.float32
    assert float(half.mean()) == pytest.approx(float(full), abs=0.02)


def test_buckets_and_lengths_weigh_by_token() -> None:
    rng = np.random.default_rng(0)
    windows = [rng.uniform(1, 5, 99).astype(np.float32) for _ in range(3)]
    buckets = by_bucket(windows, 100, 4)
    assert [(b.start, b.end, b.tokens) for b in buckets] == [(0, 25, 75), (25, 50, 75), (50, 75, 75), (75, 100, 72)]
    whole = by_length(windows, 100)
    assert whole.tokens == 297
    assert sum(b.nll * b.tokens for b in buckets) / 297 == pytest.approx(whole.nll, rel=1e-12)
    plain = [float(x) for losses in windows for x in losses[:25]]
    assert buckets[0].nll == pytest.approx(sum(plain) / len(plain), rel=1e-9)
    assert whole.ppl == pytest.approx(math.exp(whole.nll))
    assert perplexity(1e4) == math.inf


def test_more_buckets_than_tokens() -> None:
    buckets = by_bucket([np.ones(3, dtype=np.float32)], 4, 8)
    assert sum(b.tokens for b in buckets) == 3


def test_ticks_count_layers() -> None:
    seen: list[tuple[int, int]] = []
    OnePass(tiny()).losses(token_ids(20), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
