"""A Hub id from the command line, against a server on loopback: headers to plan, weights only to convert."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxforge.sources import bundled_model
from tests.checkpoint.loopback_hub import SHA, LoopbackHub

NAME = "org/bundled"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub({NAME: bundled_model()}).running() as running:
        yield running


def run(hub: LoopbackHub, home: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    command = [sys.executable, "-m", "ctxforge", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_plan_reads_headers_and_extend_downloads_the_pinned_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = (bundled_model() / "model.safetensors").stat().st_size
    planned = run(hub, tmp_path, "plan", f"{NAME}@main", "-m", "ntk-by-parts", "--to", "4x", "--json")
    assert planned.returncode == 0, planned.stderr
    document = json.loads(planned.stdout)
    assert len(document["plan"]["tensors_edited"]) == 5
    assert document["bytes"]["to_download"] >= weights
    assert sum(hub.served.values()) < weights / 20
    out = tmp_path / "out"
    done = run(hub, tmp_path, "extend", f"{NAME}@main", "-m", "ntk-by-parts", "--to", "4x", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "ctxforge.json").read_text())
    assert record["source"]["revision"] == SHA
    assert (out / "model.safetensors").stat().st_size == weights
    assert not (out / "model.safetensors").is_symlink()
    checked = run(hub, tmp_path, "check", out)
    assert checked.returncode == 0, checked.stdout
    # Offline, the cache is enough.
    again = run(hub, tmp_path, "extend", NAME, "-m", "yarn", "--to", "4x", "-o", tmp_path / "two", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("source", "environment", "words"),
    [
        ("org/absent", {}, "org/absent"),
        (NAME, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Hub"),
        (NAME, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ("org/gated", {}, "gated"),
    ],
)
def test_hub_failures_are_two_lines_and_exit_code_4(
    hub: LoopbackHub, tmp_path: Path, source: str, environment: dict[str, str], words: str
) -> None:
    hub.models["org/gated"] = bundled_model()
    hub.gated.add("org/gated")
    done = run(hub, tmp_path, "extend", source, "-m", "yarn", "--to", "4x", "-o", tmp_path / "out", **environment)
    assert done.returncode == 4, done.stderr
    lines = done.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["Error", "Hint"]
    assert words in done.stderr
    assert not (tmp_path / "out").exists()
