"""The whole command on two processes (gloo, float32): it does what one does, ends as one, and goes on as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctxforge.checkpoint.staging import locked
from ctxforge.errors import ExitCode
from tests.calibrate.data_builders import stretches, write_jsonl
from tests.calibrate.parallel_runs import difference
from tests.calibrate.processes_runs import Ended, Groups, serving
from tests.calibrate.run_builders import build, events, left, losses, tree, weights

RECIPE: dict[str, Any] = {
    "name": "short",
    "steps": 4,
    # Half of the rows are short documents end to end; two long rows are two passes.
    "rows": {"count": 4, "short_share": 0.5},
    "memory": {"tokens_at_once": 64},
    "optimiser": {"warmup": 2, "learning_rate": 0.01},
    # An odd number of passes: the processes' shares differ.
    "held_out": {"windows": 3, "short_windows": 2, "every": 2, "share": 0.2, "patience": None},
}
WAYS = {
    "rows": [],
    "shard": ["--shard"],
    "ring": ["--context", "2"],
    "ulysses": ["--context", "2", "--context-backend", "ulysses"],
}


@dataclass(frozen=True)
class Site:
    """A base, its data and recipe in a folder, and what runs on them."""

    root: Path
    groups: Groups
    base: str = "base"
    data: str = "data.jsonl"

    def arguments(self, out: str, *more: str) -> list[str]:
        """Of a calibration to `root`/`out`."""
        root = self.root
        given = [root / self.base, "--recipe", root / "short.json", "--data", root / self.data, "--out", root / out]
        return ["calibrate", *map(str, given), *more]

    def run(self, world: int, out: str, *more: str) -> Ended:
        """To its end."""
        return self.groups.run(world, self.arguments(out, *more))

    def done(self, world: int, out: str, *more: str) -> Path:
        """To its good end, which the first process alone tells; the output's folder."""
        ended = self.run(world, out, *more)
        assert ended.codes == [0] * world, ended
        assert ended.out == [f"{self.root / out}\n", *[""] * (world - 1)]
        assert ended.err[0].startswith("short: ")
        assert ended.err[0].endswith(f"log: {self.log(out)}\n")
        assert ended.err[1:] == [""] * (world - 1)
        assert left(self.root) == []
        return self.root / out

    def work(self, out: str) -> Path:
        return self.root / f"{out}.calibration"

    def log(self, out: str) -> Path:
        return self.work(out) / "log.jsonl"

    def everything(self) -> dict[str, bytes | None]:
        """Files with what is in them, and folders, but not what processes said."""
        found = {path: path.read_bytes() if path.is_file() else None for path in sorted(self.root.rglob("*"))}
        return {str(path): data for path, data in found.items() if not path.name.startswith(("out-", "err-"))}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    build(root)
    texts = stretches(12) + [text[:length] for length, text in zip(range(9, 25), stretches(28)[12:], strict=True)]
    write_jsonl(root / "data.jsonl", texts)
    (root / "short.json").write_text(json.dumps(RECIPE))
    with serving(tmp_path_factory.mktemp("cache")) as server:
        yield Site(root, Groups(server, root))


@pytest.fixture(scope="module")
def alone(site: Site) -> Path:
    return site.done(1, "alone")


def apart(one: Path, other: Path) -> float:
    """How far the weights of two checkpoints are, of each tensor relative to its largest number."""
    return difference(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))


def scores(log: Path) -> list[float]:
    """The numbers of every measurement of a log."""
    return [one[name] for one in events(log, "held_out") for name in ("score", "use", "long_nll", "short_nll")]


def told(log: Path) -> list[tuple[str, int]]:
    """The kinds and steps of a log's events."""
    return [(one["event"], one["step"]) for one in map(json.loads, log.read_text().splitlines())]


@pytest.mark.parametrize("way", list(WAYS))
def test_two_processes_do_what_one_does(way: str, site: Site, alone: Path) -> None:
    found = site.done(2, way, *WAYS[way])
    log, other = site.log(way), site.log("alone")
    assert told(log) == told(other)
    steps = events(log, "step")
    assert [(one["tokens"], one["counted"]) for one in steps] == [
        (one["tokens"], one["counted"]) for one in events(other, "step")
    ]
    # The first token of a document does not count: some rows hold several documents.
    assert any(one["tokens"] - one["counted"] > RECIPE["rows"]["count"] for one in steps)
    # Measured: losses 1.3e-8, norms 1.5e-7, scores 1.4e-7 nats, weights 6e-7; float32 rounds by 6e-8.
    assert [loss for _, loss in losses(log)] == pytest.approx([loss for _, loss in losses(other)], rel=1e-7)
    norms, expected = ([one["gradient_norm"] for one in events(path, "step")] for path in (log, other))
    assert norms == pytest.approx(expected, rel=2e-6)
    assert scores(log) == pytest.approx(scores(other), abs=2e-6)
    assert apart(found, alone) < 5e-6
    assert apart(found, site.root / "base") > 1e-2
    assert json.loads((found / "ctxforge.json").read_text())["calibrations"][0]["steps"] == 4


def test_other_rows_are_another_run(site: Site, alone: Path) -> None:
    """The control: what the comparisons above would see."""
    found = site.done(1, "other", "--seed", "1")
    assert losses(site.log("other"))[0][1] != pytest.approx(losses(site.log("alone"))[0][1], rel=1e-3)
    assert apart(found, alone) > 1e-3


@pytest.mark.parametrize(("way", "asked"), [("rows", (0, 1)), ("shard", (1,))])
def test_an_interrupted_run_goes_on(way: str, asked: tuple[int, ...], site: Site) -> None:
    """SIGTERM to some of the processes ends all after one step; as many go on to the same bits, one to the same run."""
    straight, out, single = (f"{name}-{way}" for name in ("straight", "out", "single"))
    more = ("--steps", "30", "--save-every", "100", "--set", "held_out.every=30")
    site.done(2, straight, *more, *WAYS[way])
    children = site.groups.begin(2, site.arguments(out, *more, *WAYS[way]))
    site.groups.until(lambda: site.log(out).exists() and site.log(out).read_bytes().count(b"\n") > 5)
    for rank in asked:
        os.kill(children[rank], signal.SIGTERM)
    ended = site.groups.end()
    assert ended.codes == [ExitCode.INTERRUPTED] * 2, ended
    state = json.loads((site.work(out) / "state" / "run.json").read_text())
    assert 0 < state["step"] < 30
    for said in ended.err:
        assert said.splitlines() == [
            f"Error: stopped after step {state['step']} of 30",
            "Hint: run the same command again to go on from there",
        ]
    assert ended.out == ["", ""]
    assert losses(site.log(out))[-1][0] == state["step"]
    assert not (site.root / out).exists()
    assert left(site.root) == []
    shutil.copytree(site.work(out), site.work(single))

    site.done(2, out, *more, *WAYS[way])
    assert weights(site.root / out) == weights(site.root / straight)
    assert losses(site.log(out)) == losses(site.log(straight))

    site.done(1, single, *more)
    steps, expected = losses(site.log(single)), losses(site.log(straight))
    assert steps[: state["step"]] == expected[: state["step"]]
    assert [step for step, _ in steps] == [step for step, _ in expected]
    # Measured: losses 7e-7, weights 5e-6: what rounding left has grown over the steps.
    assert [loss for _, loss in steps] == pytest.approx([loss for _, loss in expected], rel=1e-5)
    assert apart(site.root / single, site.root / straight) < 1e-4


def an_output(root: Path) -> list[str]:
    (root / "refused").mkdir()
    (root / "refused" / "thesis.tex").write_text("")
    return []


Break = Callable[[Path], list[str]]
REFUSED: dict[str, tuple[Break, ExitCode, str]] = {
    "rows": (
        lambda _root: ["--set", "rows.count=3"],
        ExitCode.USAGE,
        "the 3 rows of a step can't be divided among 2 processes",
    ),
    "longce shard": (
        lambda _root: ["--shard", "--set", "objective.kind=longce"],
        ExitCode.UNSUPPORTED,
        "LongCE's short windows are more on some processes than on others",
    ),
    "longce ring": (
        lambda _root: [*WAYS["ring"], "--set", "objective.kind=longce"],
        ExitCode.UNSUPPORTED,
        "LongCE's short windows are more on some processes than on others",
    ),
    "groups": (
        lambda _root: ["--context", "3"],
        ExitCode.USAGE,
        "2 processes can't be divided into groups of 3 that share a sequence",
    ),
    "no data": (lambda root: ["--data", str(root / "none.jsonl")], ExitCode.USAGE, "none.jsonl"),
    "output": (an_output, ExitCode.USAGE, "refused"),
}


def refused(site: Site, *more: str) -> Ended:
    """Of a calibration that two processes refuse alike: two lines each at most, the first one's for certain."""
    ended = site.run(2, "refused", *more)
    assert ended.out == ["", ""]
    assert ended.codes[0] == ended.codes[1], ended
    first, second = (said.splitlines() for said in ended.err)
    assert [line.split(": ")[0] for line in first] == ["Error", "Hint"], ended
    assert second in ([], first)
    return ended


@pytest.mark.parametrize("name", list(REFUSED))
def test_both_refuse_and_nothing_is_written(name: str, site: Site) -> None:
    broken, code, words = REFUSED[name]
    more = broken(site.root)
    before = site.everything()
    try:
        ended = refused(site, *more)
        assert site.everything() == before
    finally:
        shutil.rmtree(site.root / "refused", ignore_errors=True)
    assert ended.codes == [code] * 2, ended
    assert words in ended.err[0].splitlines()[0]


def test_what_the_first_process_alone_finds_ends_both(site: Site) -> None:
    """The second one waits for no word that never comes."""
    work = site.work("refused")
    work.mkdir()
    with locked(work):
        before = site.everything()
        ended = refused(site)
        assert site.everything() == before
    work.rmdir()
    assert ended.codes == [ExitCode.RESOURCES] * 2
    assert ended.err[0].startswith(f"Error: Another run of ctxforge is writing {work}.")


def test_texts_that_are_too_short(site: Site) -> None:
    write_jsonl(site.root / "tiny.jsonl", stretches(12, 30))
    before = site.everything()
    ended = refused(replace(site, data="tiny.jsonl"))
    assert site.everything() == before
    assert ended.codes == [ExitCode.USAGE] * 2
    assert ended.err[0].splitlines()[0].endswith("the longest of 31 tokens, and none reaches 64")


def test_a_loss_that_is_no_number_ends_both(site: Site) -> None:
    """One letter's embedding is broken, and one row of one process has it: both stop, and name its text."""
    site = replace(site, base="broken", data="marked.jsonl")
    shutil.copytree(site.root / "base", site.root / "broken")
    tensors = load_file(site.root / "broken" / "model.safetensors")
    tensors["model.embed_tokens.weight"][ord("~")] = torch.nan
    save_file(tensors, site.root / "broken" / "model.safetensors", metadata={"format": "pt"})
    texts = stretches(12)
    texts[8] = texts[8][:-60] + 6 * "a passage~"
    write_jsonl(site.root / "marked.jsonl", texts)
    more = ("--steps", "40", "--save-every", "1000", "--set", "held_out.every=40")
    ended = refused(site, *more)
    work = site.work("refused")
    done = losses(site.log("refused"))[-1][0]
    assert 0 < done < 40
    assert ended.codes == [ExitCode.USAGE] * 2
    assert ended.err[0].startswith(f"Error: step {done + 1}: the loss of forward pass ")
    named = ended.err[0].splitlines()[0].split("its rows hold documents ")[1]
    assert 8 in [int(part.split(" of source ")[0]) for part in named.split(", ")]
    kept = tree(work / "state")
    assert json.loads(kept["run.json"])["step"] == done
    assert not (site.root / "refused").exists()
    assert left(site.root) == []
    assert refused(site, *more).err == ended.err
    assert tree(work / "state") == kept
    shutil.rmtree(work)


def test_extending_and_calibrating_at_once_is_for_one_process(site: Site) -> None:
    root = site.root
    before = site.everything()
    arguments = ["extend", str(root / "source"), "--method", "pi", "--to", "2x", "--out", str(root / "refused")]
    ended = site.groups.run(2, [*arguments, "--calibrate", "quick", "--data", str(root / "data.jsonl")])
    assert ended.codes == [ExitCode.USAGE] * 2
    assert ended.out == ["", ""]
    assert ended.err[0].splitlines() == [
        "Error: several processes would convert at once",
        "Hint: convert first (ctxforge extend), then accelerate launch -m ctxforge calibrate",
    ]
    assert ended.err[1] in ("", ended.err[0])
    assert site.everything() == before
