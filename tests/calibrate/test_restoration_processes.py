"""Restoration on two processes is that on one; processes that share a sequence are refused together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ctxforge.errors import ExitCode
from tests.calibrate.parallel_runs import difference
from tests.calibrate.processes_runs import Groups, serving
from tests.calibrate.run_builders import build, events, losses

RECIPE: dict[str, Any] = {
    "name": "held",
    "steps": 2,
    "rows": {"count": 4, "short_share": 0.5, "placement": "pose", "content": "contiguous", "length": "trained"},
    "objective": {"restoration": 10.0},
    "memory": {"tokens_at_once": 40},
    "optimiser": {"warmup": 0, "learning_rate": 0.01},
    "held_out": {"windows": 2, "short_windows": 2, "every": 2, "share": 0.2, "patience": None},
}


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[Groups]:
    with serving(tmp_path / "cache") as server:
        yield Groups(server, tmp_path)


def test_two_processes_hold_states_as_one_does(groups: Groups, tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "held.json").write_text(json.dumps(RECIPE))
    given = ["calibrate", tmp_path / "base", "--recipe", tmp_path / "held.json", "--data", tmp_path / "data.jsonl"]

    def run(world: int, out: str, *more: str) -> Any:
        ended = groups.run(world, [*map(str, given), "--out", str(tmp_path / out), *more])
        return ended, tmp_path / f"{out}.calibration" / "log.jsonl"

    refused, _ = run(2, "shared", "--context", "2")
    assert refused.codes == [int(ExitCode.UNSUPPORTED)] * 2
    assert any("objective.restoration=0" in said for said in refused.err)
    assert not (tmp_path / "shared.calibration").exists()

    logs = {}
    for name, world, more in (("one", 1, []), ("two", 2, []), ("sharded", 2, ["--shard"])):
        ended, logs[name] = run(world, name, *more)
        assert ended.codes == [0] * world, ended
        assert events(logs[name], "start")[0]["restoration"] is True
    plain, logs["plain"] = run(1, "plain", "--set", "objective.restoration=0")
    assert plain.codes == [0]
    norms = {name: [one["gradient_norm"] for one in events(log, "step")] for name, log in logs.items()}
    expected = load_file(tmp_path / "one" / "model.safetensors")
    for name in ("two", "sharded"):
        assert [loss for _, loss in losses(logs[name])] == pytest.approx(
            [loss for _, loss in losses(logs["one"])], 1e-5
        )
        assert norms[name] == pytest.approx(norms["one"], rel=1e-4)
        assert difference(load_file(tmp_path / name / "model.safetensors"), expected) < 1e-3
    assert norms["plain"][0] != pytest.approx(norms["one"][0], rel=0.1)
    assert difference(load_file(tmp_path / "plain" / "model.safetensors"), expected) > 1e-2
