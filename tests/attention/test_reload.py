"""Emitted checkpoints where ctxforge is not: the folder alone, another process, another transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.attention.battery import TESTED
from tests.modeling.emitted import remote, tokens, whole

Folders = Callable[..., Path]
KINDS = ("llama", "gpt_neox")
OLDEST = Path(
    os.environ.get("CTXFORGE_TRANSFORMERS512_PYTHON", Path(__file__).parents[2] / ".venv-transformers512/bin/python")
)
NEW = 40

_PROGRAM = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ctxforge":
            raise ImportError("ctxforge is not installed here")
sys.meta_path.insert(0, Refuse())
import torch, transformers
from transformers import AutoModelForCausalLM
ids = torch.tensor(json.loads(sys.argv[2]))
for folder in json.loads(sys.argv[1]):
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        refused = False
    except ValueError as error:
        refused = "trust_remote_code" in str(error)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    options = {"max_new_tokens": int(sys.argv[3]), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    new = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
    print(json.dumps({"refused": refused, "logits": logits.tolist(), "new": new.tolist(),
                      "transformers": transformers.__version__, "ctxforge": "ctxforge" in sys.modules}))
"""


@pytest.fixture(params=["newest", pytest.param("5.12", marks=pytest.mark.engine)])
def python(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A Python and the version of its transformers; skips where the environment of 5.12 was not made."""
    if request.param == "newest":
        import transformers

        return sys.executable, transformers.__version__
    if not OLDEST.exists():
        pytest.skip(f"{OLDEST} does not exist: run make engines, or name it in CTXFORGE_TRANSFORMERS512_PYTHON")
    return str(OLDEST), "5.12."


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_alone_gives_the_same(python: tuple[str, str], kind: str, emitted: Folders, tmp_path: Path) -> None:
    """Every system in one process: also none may disturb another."""
    program, version = python
    ids, copies = tokens(2, 100), []
    for name in TESTED:
        copies.append(Path(shutil.copytree(emitted(name, kind), tmp_path / name.replace(" ", "-"))))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    arguments = [json.dumps([*map(str, copies)]), json.dumps(ids.tolist()), str(NEW)]
    ran = subprocess.run(
        [program, "-I", "-c", _PROGRAM, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert len(said) == len(TESTED)
    for name, found in zip(TESTED, said, strict=True):
        assert found["transformers"].startswith(version)
        assert not found["ctxforge"]
        assert found["refused"], name
        model = remote(emitted(name, kind))
        wanted = whole(model, ids)
        assert torch.tensor(found["logits"]).sub(wanted).abs().max() < 1e-5 * wanted.abs().max(), name
        options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        new = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
        assert found["new"] == new.tolist(), name
