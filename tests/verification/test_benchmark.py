"""The perplexity benchmark runs, agrees with its peer, and fails when it does not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.verification.tiny import YARN, byte_tokenizer, prose, tiny

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "perplexity.py"


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("perplexity_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    tiny(rope_parameters=YARN).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(prose(600))
    return ["--model", str(tmp_path / "model"), "--text", str(tmp_path / "text.txt"), "--lengths", "64,128,256"]


def test_both_sides_agree(
    bench: ModuleType, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert bench.main([*arguments, "--repeats", "1", "--threads", "1", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["difference"] < 1e-4
    assert figures["mb"]["ours"] > 50
    printed = capsys.readouterr().out
    assert "| one pass |" in printed
    assert "× faster" in printed


def test_a_difference_fails(
    bench: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"ours": [1.0, 2.0, 3.0], "peer": [1.0, 2.0, 3.1]}
    monkeypatch.setattr(bench, "_run", lambda side, _options, _ids: {"seconds": 1.0, "mb": 1.0, "nll": runs[side]})
    assert bench.main([*arguments, "--repeats", "1"]) == 1
    assert "differ" in capsys.readouterr().err
