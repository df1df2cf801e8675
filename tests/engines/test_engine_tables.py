"""The emulated readers against the engines' own code: every table that it builds, pair by pair."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ctxforge.engines.context import make_context
from ctxforge.engines.registry import find_engines
from ctxforge.engines.run import RUNNERS
from ctxforge.engines.run.discover import python_for
from ctxforge.errors import CtxforgeError
from tests.engines.environments import use
from tests.engines.test_engine_rules import EXACT_LISTS, FORMS, LLAMA3, YARN, changed, emit

WORKER = Path(__file__).with_name("tables_worker.py")
CONFIGS: dict[str, Any] = {
    **{form: config for form, (config, _letters) in FORMS.items()},
    "plain": LLAMA3,
    "two lists": changed(emit("mrrope-pro"), short_factor=[1.0] * 64),
    "two lists, two temperatures": changed(EXACT_LISTS, short_mscale=1.1, long_mscale=1.2),
    "other betas": changed(YARN, beta_fast=16.0, beta_slow=2.0),
    "one mscale": changed(YARN, mscale=0.5),
    "a type that nobody has": {
        **LLAMA3,
        "rope_scaling": {"rope_type": "ntk-by-parts", "factor": 2.0},
    },
    "dynamic, factor 4": {**LLAMA3, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "proportional": {
        **LLAMA3,
        "rope_parameters": {
            "rope_type": "proportional",
            "rope_theta": 5e5,
            "partial_rotary_factor": 0.5,
            "factor": 2.0,
        },
        "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
    },
}
ENGINES = {
    "transformers": ("transformers 5", "transformers"),
    "transformers-4": ("transformers 4.55", "transformers"),
    "vllm": ("vllm 0.30", "vllm"),
    "mlx-lm": ("mlx-lm", "mlx-lm"),
}
# Every table in transformers starts out for a short text; dynamic ones and two lists change while it runs.
STARTS_SHORT = ("two lists",)


@pytest.mark.engine
@pytest.mark.parametrize("engine", ENGINES)
def test_tables_of_the_engines_own_code(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, engine)
    python = python_for(RUNNERS[engine])
    assert python is not None
    row, worker = ENGINES[engine]
    told = _ask(python, worker)
    read = find_engines((row,))[0].read
    compared = 0
    for name, config in CONFIGS.items():
        try:
            context = make_context(config)
        except CtxforgeError:
            continue  # it means nothing
        if engine.startswith("transformers") and name in STARTS_SHORT:
            continue
        reading, found = read(context), told[name]
        assert (reading.refusal is not None) == ("error" in found), (name, reading.refusal, found)
        if reading.refusal is not None:
            continue
        table = reading.tables[None]
        assert found["temperature"] == pytest.approx(table.temperature, abs=1e-5), name
        assert found["frequencies"] == pytest.approx(table.frequencies, rel=2e-4, abs=1e-9), name
        compared += 1
    assert compared >= 18
    if engine == "vllm":
        # The rules of its older versions must not pass for those of this one.
        older = find_engines(("vllm 0.24",))[0].read(make_context(CONFIGS["yarn + attention_factor"])).tables[None]
        assert abs(older.temperature - told["yarn + attention_factor"]["temperature"]) > 0.05
        # Its "dynamic" ends where the trained length does.
        assert told["dynamic, factor 4"]["positions"] == 8192


def _ask(python: str, worker: str) -> dict[str, Any]:
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [python, WORKER],
        input=json.dumps({"engine": worker, "configs": CONFIGS}),
        capture_output=True,
        text=True,
        env={**os.environ, **quiet},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
