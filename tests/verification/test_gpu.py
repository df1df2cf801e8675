"""On a GPU the same measures come out as on the CPU. Run with `make test-gpu`."""

from __future__ import annotations

import pytest
import torch

from ctxforge.sources import bundled_model, bundled_text
from ctxforge.verification import VerifySettings, evaluate_model
from ctxforge.verification.load import load_model, load_tokenizer

pytestmark = pytest.mark.gpu


def test_measures_equal_the_cpus() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = {}
    for device in ("cpu", "cuda"):
        settings = VerifySettings(device=device, seeds=1, needles=4)
        found[device] = evaluate_model(
            load_model(bundled_model(), settings, device),
            load_tokenizer(bundled_model(), settings),
            text=bundled_text(),
            trained_length=512,
            target_length=1024,
            settings=settings,
        )
    for here, there in zip(found["cpu"].lengths, found["cuda"].lengths, strict=True):
        assert there.nll == pytest.approx(here.nll, abs=1e-3)
    for here_cell, there_cell in zip(found["cpu"].retrieval, found["cuda"].retrieval, strict=True):
        assert there_cell.nll == pytest.approx(here_cell.nll, abs=1e-2)
