"""`ctxforge check` in CI: faults at their lines, documents, exit codes, what can't be read, changed files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import ctxforge
from ctxforge.static_checks.rules import RULES
from tests.checkpoint import builders
from tests.llama_folder import write_folder

Run = Callable[..., Any]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models repository as the working folder: `good`, and what a test breaks."""
    monkeypatch.chdir(tmp_path)
    source = write_folder(tmp_path / "source")
    (tmp_path / "models").mkdir()
    ctxforge.extend(source, method="yarn", to="16k", out="models/good")
    shutil.rmtree(source)
    return tmp_path / "models"


def change(folder: Path, name: str = "config.json", **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2))


def line_of(path: Path, words: str) -> int:
    """The line of the first occurrence, counted by hand."""
    return next(number for number, text in enumerate(path.read_text().splitlines(), 1) if words in text)


def test_faults_stand_at_their_lines(cli: Run, models: Path) -> None:
    shutil.copytree(models / "good", models / "bad")
    scaling = json.loads((models / "bad" / "config.json").read_text())["rope_scaling"]
    change(
        models / "bad",
        max_position_embeddings=32768.0,
        rope_scaling={**scaling, "original_max_position_embeddings": 4096.0},
    )
    done = cli("check", "models/bad", "--json")
    assert done.code == 1
    checks = {check["name"]: check for check in done.document["checkpoints"][0]["checks"]}
    config = models / "bad" / "config.json"
    limits = config.read_text().splitlines()
    second = next(n for n, text in enumerate(limits, 1) if 'original_max_position_embeddings": 4096.0' in text)
    assert [(fault["file"], fault["line"]) for fault in checks["integer-types"]["faults"]] == [
        ("config.json", line_of(config, '"max_position_embeddings"')),
        ("config.json", second),
    ]
    assert checks["max-positions"]["faults"][0]["line"] == line_of(config, '"max_position_embeddings"')
    assert checks["tokenizer"]["faults"][0] == {
        "file": "tokenizer_config.json",
        "line": 2,
        "column": 3,
        "words": "model_max_length is 16384, the model works at 32768",
    }
    assert checks["provenance"]["faults"][0]["file"] == "config.json"


def test_every_document_at_once_for_good_broken_and_unreadable(
    cli: Run, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "torn"):
        shutil.copytree(models / "good", models / name)
    change(models / "bad", "tokenizer_config.json", model_max_length=7)
    weights = models / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    wanted = ("--junit", "out/j.xml", "--sarif", "out/s.sarif", "--markdown", "out/m.md", "--report", "out/r.json")
    done = cli("check", "models/good", "models/torn", "models/bad", *wanted, "--json")
    assert done.code == 2
    document = done.document
    assert (document["status"], document["error"]["exit_code"]) == ("error", 2)
    assert json.loads(Path("out/r.json").read_text()) == document
    assert [one["passed"] for one in document["checkpoints"]] == [True, False, False]
    junit = ElementTree.parse("out/j.xml").getroot()
    assert [suite.get("failures") for suite in junit] == ["0", "1", "2"]
    results = json.loads(Path("out/s.sarif").read_text())["runs"][0]["results"]
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results]
    assert [(result["ruleId"], place) for result, place in zip(results, places, strict=True)] == [
        ("structure", "models/torn/model.safetensors"),
        ("tokenizer", "models/bad/tokenizer_config.json"),
        ("provenance", "models/bad/tokenizer_config.json"),
    ]
    assert Path("summary.md").read_text().strip() == Path("out/m.md").read_text().strip()
    commands = [text for text in done.err.splitlines() if text.startswith("::")]
    assert len(commands) == 3
    assert commands[1].startswith("::error file=models/bad/tokenizer_config.json,line=2,col=3,title=")
    assert [text[:6] for text in done.err.splitlines()[:2]] == ["Error:", "Hint: "]


def test_exit_zero_reports_findings_and_still_fails_on_mistakes(cli: Run, models: Path) -> None:
    weights = models / "good" / "model.safetensors"
    assert cli("check", "models/good", "--exit-zero").code == 0
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    assert cli("check", "models/good").code == 2
    assert cli("check", "models/good", "--exit-zero").code == 0
    assert cli("check", "mod:els/goood", "--exit-zero").code == 2
    weights.write_bytes(data)
    change(models / "good", "tokenizer_config.json", model_max_length=7)
    assert cli("check", "models/good").code == 1
    assert cli("check", "models/good", "--exit-zero").code == 0


def test_all_structural_problems_of_an_unreadable_folder(cli: Run, tmp_path: Path) -> None:
    root = builders.build(tmp_path / "m", shards=3)
    (root / "model-00001-of-00003.safetensors").unlink()
    second = root / "model-00002-of-00003.safetensors"
    second.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    done = cli("check", root, "--json")
    assert done.code == 2
    faults = done.document["checkpoints"][0]["checks"][0]["faults"]
    assert any("00001-of-00003.safetensors" in fault["words"] and "missing" in fault["words"] for fault in faults)
    pointer = [fault for fault in faults if fault["file"] == second.name]
    assert ["git lfs pull" in fault["words"] for fault in pointer] == [True]


def test_an_index_that_contradicts_the_shards(cli: Run, tmp_path: Path) -> None:
    root = builders.build(tmp_path / "m", shards=2)
    path = root / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["total_size"] += 1
    del index["weight_map"]["model.layers.3.self_attn.q_proj.weight"]
    path.write_text(json.dumps(index))
    done = cli("check", root, "--json")
    assert done.code == 1
    structure = done.document["checkpoints"][0]["checks"][0]
    assert structure["verdict"] == "fail"
    assert [fault["file"] for fault in structure["faults"]] == [path.name, path.name]
    assert "layers.3.self_attn.q_proj.weight" in structure["faults"][0]["words"]
    assert "total_size" in structure["faults"][1]["words"]


def test_a_refused_scaling_stands_at_its_key(cli: Run, models: Path) -> None:
    config = models / "good" / "config.json"
    for changes, words in (
        ({"model_type": "unheard-of"}, '"model_type"'),
        ({"num_attention_heads": -3}, '"num_attention_heads"'),
        ({"rope_scaling": {"rope_type": "surprise"}, "rope_parameters": None}, '"rope_type": "surprise"'),
    ):
        before = config.read_text()
        change(models / "good", **changes)
        (rope,) = [
            c for c in cli("check", "models/good", "--json").document["checkpoints"][0]["checks"] if c["name"] == "rope"
        ]
        assert rope["faults"][0]["line"] in (line_of(config, words), line_of(config, '"rope_scaling"')), rope
        config.write_text(before)


def test_changed_files_stand_for_the_checkpoints_that_hold_them(cli: Run, models: Path) -> None:
    shutil.copytree(models / "good", models / "bad")
    change(models / "bad", "tokenizer_config.json", model_max_length=7)
    (models / "README.md").write_text("not in a checkpoint")
    (models / "good" / "notes").mkdir()
    (models / "good" / "notes" / "a.txt").write_text("x")
    good = cli("check", "--files", "models/good/config.json", "models/good/notes/a.txt", "models/README.md", "--json")
    assert good.code == 0
    assert [one["path"] for one in good.document["checkpoints"]] == ["models/good"]
    both = cli("check", "--files", "models/good/config.json", "models/bad/model.safetensors", "--json")
    assert both.code == 1
    assert [one["path"] for one in both.document["checkpoints"]] == ["models/bad", "models/good"]
    none = cli("check", "--files", "models/README.md", "gone/config.json")
    assert (none.code, none.out) == (0, "")


def test_every_check_has_a_rule_and_every_rule_is_a_check() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert {"readable", "structure", "rope", "dialects", "integer-types", "max-positions", "tokenizer"} < set(names)
    assert all(rule.help.endswith(".") for rule in RULES)


def test_a_snapshot_of_the_cache_is_checked_through_its_links(cli: Run, models: Path) -> None:
    snapshot = models / "hub" / "snapshots" / "abc"
    blobs = models / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in (models / "good").iterdir():
        (blobs / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    assert cli("check", snapshot).code == 0
