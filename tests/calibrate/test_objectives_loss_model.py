"""A model with its loss, against the model's own logits and the plain loss, over heads of every form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ctxforge.calibrate.objectives.cross_entropy import IGNORE
from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens, next_weights
from ctxforge.errors import UnsupportedError
from tests.verification.tiny import SIZES, tiny, token_ids

# Factor and cap are those that their configs have, but small enough to bite on a tiny model.
HEADS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "gpt_neox": {},
    "phi": {},
}
# peft asks models for a property that transformers calls by another name now.
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def trained(kind: str, **changes: Any) -> Any:
    return tiny(kind, **{**HEADS[kind], **changes}).requires_grad_(True)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([token_ids(24, seed=1), token_ids(24, seed=2)])
    counted = torch.ones_like(ids, dtype=torch.bool)
    counted[0, :9] = False
    return ids, next_tokens(ids, counted)


def plain_loss(model: Any, ids: torch.Tensor, targets: torch.Tensor, denominator: float) -> torch.Tensor:
    where = torch.arange(ids.shape[1]).expand_as(ids)
    logits = model(input_ids=ids, position_ids=where, attention_mask=torch.ones_like(ids), use_cache=False).logits
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return losses / denominator


def sliced_loss(model: Any, ids: torch.Tensor, targets: torch.Tensor, denominator: float, **more: Any) -> Any:
    where = torch.arange(ids.shape[1]).expand_as(ids)
    loss_model = LossModel(model, slice_rows=5)
    found = loss_model(ids, targets, denominator, position_ids=where, attention_mask=torch.ones_like(ids), **more)
    return loss_model, found


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()), msg=name)


@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_every_gradient(kind: str) -> None:
    model = trained(kind)
    ids, targets = batch()
    loss_model, found = sliced_loss(model, ids, targets, 31.0)
    assert loss_model.form == "affine"
    expected = plain_loss(model, ids, targets, 31.0)
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=1e-6)
    assert_equal(gradients(model, found.loss), gradients(model, expected))
    loss_model.check()


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_forms_are_needed(kind: str) -> None:
    """Negative control: without factor or cap the loss is another."""
    model = trained(kind)
    ids, targets = batch()
    loss_model, found = sliced_loss(model, ids, targets, 31.0)
    assert loss_model._affine is not None
    assert (loss_model._affine.scale, loss_model._affine.softcap) != (1.0, None)
    plain_model = LossModel(model)
    from ctxforge.calibrate.objectives.head import AffineForm

    plain_model.form, plain_model._affine = "affine", AffineForm()
    where = torch.arange(ids.shape[1]).expand_as(ids)
    wrong = plain_model(ids, targets, 31.0, position_ids=where, attention_mask=torch.ones_like(ids))
    assert abs(float(wrong.loss.detach()) - float(found.loss.detach())) > 0.05


def test_a_tied_head_gathers_both_gradients() -> None:
    model = trained("qwen2")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids, targets = batch()
    _, found = sliced_loss(model, ids, targets, 31.0)
    ours = gradients(model, found.loss)["model.embed_tokens.weight"]
    unused = sorted(set(range(SIZES["vocab_size"])) - set(ids.flatten().tolist()))
    # Only the head reaches tokens that are not in the input, only the input those rows of it that differ.
    assert ours[unused].abs().max() > 0
    assert_equal(
        {"e": ours}, {"e": gradients(model, plain_loss(model, ids, targets, 31.0))["model.embed_tokens.weight"]}
    )


@peft_warns
def test_an_adapter_on_the_head_runs_the_models_own_code() -> None:
    model = trained("cohere")
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False, lora_dropout=0.0)
    )
    ids, targets = batch()
    loss_model, found = sliced_loss(adapted, ids, targets, 31.0)
    assert loss_model.form == "own code"
    expected = plain_loss(adapted, ids, targets, 31.0)
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=1e-6)
    ours = gradients(adapted, found.loss)
    assert any("lm_head" in name for name in ours)
    assert_equal(ours, gradients(adapted, expected))
    loss_model.check()


@peft_warns
def test_adapters_elsewhere_leave_the_head_frozen() -> None:
    adapted = get_peft_model(trained("llama"), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    ids, targets = batch()
    loss_model, found = sliced_loss(adapted, ids, targets, 31.0)
    assert loss_model.form == "affine"
    assert_equal(gradients(adapted, found.loss), gradients(adapted, plain_loss(adapted, ids, targets, 31.0)))


def test_micro_batches_add_up_to_the_batch() -> None:
    model = trained("llama")
    ids, targets = batch()
    whole = gradients(model, sliced_loss(model, ids, targets, 38.0)[1].loss)
    halves = [gradients(model, sliced_loss(model, ids[i : i + 1], targets[i : i + 1], 38.0)[1].loss) for i in (0, 1)]
    assert_equal({name: halves[0][name] + halves[1][name] for name in whole}, whole)
    # Negative control: means of halves with different numbers of tokens are not the mean.
    means = [
        gradients(model, sliced_loss(model, ids[i : i + 1], targets[i : i + 1], 2.0 * count)[1].loss)
        for i, count in ((0, 15), (1, 23))
    ]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (means[0][name] + means[1][name] - whole[name]).norm() > 0.05 * whole[name].norm()


def test_a_forward_that_does_more_is_refused() -> None:
    model = trained("llama")
    stock = model.forward

    def more(*args: Any, **kwargs: Any) -> Any:
        # Depends on the ids, so it can't be the head's doing.
        output = stock(*args, **kwargs)
        output.logits = output.logits + (kwargs["input_ids"] % 7)[..., None] * output.logits.roll(1, -1)
        return output

    model.forward = more
    with pytest.raises(UnsupportedError) as caught:
        LossModel(model).check()
    assert "LlamaForCausalLM" in caught.value.cause


def test_the_mode_survives_a_check() -> None:
    loss_model = LossModel(trained("llama")).train()
    loss_model.check()
    assert loss_model.model.training


def test_next_tokens_and_weights() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    assert next_tokens(ids).tolist() == [[6, 7, 8, IGNORE]]
    counted = torch.tensor([[True, True, False, True]])
    assert next_tokens(ids, counted).tolist() == [[6, IGNORE, 8, IGNORE]]
    assert next_weights(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[2.0, 3.0, 4.0, 0.0]]


def test_autocast_trains_float32_weights_in_bfloat16() -> None:
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**SIZES), dtype=torch.float32)
    ids, targets = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = sliced_loss(model, ids, targets, 31.0)
        expected = plain_loss(model, ids, targets, 31.0)
    ours, theirs = gradients(model, found.loss), gradients(model, expected)
    assert abs(float(found.loss) - float(expected)) < 2e-2
    for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        assert ours[name].dtype == torch.float32
        assert (ours[name] - theirs[name]).norm() < 5e-2 * theirs[name].norm()
