"""`ctxforge engines`: the table, the document, exit codes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ctxforge

KEYS = {"engine", "versions", "verdict", "detail", "flags", "serve_command", "source", "evidence"}


def ctxforge_engines(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ctxforge", "engines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose factor lists llama.cpp's converter loses."""
    out = tmp_path_factory.mktemp("engines") / "mr"
    ctxforge.extend("bundled", method="mrrope-pro", to="4x", out=out)
    return out


def document(*arguments: str | Path) -> dict[str, Any]:
    done = ctxforge_engines(*arguments, "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_table_names_every_engine_and_its_command(lists: Path) -> None:
    done = ctxforge_engines(lists)
    assert done.returncode == 0, done.stderr
    for name in ("transformers", "vllm", "sglang", "llama.cpp", "tgi", "mlx-lm", "exllamav3"):
        assert name in done.stdout
    assert f"vllm serve {lists} --max-model-len 2048" in done.stdout
    assert "ctxforge gguf mr.gguf" in done.stdout


def test_the_document(lists: Path) -> None:
    found = document(lists)
    assert (found["schema_version"], found["command"], found["status"]) == (1, "engines", "ok")
    assert found["silently_wrong"] == ["llama.cpp November 2026"]
    assert all(set(row) == KEYS for row in found["engines"])
    assert "runs" not in found


def test_strict_fails_where_an_engine_is_silently_wrong(lists: Path) -> None:
    assert ctxforge_engines(lists, "--strict").returncode == 1
    assert ctxforge_engines(lists, "--strict", "--engine", "vllm", "--engine", "mlx").returncode == 0
    assert ctxforge_engines("bundled", "--strict").returncode == 0
    assert document(lists, "--strict")["status"] == "failed"


def test_errors_are_two_lines(tmp_path: Path) -> None:
    for arguments in (("bundled", "--engine", "tensorrt"), (tmp_path,), (tmp_path / "absent",)):
        done = ctxforge_engines(*arguments)
        assert done.returncode in (2, 3, 4), done.stderr
        assert done.stderr.startswith("Error: ")
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2


def test_running_needs_a_runnable_engine() -> None:
    done = ctxforge_engines("bundled", "--run", "--engine", "tgi")
    assert done.returncode == 2
    assert "can be run here" in done.stderr


def test_it_starts_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['ctxforge', 'engines', 'bundled', '--json']\n"
        "from ctxforge.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'huggingface_hub') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"
