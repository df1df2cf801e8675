"""A calibrated checkpoint is a checkpoint like any other: vLLM and an older transformers compute what ours does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

import ctxforge
from ctxforge.calibrate.recipes import read_recipe
from ctxforge.calibration import CalibrationOptions, calibrate
from ctxforge.engines.run.worker import ask
from ctxforge.sources import bundled_text
from tests.engines.environments import ROOT, use
from tests.tiny_models import load, logits

pytestmark = pytest.mark.engine

# The bundled model was trained to 512 tokens: what follows is read wrongly by anything but the scaled rotation.
TOKENS = 700
STEPS = 3
# Few rows, and rates at which three steps are better than none.
FEW = (
    "rows.count=4",
    "held_out.windows=1",
    "held_out.short_windows=4",
    "held_out.every=3",
    "optimiser.warmup=1",
    "optimiser.learning_rate=0.004",
    "optimiser.whole_learning_rate=0.004",
)
OLDEST = Path(os.environ.get("CTXFORGE_TRANSFORMERS512_PYTHON", ROOT / ".venv-transformers512/bin/python"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundled model interpolated to four times its length, and that after three steps of `quick`."""
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTXFORGE_CACHE", str(folder / "cache"))
        ctxforge.extend("bundled", method="pi", to="4x", out=folder / "extended")
        found = calibrate(
            folder / "extended",
            folder / "out",
            read_recipe("quick", FEW, steps=STEPS),
            CalibrationOptions(),
        )
    assert found is not None
    assert found.best_step == STEPS
    return folder / "extended", found.out


def logprobs(folder: Path, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of all tokens but the first, by plain transformers in float32."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        table = load(folder)(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
    found: torch.Tensor = torch.log_softmax(table[:-1].double(), -1)[torch.arange(len(ids) - 1), tokens[0, 1:]]
    return found


def test_vllm_computes_what_transformers_does(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    use(monkeypatch, "vllm")
    extended, out = folders
    ids = list(bundled_text().encode()[:TOKENS])
    answer = ask(os.environ["CTXFORGE_ENGINE_VLLM_PYTHON"], "run_vllm", {"folder": str(out), "ids": ids}, seconds=1500)
    theirs = torch.tensor([answer.logprobs[place] for place in range(1, len(ids))], dtype=torch.float64)
    ours, before = logprobs(out, ids), logprobs(extended, ids)
    found, control = float((theirs - ours).abs().max()), float((theirs - before).abs().max())
    record_property("largest difference", found)
    record_property("from the checkpoint before", control)
    assert answer.facts["max_model_len"] == 8192  # 4 times what vLLM takes for the original length
    assert found < 2e-3
    assert control > 0.2


def test_an_older_transformers_computes_the_same(folders: tuple[Path, Path], tmp_path: Path) -> None:
    if not OLDEST.exists():
        pytest.skip(f"{OLDEST} does not exist: run make engines, or name it in CTXFORGE_TRANSFORMERS512_PYTHON")
    extended, out = folders
    worker, results = Path(__file__).with_name("logits_worker.py"), tmp_path / "logits.pt"
    ran = subprocess.run(
        [OLDEST, worker, results, str(TOKENS), extended, out], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout)["transformers"].startswith("5.12.")
    theirs = torch.load(results, weights_only=True)
    differences = {}
    for folder in (extended, out):
        ours = logits(load(folder), TOKENS)
        differences[folder] = float((theirs[str(folder)] - ours).abs().max() / ours.abs().max())
    assert max(differences.values()) < 1e-5
    assert float((theirs[str(extended)] - theirs[str(out)]).abs().max()) > 0.1
