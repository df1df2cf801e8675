"""Measurements of models of other kinds, and that a measurement leaves a model in training as it found it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from ctxforge.calibrate.held_out import HeldOut, HeldOutSettings, held_out, measure, reference
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.errors import UnsupportedError
from tests.attention.battery import attach
from tests.calibrate.held_out_builders import cache_of, plain_losses
from tests.calibrate.placement_models import PAIRS, model_of
from tests.modeling.emitted import remote, save_stock
from tests.verification.tiny import DYNAMIC, LONGROPE, tiny

WANTED = HeldOutSettings(64, 200, windows=2, short_windows=5)
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    random = np.random.default_rng(3)
    texts = [random.integers(3, 96, size) for size in (230, 220, 50, 40)]
    return held_out([cache_of(tmp_path_factory.mktemp("caches") / "a", texts, prefix=(1,))], WANTED)


def check(model: Any, windows: HeldOut, **inputs: Any) -> None:
    """Each loss is that of the model's own whole logits of that window alone."""
    found = measure(LossModel(model), windows, reference(model, windows))
    long = np.concatenate([plain_losses(model, window.ids, **inputs)[64:] for window in windows.long])
    short = np.concatenate([plain_losses(model, window.ids, **inputs) for window in windows.short])
    assert found.long_nll == pytest.approx(long.mean(), abs=2e-5)
    assert found.short_nll == pytest.approx(short.mean(), abs=2e-5)


@pytest.mark.parametrize(("kind", "backend"), PAIRS)
def test_any_architecture(kind: str, backend: str, windows: HeldOut) -> None:
    check(model_of(kind, backend), windows)


@pytest.mark.parametrize("name", ["self-extend", "dual-chunk", "lm-infinite"])
def test_attached_models(name: str, windows: HeldOut, tmp_path: Path) -> None:
    settings = {
        "self-extend": "window=12,group=6",
        "dual-chunk": "chunk=20,local=6",
        "lm-infinite": "window=16,sinks=4",
    }
    source = remote(save_stock("llama", tmp_path / "stock"))
    model = remote(attach(tmp_path / "stock", name, settings[name], tmp_path / "out"))
    check(model, windows)
    own, plain = (measure(LossModel(one), windows, reference(source, windows)) for one in (model, source))
    assert own.long_nll is not None
    assert plain.long_nll is not None
    assert abs(own.long_nll - plain.long_nll) > 1e-3


def test_rotations_that_depend_on_the_length(windows: HeldOut) -> None:
    """Each window is turned by its own length's factors, whatever was measured before."""
    model = tiny(rope_parameters={**LONGROPE, "original_max_position_embeddings": 64})
    check(model, windows)
    swapped = {**LONGROPE, "original_max_position_embeddings": 64, "long_factor": LONGROPE["short_factor"]}
    one, other = (
        measure(LossModel(each), windows, reference(each, windows)) for each in (model, tiny(rope_parameters=swapped))
    )
    assert one.short_nll == pytest.approx(other.short_nll, abs=1e-6)
    assert one.long_nll != pytest.approx(other.long_nll, abs=1e-2)
    # Dynamic NTK is a source that can be measured, and no extension that can be calibrated.
    dynamic = tiny(rope_parameters=DYNAMIC)
    before = reference(dynamic, windows)
    np.testing.assert_allclose(before.short, [plain_losses(dynamic, w.ids).mean() for w in windows.short], atol=2e-5)
    with pytest.raises(UnsupportedError, match="dynamic NTK"):
        measure(LossModel(dynamic), windows, before)


@peft_warns
def test_unmerged_adapters_count(windows: HeldOut) -> None:
    base = tiny()
    before = reference(base, windows)
    stock = measure(LossModel(base), windows, before)
    torch.manual_seed(5)
    model = get_peft_model(
        tiny().requires_grad_(True), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    found = measure(LossModel(model), windows, before)
    assert abs(found.short_nll - stock.short_nll) > 1e-2
    merged = measure(LossModel(model.merge_and_unload()), windows, before)
    assert found.short_nll == pytest.approx(merged.short_nll, abs=1e-4)
    assert found.long_nll == pytest.approx(merged.long_nll, abs=1e-4)


def test_a_model_in_training_is_left_as_it_was(windows: HeldOut) -> None:
    quiet = model_of("gpt_neox")
    model = model_of("gpt_neox", hidden_dropout=0.5, attention_dropout=0.5).requires_grad_(True).train()
    before = reference(model, windows)
    assert before == reference(quiet, windows)
    assert all(part.training for part in model.modules())
    assert not any(part.training for part in quiet.modules())
    model.get_decoder().layers[1].eval()
    modes = [part.training for part in model.modules()]
    loss_model = LossModel(model)
    state = torch.get_rng_state()
    found = measure(loss_model, windows, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes
    assert loss_model.training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found == measure(LossModel(quiet), windows, before)
    # With dropout left on it would be another number.
    noisy = loss_model(torch.tensor(windows.short[0].ids)[None], torch.tensor(windows.short[0].ids)[None].roll(-1), 1.0)
    assert noisy.loss.requires_grad


def test_a_failed_measurement_gives_the_mode_back(windows: HeldOut) -> None:
    model = tiny(rope_parameters=DYNAMIC).train()
    before = reference(model, windows)
    with pytest.raises(UnsupportedError):
        measure(LossModel(model), windows, before)
    assert model.training


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            # Views of the weights are no memory of a pass.
            if isinstance(one, torch.Tensor) and not function.is_view:
                self.entries = max(self.entries, one.numel())
        return found


def test_no_matrix_of_length_by_vocabulary_exists(windows: HeldOut) -> None:
    model = tiny(vocab_size=4000)
    before = reference(model, windows)
    with Largest() as seen:
        measure(LossModel(model, slice_rows=16), windows, before)
    assert seen.entries < windows.length * 4000 // 4
    with Largest() as control:
        plain_losses(model, windows.long[0].ids)
    assert control.entries == windows.length * 4000


def test_the_package_imports_no_torch() -> None:
    code = "import sys, ctxforge.calibrate.held_out; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
