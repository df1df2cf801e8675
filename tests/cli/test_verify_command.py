"""`verify` and `demo` from the command line, on the bundled model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import ctxforge

SMALL = ("--needles", "3", "--seeds", "1", "--buckets", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ctxforge.extend("bundled", method="yarn", to="2x", out=tmp_path_factory.mktemp("verify") / "out").out


def test_verify_measures_the_recorded_lengths(cli: Callable[..., object], converted: Path, tmp_path: Path) -> None:
    plot, report = tmp_path / "curve.svg", tmp_path / "reports" / "report.json"
    done = cli("verify", converted, "--source", "bundled", *SMALL, "--plot", plot, "--report", report, "--json")
    # Three prompts decide nothing: the gates on retrieval say so, and the exit code is theirs.
    assert done.code == 3, done.out
    undecided = {gate["name"] for gate in done.document["report"]["judgement"]["gates"] if gate["verdict"] != "pass"}
    assert undecided == {"retrieval_nll", "retrieval_depth_nll"}
    found = done.document["report"]
    assert (found["protocol"]["trained_length"], found["protocol"]["target_length"]) == (512, 1024)
    source, result = (
        {entry["length"]: entry["ppl"] for entry in found[name]["lengths"]} for name in ("source", "result")
    )
    assert source[512] == pytest.approx(result[512], rel=0.05)
    assert source[1024] > 1.1 * result[1024]
    assert "<svg" in plot.read_text()
    assert report.exists()
    shown = cli("verify", converted, *SMALL, "--no-retrieval")
    for words in ("Perplexity by position", "beyond trained", "Protocol"):
        assert words in shown.out


def test_verify_refuses_what_it_cannot_measure(cli: Callable[..., object], converted: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short")
    short = cli("verify", converted, "--text", text)
    assert short.code == 2
    assert "1024" in short.err
    text.write_bytes(b"\xff\xfe\x00binary")
    assert "not UTF-8" in cli("verify", converted, "--text", text).err
    assert cli("verify", converted, "--to", "0").code == 2
    assert cli("verify", tmp_path / "nowhere").code == 2


def test_demo_compares_the_methods(cli: Callable[..., object], tmp_path: Path) -> None:
    done = cli("demo", "--out", tmp_path / "demo", "--to", "2x", "--json")
    assert done.code == 0, done.err
    assert [row["method"] for row in done.document["comparison"]] == [
        "none",
        "pi",
        "ntk",
        "ntk-by-parts",
        "yarn",
        "llama3",
    ]
    assert (tmp_path / "demo" / "perplexity.svg").exists()
    assert ctxforge.check(tmp_path / "demo" / "yarn").passed


def test_a_broken_conversion_exits_1_with_the_gate_named(cli: Callable[..., object], tmp_path: Path) -> None:
    broken = ctxforge.extend("bundled", method="pi", to="2x", out=tmp_path / "pi").out
    junit, page = tmp_path / "gates.xml", tmp_path / "report.html"
    ran = cli("verify", broken, "--seeds", "2", "--needles", "6", "--windows", "2", "--junit", junit, "--report", page)
    assert ran.code == 1, ran.err
    assert "fail: " in ran.out
    assert "short_nll" in ran.out
    failed = [
        case.get("name") for case in ElementTree.parse(junit).iter("testcase") if case.find("failure") is not None
    ]
    assert "short_nll" in failed
    assert "short_nll" in page.read_text()


def test_gates_of_ones_own(cli: Callable[..., object], converted: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text("[gates]\nshort_nll = -1.0\n")
    ran = cli(
        "verify", converted, *SMALL, "--no-retrieval", "--windows", "1", "--gates", gates, "--exit-zero", "--json"
    )
    assert (ran.code, ran.document["status"]) == (0, "fail")  # reported, and the job goes on
    verdicts = {gate["name"]: gate["verdict"] for gate in ran.document["report"]["judgement"]["gates"]}
    assert verdicts["short_nll"] == "fail"
    assert not [name for name in verdicts if name.startswith("retrieval")]
    gates.write_text("[gates]\nshort_null = 1\n")
    refused = cli("verify", converted, "--gates", gates)
    assert refused.code == 2
    assert "short_nll" in refused.err


def test_the_smoke_tier_needs_no_text_and_sees_a_broken_cache(cli: Callable[..., object], tmp_path: Path) -> None:
    good = ctxforge.extend("bundled", method="yarn", to="4x", out=tmp_path / "good").out
    ran = cli("verify", good, "--tier", "smoke", "--device", "cpu")
    assert ran.code == 0, ran.out + ran.err
    config = json.loads((good / "config.json").read_text())
    rope = {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0] * 32,
        "long_factor": [1 + i / 10 for i in range(32)],
        "original_max_position_embeddings": 512,
        "attention_factor": 1.0,
    }
    config["rope_scaling"], config["rope_parameters"] = rope, {**rope, "rope_theta": config["rope_theta"]}
    (good / "config.json").write_text(json.dumps(config))
    broken = cli("verify", good, "--tier", "smoke", "--device", "cpu", "--json")
    assert broken.code == 1
    verdicts = {gate["name"]: gate["verdict"] for gate in broken.document["report"]["judgement"]["gates"]}
    assert verdicts["cache"] == "fail"
    assert verdicts["finite"] == "pass"


def test_tasks_protocols_and_far_context(cli: Callable[..., object], converted: Path, tmp_path: Path) -> None:
    asked = ("--task", "passkey,uuid-needles", "--task-depths", "2", "--task-seeds", "1", "--protocol", "yarn,lm-eval")
    ran = cli("verify", converted, *SMALL, *asked, "--far-context", "--json")
    assert ran.code in (0, 1, 3), ran.err
    found = ran.document["report"]
    assert {score["task"] for score in found["result"]["tasks"]} == {"passkey", "uuid"}
    assert {score["length"] for score in found["source"]["tasks"]} == {512}
    assert {result["protocol"] for result in found["result"]["protocols"]} == {"yarn", "lm-eval"}
    assert all(result["traps"] for result in found["result"]["protocols"])
    assert found["result"]["far_context"]["tokens"] > 0
    for wrong in (("--task", "passky"), ("--protocol", "yarm"), ("--task", "squad-qa")):
        refused = cli("verify", converted, *SMALL, *wrong)
        assert refused.code == 2, refused.err
    assert "passkey" in cli("verify", converted, *SMALL, "--task", "passky").err
    data = cli("verify", converted, *SMALL, "--task", "ruler-qa")
    assert data.code == 2
    assert "--task-data" in data.err


def test_outputs_are_tried_before_anything_is_measured(
    cli: Callable[..., object], converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctxforge.pipeline.verify", lambda *_args, **_options: pytest.fail("measured first"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    for option in ("--report", "--junit", "--plot"):
        ran = cli("verify", converted, *SMALL, option, blocked / "report.html")
        assert ran.code == 5
        assert "can't be written" in ran.err
    assert cli("verify", converted, *SMALL, "--report", tmp_path).code == 5
    assert blocked.read_text() == ""


def test_nan_weights_fail_the_gate_on_finite_losses(cli: Callable[..., object], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    out = ctxforge.extend("bundled", method="yarn", to="2x", out=tmp_path / "out").out
    (weights,) = out.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    page = tmp_path / "page.html"
    ran = cli("verify", out, *SMALL, "--task", "passkey", "--task-depths", "1", "--report", page, "--json")
    assert ran.code == 1, ran.err
    verdicts = {gate["name"]: gate["verdict"] for gate in ran.document["report"]["judgement"]["gates"]}
    assert verdicts["finite"] == "fail"
    assert ran.document["report"]["result"]["finite"] is False
    assert "Traceback" not in ran.err
    assert page.exists()


def test_the_full_tier_says_what_it_needs(cli: Callable[..., object], converted: Path) -> None:
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("lm-eval is installed here")
    ran = cli("verify", converted, "--tier", "full")
    assert ran.code == 5
    assert "lm-eval" in ran.err
    assert "ctxforge-llm[eval]" in ran.err
