"""Battery, points 7 to 10: saved and loaded again, every way around the code refused, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tests.attention.battery import attachment_of, every_architecture, every_system, holds_or_is_refused, systems
from tests.modeling.emitted import difference, read_config, remote, tokens, whole

Folders = Callable[..., Path]


@every_architecture
@every_system
def test_a_saved_model_loads_again(name: str, kind: str, emitted: Folders, tmp_path: Path) -> None:
    def check() -> None:
        folder, ids = emitted(name, kind), tokens(2, 100)
        model = remote(folder)
        model.save_pretrained(tmp_path / "saved")
        before, after = read_config(folder), read_config(tmp_path / "saved")
        assert before["ctxforge"]["system"] == systems()[attachment_of(name)].system
        for key in ("model_type", "architectures", "auto_map", "attn_implementation", "ctxforge"):
            assert after[key] == before[key]
        for file in folder.glob("*.py"):
            assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()
        assert difference(whole(remote(tmp_path / "saved"), ids), whole(model, ids)) == 0

    holds_or_is_refused(name, "saving", kind, check)


@every_system
def test_without_trust_nothing_loads(name: str, emitted: Folders) -> None:
    folder = emitted(name, "llama")
    remote(folder)  # in a process that has imported the code already, too
    for auto in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="trust_remote_code"):
            auto.from_pretrained(folder, trust_remote_code=False)
    stock_class = transformers.LlamaForCausalLM.from_pretrained(folder)
    with pytest.raises(RuntimeError, match="trust_remote_code=True"):
        stock_class(input_ids=tokens(1, 8))


@pytest.mark.parametrize("implementation", ["vllm", "sglang", "sdpa", "eager"])
@every_system
def test_another_attention_is_refused(name: str, implementation: str, emitted: Folders) -> None:
    folder = emitted(name, "llama")
    with pytest.raises((RuntimeError, ValueError)):
        remote(folder, attn_implementation=implementation)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config._attn_implementation = implementation  # as serving engines do before they build the model
    for auto in (AutoModel, AutoModelForCausalLM):
        with pytest.raises(RuntimeError, match="would replace"):
            auto.from_config(config, trust_remote_code=True)
    model = remote(folder)
    with pytest.raises(RuntimeError, match="would replace"):
        model.set_attn_implementation(implementation)
    model.config._attn_implementation = implementation
    with pytest.raises(RuntimeError, match="would replace"):
        model(input_ids=tokens(1, 8))


@every_system
def test_gradient_checkpointing_changes_no_gradient(name: str, emitted: Folders) -> None:
    def check() -> None:
        ids = tokens(2, 90)
        found: list[dict[str, torch.Tensor]] = []
        for checkpointing in (False, True):
            model = remote(emitted(name, "llama")).train()
            if checkpointing:
                enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
                enable()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
            found.append({"loss": loss.detach(), **gradients})
        assert all(value is not None and value.abs().max() > 0 for value in found[0].values())
        assert max(difference(found[1][key], found[0][key]) for key in found[0]) < 1e-5

    holds_or_is_refused(name, "checkpointing", "llama", check)
