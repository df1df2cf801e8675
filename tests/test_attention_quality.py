"""The benchmark of attention systems on the bundled model: its numbers, its tables, and what it says of them."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ctxforge
from ctxforge import pipeline
from ctxforge.sources import bundled_text

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "attention_quality.py"
RESULTS, TABLES = "attention-quality.json", "attention-quality.md"
SMALL = ["--factors", "2", "--windows", "1", "--seeds", "1", "--device", "cpu", "--dtype", "float32"]
SYSTEMS = ["unmodified", "yarn-paper", "lm-infinite", "string"]


@dataclass(frozen=True)
class Ran:
    """The script after one run on the bundled model at twice its length."""

    bench: ModuleType
    out: Path
    printed: str
    records: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    spec = importlib.util.spec_from_file_location("attention_quality", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "attention_quality", bench)
        spec.loader.exec_module(bench)
        out = tmp_path_factory.mktemp("quality")
        assert bench.main([*SMALL, "--systems", *SYSTEMS, "--out", str(out), "--check"]) == 0
        records = {record["system"]: record for record in read(out)}
        yield Ran(bench, out, (out / TABLES).read_text(), records)


def read(out: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((out / "attention-quality.json").read_text())["records"]
    return records


def far(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers to the needles of the first half of 1024 tokens, all of which stand more than 512 tokens back."""
    return [a for a in record["report"]["result"]["answers"] if a["length"] == 1024 and a["stratum"] < 4]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def rows(printed: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    return {cells[0]: cells for cells in lines}


def test_a_window_is_flat_and_finds_nothing_far_yarn_finds_it_the_unmodified_model_breaks(ran: Ran) -> None:
    losses = {name: mean([a["nll"] for a in far(ran.records[name])]) for name in SYSTEMS[:3]}
    exact = {name: sum(a["exact"] for a in far(ran.records[name])) for name in SYSTEMS[:3]}
    assert losses["lm-infinite"] > losses["yarn-paper"] + 2
    assert losses["unmodified"] > losses["yarn-paper"] + 2
    assert exact["yarn-paper"] >= 3 > 0 == exact["lm-infinite"] == exact["unmodified"]
    beyond = {name: mean(ran.records[name]["report"]["result"]["beyond"]) for name in SYSTEMS[:3]}
    cut = mean(ran.records["unmodified"]["report"]["source"]["truncated"])
    assert beyond["lm-infinite"] == pytest.approx(cut, abs=0.02)
    assert beyond["yarn-paper"] < cut
    assert beyond["unmodified"] > cut + 0.2
    near = [a for a in ran.records["lm-infinite"]["report"]["result"]["answers"] if a["length"] == 1024]
    assert all(a["exact"] for a in near if a["stratum"] >= 6)


def test_the_table_says_what_the_reports_hold(ran: Ran) -> None:
    table = rows(ran.printed)
    heads = table["system"]
    for name in SYSTEMS[:3]:
        report, cells = ran.records[name]["report"], dict(zip(heads, table[name], strict=True))
        result = report["result"]
        assert cells["ppl to 512"] == f"{result['lengths'][0]['ppl']:.2f}"
        assert cells["ppl to 1024"] == f"{result['lengths'][1]['ppl']:.2f}"
        assert [cells[f"{i * 128}-{i * 128 + 128}"] for i in range(8)] == [f"{b['ppl']:.2f}" for b in result["buckets"]]
        answers = far(ran.records[name])
        found = f"{mean([a['nll'] for a in answers]):.2f} ({sum(a['exact'] for a in answers)}/{len(answers)})"
        assert cells["beyond L0"] == found
        of_cutting = math.exp(mean(result["beyond"]) - mean(report["source"]["truncated"]))
        assert cells["beyond L0, of cutting"] == f"{of_cutting:.3f}"
        assert cells["short text"] == f"{report['short_context']['mean']:+.4f}".replace("-0.0000", "+0.0000")
    assert table["lm-infinite"][1] == "window=502, sinks=10, evict=True"
    assert "retrieval_nll" in table["unmodified"][-2]
    assert "- bundled at 2x, perplexity: rises with unmodified" in ran.printed
    assert "- bundled at 2x, short text, nats a token more: yarn-paper +0.0089; under 0.001 elsewhere." in ran.printed
    assert "- bundled at 2x, flat perplexity and no far retrieval: lm-infinite." in ran.printed
    assert "Not as described" not in ran.printed


def test_a_refused_conversion_is_a_row_with_the_reason(ran: Ran) -> None:
    reason = "string with shift=170, window=42 so reaches 640 tokens, fewer than 1024"
    assert rows(ran.printed)["string"][2] == reason
    assert f"- bundled at 2x, not measured: string ({reason})." in ran.printed


def test_it_reports_what_verify_reports(ran: Ran, tmp_path: Path) -> None:
    out = ctxforge.extend("bundled", attach="lm-infinite", to="2x", out=tmp_path / "lm").out
    choices = {"lengths": (512, 1024), "documents": 1, "needles": 8, "seeds": 1, "source_curve": False}
    choices |= {"truncated_source": True, "trust_remote_code": True, "device": "cpu", "dtype": "float32"}
    told = pipeline.verify(out, text=bundled_text(), source="bundled", choices=choices, fresh=True).to_dict()
    ours = ran.records["lm-infinite"]["report"]
    for part in ("protocol", "judgement", "short_context"):
        assert json.loads(json.dumps(told[part])) == ours[part], part
    for model in ("result", "source"):
        for part in ("lengths", "buckets", "answers", "beyond", "truncated", "short_windows", "cache_difference"):
            assert told[model][part] == ours[model][part], (model, part)


def test_what_is_measured_is_not_measured_again_unless_something_else_is_asked(ran: Ran, tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_bytes((ran.out / RESULTS).read_bytes())
    before = ran.records["yarn-paper"]
    base = ["--systems", "yarn-paper", "--out", str(tmp_path)]
    assert ran.bench.main([*SMALL, *base]) == 0
    again = {record["system"]: record for record in read(tmp_path)}
    assert again == ran.records  # the seconds, too: another measurement would not take as long
    assert ran.bench.main([*SMALL, *base, "--needles", "4"]) == 0
    other = {record["system"]: record for record in read(tmp_path)}
    assert other["yarn-paper"]["seconds"] != before["seconds"]
    assert {answer["strata"] for answer in other["yarn-paper"]["report"]["result"]["answers"]} == {4}
    assert other["lm-infinite"] == ran.records["lm-infinite"]


def test_files_are_merged_and_printed_without_measuring(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = copy.deepcopy(ran.records["yarn-paper"])
    changed["report"]["result"]["lengths"][0]["ppl"] = 123.0
    other = {**changed, "factor": 4.0}
    (tmp_path / "more.json").write_text(json.dumps({"schema": 1, "records": [changed, other]}))
    files = [str(ran.out / RESULTS), str(tmp_path / "more.json")]
    assert ran.bench.main(["--from", *files, "--out", str(tmp_path / "both")]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "both" / TABLES).read_text()
    assert [line for line in printed.splitlines() if line.startswith("###")] == [
        "### bundled at 2x: 512 to 1024",
        "### bundled at 4x: 512 to 1024",
    ]
    assert rows(printed)["yarn-paper"][2] == "123.00"
    assert len(read(tmp_path / "both")) == len(SYSTEMS) + 1


@pytest.mark.parametrize(
    ("system", "role", "said"),
    [
        ("lm-infinite", "sees all", "answers beyond L0 are"),
        ("yarn-paper", "window", "answers beyond L0 are"),
        ("unmodified", "sees all", "perplexity beyond L0 is"),
        ("unmodified", "window", "answers within L0/2 are"),
    ],
)
def test_a_number_that_is_not_what_a_system_promises_is_named(ran: Ran, system: str, role: str, said: str) -> None:
    """Negative control: the numbers of one kind of system under the name of another."""
    record = {**ran.records[system], "role": role}
    lines = ran.bench.contradictions([record])
    assert any(said in line and system in line for line in lines), lines
    assert "Not as described" in ran.bench.render([record])


@pytest.mark.parametrize(
    ("target", "strata", "near", "between", "far"),
    [
        (1024, 8, {6, 7}, {4, 5}, {0, 1, 2, 3}),
        (2048, 8, {7}, {6}, {0, 1, 2, 3, 4, 5}),
        (2048, 10, {9}, {7, 8}, {0, 1, 2, 3, 4, 5, 6}),
    ],
)
def test_needles_are_sorted_by_their_distance(
    ran: Ran, target: int, strata: int, near: set[int], between: set[int], far: set[int]
) -> None:
    record = copy.deepcopy(ran.records["yarn-paper"])
    record["report"]["protocol"]["target_length"] = target
    answers = [
        {"seed": 0, "length": target, "stratum": i, "strata": strata, "nll": 2.0**i, "exact": i % 2 == 0}
        for i in range(strata)
    ]
    record["report"]["result"]["answers"] = answers
    told = __import__("attention_quality_tables").standing(record)
    for found, expected in ((told.near, near), (told.between, between), (told.far, far)):
        assert found.nll == pytest.approx(sum(2.0**i for i in expected) / len(expected))
        assert (found.exact, found.count) == (sum(i % 2 == 0 for i in expected), len(expected))


def test_every_attachment_that_needs_no_training_is_among_the_systems(ran: Ran) -> None:
    from ctxforge.attention.registry import attachments

    systems = {system.name: system for system in ran.bench.default_systems()}
    free = {name for name, one in attachments().items() if one.needs == "nothing" and one.exported}
    assert {name.split("@")[0] for name in systems} >= free | {"unmodified", "yarn-paper", "dynamic-yarn"}
    roles = {name: system.role for name, system in systems.items()}
    assert {name for name, role in roles.items() if role == "window"} >= {"lm-infinite", "streaming-llm"}
    assert {roles[name] for name in ("yarn-paper", "self-extend", "string@yarn-paper")} == {"sees all"}
    assert roles["unmodified"] == "unmodified"
    assert ran.bench.parse_system("longnet").role == "untrained"
