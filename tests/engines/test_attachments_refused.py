"""vLLM refuses every checkpoint with an attention system, whether or not it is told to trust the code.

It would put its own attention in place of ours, and compute another model without a word.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ctxforge.engines.run import RUNNERS
from tests.attention.battery import ROWS, TESTED, attach
from tests.engines.environments import use
from tests.modeling.emitted import save_stock

pytestmark = pytest.mark.engine

_PROGRAM = """
import json, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
from vllm import LLM
if __name__ == "__main__":
    for folder in json.loads(sys.argv[1]):
        for trust in (False, True):
            try:
                LLM(folder, trust_remote_code=trust, skip_tokenizer_init=True, max_model_len=64, enforce_eager=True)
                print("LOADED")
            except Exception as error:
                print("REFUSED", " ".join(str(error).split()))
"""


def test_vllm_refuses_every_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, "vllm")
    source = save_stock("llama", tmp_path / "stock")
    folders = [attach(source, name, ROWS[name].settings, tmp_path / name) for name in TESTED]
    program = tmp_path / "load.py"
    program.write_text(_PROGRAM)
    ran = subprocess.run(
        [os.environ[RUNNERS["vllm"].variable], str(program), json.dumps([*map(str, folders)])],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in ran.stdout.splitlines() if line.startswith(("LOADED", "REFUSED"))]
    assert len(said) == 2 * len(folders), ran.stderr[-2000:]
    for name, untrusted, trusted in zip(TESTED, said[::2], said[1::2], strict=True):
        assert untrusted.startswith("REFUSED"), name
        assert "trust_remote_code=True" in untrusted, name
        assert trusted.startswith("REFUSED"), name
        assert "attn_implementation='vllm' would replace" in trusted, name
