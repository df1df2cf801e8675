"""Nothing computes another function without a word: every way around the code is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, StaticCache

from tests.modeling.emitted import SLOPES, Case, remote, tokens, whole

Folders = Callable[[Any], Path]
CASES = (Case("llama", "xpos"), Case("qwen3", "dynamic-yarn"), SLOPES[0], SLOPES[2], SLOPES[4])
every = pytest.mark.parametrize("case", CASES, ids=str)
STOCK = {"llama": "Llama", "qwen3": "Qwen3", "bloom": "Bloom", "mpt": "Mpt", "falcon": "Falcon"}


@every
def test_without_trust_nothing_loads(case: Case, converted: Folders) -> None:
    folder = converted(case)
    remote(folder)  # in a process that has imported the code already, too
    for auto in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="trust_remote_code"):
            auto.from_pretrained(folder, trust_remote_code=False)


@every
def test_the_stock_class_refuses_our_attention(case: Case, converted: Folders) -> None:
    """Named outright, it loads in a process that knows our attention; it must not run."""
    folder = converted(case)
    remote(folder)
    model = getattr(transformers, f"{STOCK[case.kind]}ForCausalLM").from_pretrained(folder)
    with pytest.raises(RuntimeError, match="trust_remote_code=True"):
        model(input_ids=tokens(1, 8))


_STOCK_LOADS = """
import json, sys, transformers
for name, folder in json.loads(sys.argv[1]):
    try:
        getattr(transformers, name).from_pretrained(folder)
    except ValueError as error:
        print(error)
"""


def test_the_stock_class_does_not_load_in_a_fresh_process(converted: Folders) -> None:
    wanted = [(f"{STOCK[case.kind]}ForCausalLM", str(converted(case))) for case in CASES]
    command = [sys.executable, "-I", "-c", _STOCK_LOADS, json.dumps(wanted)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    refusals = ran.stdout.splitlines()
    assert len(refusals) == len(CASES)
    assert all('attn_implementation="ctxforge_' in line and "not supported" in line for line in refusals[:2])
    assert all("ctxforge_alibi" in line for line in refusals[2:])


@every
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "vllm"])
def test_another_attention_is_refused(case: Case, converted: Folders, implementation: str) -> None:
    folder = converted(case)
    with pytest.raises((RuntimeError, ValueError)):
        remote(folder, attn_implementation=implementation)
    model = remote(folder)
    with pytest.raises(RuntimeError, match="would replace"):
        model.set_attn_implementation(implementation)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config._attn_implementation = implementation  # as serving engines do before they build the model
    for auto in (AutoModel, AutoModelForCausalLM):
        with pytest.raises(RuntimeError, match="would replace"):
            auto.from_config(config, trust_remote_code=True)
    model.config._attn_implementation = implementation
    with pytest.raises(RuntimeError, match="would replace"):
        model(input_ids=tokens(1, 8))


@every
def test_static_caches_and_attention_weights_are_refused(case: Case, converted: Folders) -> None:
    model, ids = remote(converted(case)), tokens(1, 8)
    with pytest.raises(NotImplementedError, match="dynamic cache only"):
        model(input_ids=ids, use_cache=True, cache=StaticCache(config=model.config, max_cache_len=32))
    with pytest.raises((NotImplementedError, ValueError)):
        model(input_ids=ids, output_attentions=True)


def test_a_cache_filled_elsewhere_is_refused(converted: Folders) -> None:
    model = remote(converted(CASES[0]))
    cache = transformers.DynamicCache(config=model.config)
    for layer in range(3):
        cache.update(torch.zeros(1, 2, 5, 16), torch.zeros(1, 2, 5, 16), layer)
    with pytest.raises(RuntimeError, match="filled itself"):
        model(input_ids=tokens(1, 8), use_cache=True, cache=cache)


@every
def test_a_config_without_its_entry_is_refused(case: Case, converted: Folders, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(converted(case), trust_remote_code=True)
    del config.ctxforge
    with pytest.raises(RuntimeError, match="`ctxforge` entry"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=True)


_FRESH = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ctxforge":
            raise ImportError("ctxforge is not installed here")
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModel, AutoModelForCausalLM
ids = torch.tensor(json.loads(sys.argv[2]))
mask = torch.ones_like(ids)
for folder in json.loads(sys.argv[1]):
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        refused = False
    except ValueError as error:
        refused = "trust_remote_code" in str(error)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32).eval()
    base = AutoModel.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        hidden = model.get_output_embeddings()(base(input_ids=ids).last_hidden_state)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    new = model.generate(ids, attention_mask=mask, **options)
    print(json.dumps({"refused": refused, "logits": logits[0, -1].tolist(), "base": hidden[0, -1].tolist(),
                      "new": new[0].tolist()}))
"""
TRANSFORMERS_4 = Path(__file__).parents[2] / ".venv-transformers4" / "bin" / "python"


@pytest.mark.parametrize(
    "python", [sys.executable, pytest.param(str(TRANSFORMERS_4), marks=pytest.mark.engine, id="transformers 4.57")]
)
def test_checkpoints_run_where_ctxforge_is_not(python: str, converted: Folders, tmp_path: Path) -> None:
    """A new process, elsewhere; without trust it refuses, with it the logits and the generated tokens are the same."""
    if not Path(python).exists():
        pytest.skip(f"no {python}")
    folders, ids = [converted(case) for case in CASES], tokens(1, 100)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [python, "-I", "-c", _FRESH, json.dumps([*map(str, folders)]), json.dumps(ids.tolist())]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert len(said) == len(folders)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for folder, found in zip(folders, said, strict=True):
        model = remote(folder)
        wanted = whole(model, ids)[0, -1]
        assert found["refused"]
        for key in ("logits", "base"):
            assert torch.tensor(found[key]).sub(wanted).abs().max() < 1e-5 * wanted.abs().max()
        new = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert found["new"] == new[0].tolist()


_ENGINES = {
    "vllm": """
import os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
from vllm import LLM
if __name__ == "__main__":
    for trust in (False, True):
        try:
            LLM(sys.argv[1], trust_remote_code=trust, skip_tokenizer_init=True, max_model_len=64, enforce_eager=True)
            print("LOADED")
        except Exception as error:
            print("REFUSED", " ".join(str(error).split()))
""",
    "mlx": """
import sys
from pathlib import Path
from mlx_lm.utils import load_model
try:
    load_model(Path(sys.argv[1]))
    print("LOADED")
except Exception as error:
    print("REFUSED", " ".join(str(error).split()))
""",
}
_REFUSALS = {"vllm": ["trust_remote_code=True", "attn_implementation='vllm' would replace"], "mlx": ["not supported"]}


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["vllm", "mlx"])
def test_engines_refuse_what_they_cannot_compute(engine: str, converted: Folders, tmp_path: Path) -> None:
    """vLLM even when it is told to trust the code: it would put its own attention in place of ours."""
    python = Path(__file__).parents[2] / f".venv-{engine}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {python}")
    program = tmp_path / "load.py"
    program.write_text(_ENGINES[engine])
    ran = subprocess.run([str(python), str(program), str(converted(CASES[0]))], capture_output=True, text=True)
    said = [line for line in ran.stdout.splitlines() if line.startswith(("LOADED", "REFUSED"))]
    assert len(said) == len(_REFUSALS[engine]), ran.stderr[-2000:]
    for line, wanted in zip(said, _REFUSALS[engine], strict=True):
        assert line.startswith("REFUSED")
        assert wanted in line
