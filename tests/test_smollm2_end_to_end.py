"""The whole line on real weights: GGUF in, `extend`, plain transformers out, and `verify` printing the same numbers.

Six minutes on two cores: `pytest -m real_model tests/test_smollm2_end_to_end.py`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import assets

pytestmark = pytest.mark.real_model

TARGET = 16384
YARN_BUCKETS = (29.64, 22.15, 22.40, 32.83, 32.23, 23.27, 22.94, 30.64)


def ctxforge(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "ctxforge", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    return ran.stdout


def plain_losses(folder: Path, text: str) -> torch.Tensor:
    """Loss of each predicted token, with nothing but transformers; the head in slices to bound memory."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"][:, :TARGET]
    with torch.no_grad():
        hidden = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state[0]
        parts = [
            torch.nn.functional.cross_entropy(
                model.lm_head(hidden[start : min(start + 512, TARGET - 1)]),
                ids[0, start + 1 : min(start + 512, TARGET - 1) + 1],
                reduction="none",
            )
            for start in range(0, TARGET - 1, 512)
        ]
    return torch.cat(parts)


def test_yarn_to_16k_from_gguf(tmp_path: Path) -> None:
    out = tmp_path / "smollm2-16k"
    ctxforge("extend", assets.smollm2_gguf(), "--method", "yarn", "--to", "16k", "--out", out)
    assert json.loads(ctxforge("check", out, "--json"))["status"] == "ok"
    text = assets.emma_text()
    losses = plain_losses(out, text)
    assert math.exp(losses.mean()) == pytest.approx(26.65, rel=0.005)
    for number, expected in enumerate(YARN_BUCKETS):
        assert math.exp(losses[2048 * number : 2048 * (number + 1)].mean()) == pytest.approx(expected, rel=0.005)
    book = tmp_path / "emma.txt"
    book.write_text(text, encoding="utf-8")
    # 3: without a source folder to compare with, the gate on short text can't be decided.
    # float32 as the losses above: by itself verify takes bfloat16 at this length where the processor has it.
    arguments = ("verify", out, "--text", book, "--no-retrieval", "--device", "cpu", "--dtype", "float32", "--json")
    report = json.loads(ctxforge(*arguments, code=3))["report"]
    printed = report["result"]["lengths"][-1]
    assert printed["length"] == TARGET
    assert printed["nll"] == pytest.approx(float(losses.double().mean()), abs=1e-4)
