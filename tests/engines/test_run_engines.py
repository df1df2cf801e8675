"""Each engine computes what was planned, on real text past the trained length; and traps are seen where they are set.

`make engines` creates the environments; an engine that is missing skips its tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ctxforge
from ctxforge.engines.run import RUNNERS, RunResult, run_engines
from ctxforge.engines.run.convert import convert_to_gguf
from ctxforge.engines.run.worker import ask
from ctxforge.gguf_rope import patch_gguf
from tests.engines.environments import use

pytestmark = pytest.mark.engine

# The bundled model was trained to 512 tokens: what follows is read wrongly by anything but the scaled rotation.
TOKENS = 700
BUNDLED = Path(ctxforge.__file__).parent / "bundled" / "model"
EMITTED: dict[str, tuple[str, dict[str, Any]]] = {
    "theta": ("ntk", {}),
    "linear": ("pi", {}),
    "yarn": ("yarn", {}),
    "yarn folded": ("yarn", {"temperature": 1.0}),
    "llama3": ("llama3", {}),
    "longrope folded": ("mrrope-pro", {}),
}
NOT_IN_GGUF = ("longrope folded",)


def convert(folder: Path, method: str, edit: Callable[[dict[str, Any]], None] | None = None, **options: Any) -> Path:
    ctxforge.extend("bundled", method=method, to="4x", out=folder, **options)
    if edit is not None:
        config = json.loads((folder / "config.json").read_text())
        edit(config)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(engine: str, folder: Path, **options: Any) -> RunResult:
    [result] = run_engines(folder, (engine,), tokens=TOKENS, **options)
    # A misread config would differ by a hundred tolerances or more, so that an agreement means something.
    assert result.control_difference is None or result.control_difference > 0.2
    return result


@pytest.mark.parametrize("form", EMITTED)
@pytest.mark.parametrize("engine", RUNNERS)
def test_an_engine_computes_the_plan(engine: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, engine)
    if engine == "vllm" and form not in ("linear", "longrope folded"):
        pytest.skip("vLLM takes half a minute to start: two forms here, all of them in benchmarks/engines.py")
    method, options = EMITTED[form]
    result = run(engine, convert(tmp_path / "model", method, **options))
    if engine == "llama.cpp" and form in NOT_IN_GGUF:
        assert result.status == "differs", result
        assert "the scaling ignored" in result.detail
        return
    assert result.status == "agrees", result
    assert result.max_difference is not None
    assert result.max_difference < 2e-3
    if engine == "vllm":
        assert result.served_length == (8192 if form == "linear" else 2048)


def new_keys_only(config: dict[str, Any]) -> None:
    del config["rope_scaling"], config["rope_theta"]


def attention_factor(config: dict[str, Any]) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        config[key]["attention_factor"] = 1.0


@pytest.mark.parametrize(
    ("engine", "edit", "says"),
    [
        ("transformers-4", new_keys_only, "the scaling ignored"),
        ("mlx-lm", new_keys_only, "the scaling ignored"),
        ("mlx-lm", attention_factor, "yarn's default temperature"),
        ("llama.cpp", attention_factor, "yarn's default temperature"),
    ],
)
def test_a_trap_is_seen(
    engine: str,
    edit: Callable[[dict[str, Any]], None],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, engine)
    result = run(engine, convert(tmp_path / "model", "yarn", edit))
    assert result.status == "differs", result
    assert says in result.detail


def test_vllm_chooses_between_two_lists_by_the_served_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why lists are emitted equal: a server started at the original length uses the short one, at any length."""
    use(monkeypatch, "vllm")

    def two_lists(config: dict[str, Any]) -> None:
        for key in ("rope_scaling", "rope_parameters"):
            config[key]["short_factor"] = [1.0] * len(config[key]["long_factor"])

    folder = convert(tmp_path / "model", "mrrope-pro", two_lists)
    request = {"folder": str(folder), "ids": list((BUNDLED.parent / "text.txt").read_bytes()[:400])}
    short, whole = (
        ask(os.environ["CTXFORGE_ENGINE_VLLM_PYTHON"], "run_vllm", {**request, "max_model_len": length}, seconds=600)
        for length in (512, None)
    )
    assert short.facts["max_model_len"] == 512
    assert whole.facts["max_model_len"] == 2048
    assert max(abs(short.logprobs[k] - whole.logprobs[k]) for k in short.logprobs) > 0.2


@pytest.mark.parametrize(
    ("method", "options"),
    [("mrrope-pro", {}), ("mrrope-pro", {"portability": "exact"}), ("drope", {}), ("ntk", {}), ("llama3", {})],
)
def test_a_patched_gguf_computes_the_plan(
    method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ctxforge gguf`, lists and temperature, against a stock conversion that loses both."""
    use(monkeypatch, "llama.cpp")
    folder = convert(tmp_path / "model", method, **options)
    converted, patched = tmp_path / "a.gguf", tmp_path / "b.gguf"
    assert convert_to_gguf(folder, converted)
    patch_gguf(converted, folder, patched)
    after = run("llama.cpp", folder, gguf=patched)
    assert after.status == "agrees", after
    if method in ("mrrope-pro", "drope"):
        assert run("llama.cpp", folder, gguf=converted).status == "differs"
