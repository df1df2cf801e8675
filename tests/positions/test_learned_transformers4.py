"""The same emitted folders give the same logits under transformers 4.57, stored causal masks included."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

import ctxforge
from tests.positions.learned_models import KINDS, TRAINED, ids, load, logits, save
from tests.positions.test_learned_models import MASKS, add_masks

pytestmark = pytest.mark.engine

PYTHON = Path(os.environ.get("CTXFORGE_TRANSFORMERS4_PYTHON", ".venv-transformers4/bin/python"))
WORKER = Path(__file__).parents[1] / "engines" / "logits_worker.py"
LENGTH = 2 * TRAINED


def test_same_logits_under_both_majors(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} does not exist: run make test-engine")
    folders: dict[str, Path] = {}
    for kind in KINDS:
        source = save(kind, tmp_path / kind / "source")
        if kind in MASKS:
            add_masks(source, kind)
        folders[kind] = ctxforge.extend(
            source, method="learned-interpolation", to=LENGTH, out=tmp_path / kind / "out"
        ).out
    results = tmp_path / "logits.pt"
    ran = subprocess.run(
        [PYTHON, WORKER, results, str(LENGTH), *folders.values()], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout)["transformers"].startswith("4.")
    theirs = torch.load(results, weights_only=True)
    for kind, folder in folders.items():
        ours = logits(load(folder), ids(LENGTH))
        assert (theirs[str(folder)] - ours).abs().max() < 1e-5 * ours.abs().max(), kind
