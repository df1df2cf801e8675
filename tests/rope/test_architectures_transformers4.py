"""Converted configs as transformers 4.57 itself reads them: the same tables as planned, or a loud refusal."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctxforge.errors import UnsupportedError
from ctxforge.rope import find_method, lower, make_plan, read_rotations, understand
from ctxforge.rope.architectures import ARCHITECTURES
from ctxforge.rope.reader import legacy_refusal
from tests.architectures import tiny

pytestmark = pytest.mark.engine

PYTHON = Path(os.environ.get("CTXFORGE_TRANSFORMERS4_PYTHON", ".venv-transformers4/bin/python"))
METHODS = ("yarn", "ntk", "pi")
# 4.57 builds these from layer types under other names, or only with packages for images.
NOT_BUILT = {"gemma3n", "granitemoehybrid", "zamba2", "emu3", "mllama", "falcon"}


class AnyTensors(dict[str, Any]):
    """A tensor index that has every tensor, as large as anyone asks."""

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ARG002
        return self[key]

    def __missing__(self, key: str) -> Any:
        if key.endswith((".bias", ".base_layer.weight")):
            return None
        return SimpleNamespace(dtype="F32", shape=(2**16, 1))

    def __contains__(self, key: object) -> bool:
        return self[str(key)] is not None


def test_the_older_major_computes_the_same_tables() -> None:
    configs, expected = {}, {}
    for model_type in tiny.TYPES:
        row = ARCHITECTURES.get(model_type)
        if row is None or row.legacy != "reads" or model_type in NOT_BUILT:
            continue
        source = json.loads(json.dumps(tiny.tiny_config(model_type).to_dict(), default=str))
        geometry = understand(source)
        for method in METHODS:
            try:
                plan = make_plan(geometry, find_method(method), 4 * (geometry.trained_length or 0))
                written = lower(plan, geometry, source, AnyTensors()).config
            except UnsupportedError:
                continue
            inner = written
            for key in geometry.config_path:
                inner = inner[key]
            name = f"{model_type} {method}"
            configs[name] = written
            refused = legacy_refusal(inner, geometry.model_type)
            expected[name] = None if refused else read_rotations(inner, geometry.model_type, "transformers 4")
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("rotations_transformers4.py")],
        input=json.dumps(configs),
        capture_output=True,
        text=True,
        check=True,
    )
    read = json.loads(done.stdout.splitlines()[-1])
    wrong = []
    for name, tables in expected.items():
        row = ARCHITECTURES[name.split()[0]]
        if tables is None:
            if not isinstance(read[name], str):
                wrong.append(f"{name}: read, said to be refused")
        elif isinstance(read[name], str):
            wrong.append(f"{name}: {read[name]:.120}")
        else:
            planned = [(table.frequencies, table.rotation.temperature) for table in tables.values()]
            wrong += [f"{name}: {found}" for found in read[name] if not any(_same(found, *p, row) for p in planned)]
            wrong += [
                f"{name}: no such table" for p in planned if not any(_same(found, *p, row) for found in read[name])
            ]
    assert wrong == []
    assert sum(tables is not None for tables in expected.values()) > 140


def _same(found: dict[str, Any], frequencies: tuple[float, ...], temperature: float, row: Any) -> bool:
    if len(found["frequencies"]) != len(frequencies):
        return False
    close = all(
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-11) for a, b in zip(found["frequencies"], frequencies, strict=True)
    )
    return close and (row.norm_after_rotation or math.isclose(found["temperature"], temperature, rel_tol=1e-6))
