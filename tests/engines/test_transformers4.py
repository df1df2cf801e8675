"""The same emitted folder gives the same logits under transformers 4.57 as under the newest.

Needs a second environment: `make test-engine` makes it; CTXFORGE_TRANSFORMERS4_PYTHON names its Python.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

import ctxforge
from tests.tiny_models import TINY, TRAINED, load, logits, save_tiny

pytestmark = pytest.mark.engine

PYTHON = Path(os.environ.get("CTXFORGE_TRANSFORMERS4_PYTHON", ".venv-transformers4/bin/python"))
LENGTH = 160
CONVERSIONS = [
    ("yarn", {}),
    ("yarn", {"temperature": 1.2}),
    ("ntk", {}),
    ("pi", {}),
    ("llama3", {}),
    ("ntk-by-parts", {"parameters": {"truncate": False}}),
]


def test_same_logits_under_both_majors(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} does not exist: run make test-engine")
    folders: dict[str, Path] = {}
    refused = []
    for kind in TINY:
        source = save_tiny(kind, tmp_path / kind / "source")
        for method, options in CONVERSIONS:
            name = f"{kind} {method} {options}"
            done = ctxforge.extend(
                source,
                method=method,
                to=4 * TRAINED,
                out=tmp_path / kind / f"out{len(folders)}-{len(refused)}",
                **options,
            )
            if any("transformers 4.x refuses" in note for note in done.conversion.lowered.notes):
                refused.append((kind, done.out))
            else:
                folders[name] = done.out
        if kind in {refused_kind for refused_kind, _ in refused}:
            continue
        twice = ctxforge.extend(
            folders[f"{kind} yarn {{}}"], method="ntk", to=8 * TRAINED, out=tmp_path / kind / "twice"
        )
        folders[f"{kind} yarn then ntk"] = twice.out
    # A control: the same folder with its legacy keys removed is misread by 4.x, so the comparison can see a difference.
    control = ctxforge.extend(
        tmp_path / "llama" / "source", method="yarn", to=4 * TRAINED, out=tmp_path / "control"
    ).out
    config = json.loads((control / "config.json").read_text())
    for key in ("rope_scaling", "rope_theta"):
        del config[key]
    (control / "config.json").write_text(json.dumps(config))
    folders["control"] = control
    worker = Path(__file__).with_name("logits_worker.py")
    results = tmp_path / "logits.pt"
    ran = subprocess.run(
        [PYTHON, worker, results, str(LENGTH), *folders.values()], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout)["transformers"].startswith("4.")
    assert {kind for kind, _ in refused} == {"olmo2"}
    loud = subprocess.run(
        [PYTHON, worker, tmp_path / "none.pt", "8", refused[0][1]], capture_output=True, text=True, check=False
    )
    assert loud.returncode != 0
    assert "rope_scaling" in loud.stderr
    theirs = torch.load(results, weights_only=True)
    differences = {}
    for name, folder in folders.items():
        ours = logits(load(folder), LENGTH)
        differences[name] = float((theirs[str(folder)] - ours).abs().max() / ours.abs().max())
    control_difference = differences.pop("control")
    wrong = {name: value for name, value in differences.items() if value > 1e-5}
    assert not wrong
    assert control_difference > 1e-3
