"""Whole batches: the same bytes as `extend` job by job, done once, gone on with, and told as they ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ctxforge
from ctxforge import pipeline
from ctxforge.batch import BatchOptions, prepare
from ctxforge.batch.results import FROM_BEST_TO_WORST, worst
from ctxforge.checkpoint import verify_integrity
from ctxforge.errors import ExitCode
from ctxforge.recipe import ConversionRecipe, OutputOptions, parse_attachment, parse_method
from tests.batch.files import ran, source, statuses, trees, write
from tests.checkpoint.builders import digest, tree
from tests.conftest import Ran

# Two sources, one of them large enough to share; edits of config, of weights, of code.
BATCH = """
version: 1
output: out
defaults: {to: 8x}
matrix:
  models: [large, small]
  methods: [pi, "yarn+resonance", {method: {name: yarn, temperature: 1.25}}, {attach: self-extend}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source(tmp_path / "large", shards=2, hidden=320)
    source(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def extended(folder: Path, out: Path, method: str | None, attach: str | None, to: str, **more: object) -> Path:
    """What `extend` writes, from the same working folder."""
    recipe = ConversionRecipe(
        source=str(folder),
        method=parse_method(method or "none", temperature=more.get("temperature")),  # type: ignore[arg-type]
        attach=None if attach is None else parse_attachment(attach),
        to=to,
    )
    return pipeline.extend(recipe, OutputOptions(out=out)).out


def test_outputs_are_those_of_extend_and_no_source_is_touched(folder: Path) -> None:
    before = digest(folder / "large"), digest(folder / "small")
    file = write(folder / "b.yaml", BATCH)
    result = ran(file)
    assert result.exit_code == 0
    assert set(statuses(result).values()) == {"done"}
    found = trees(folder / "out")
    for name in ("large", "small"):
        expected = {
            f"{name}-pi-16k": extended(Path(name), folder / f"{name}-1", "pi", None, "8x"),
            f"{name}-yarn+resonance-16k": extended(Path(name), folder / f"{name}-2", "yarn+resonance", None, "8x"),
            f"{name}-yarn-16k": extended(Path(name), folder / f"{name}-3", "yarn", None, "8x", temperature=1.25),
            f"{name}-none-self-extend-16k": extended(Path(name), folder / f"{name}-4", None, "self-extend", "8x"),
        }
        for out, alone in expected.items():
            assert found.pop(out) == tree(alone), out
    assert not found
    assert sorted(path.name for path in (folder / "out").iterdir() if path.name.startswith(".")) == []
    assert (digest(folder / "large"), digest(folder / "small")) == before


def test_untouched_weights_are_shared_among_outputs_and_read_only(folder: Path) -> None:
    text = BATCH + "jobs:\n  - {name: own, source: large, method: ntk, share: false}\n"
    ran(write(folder / "b.yaml", text))
    shard = "model-00001-of-00002.safetensors"
    nodes = {name: (folder / "out" / name / shard).stat() for name in ("large-pi-16k", "large-yarn+resonance-16k")}
    original = (folder / "large" / shard).stat()
    own = (folder / "out" / "own" / shard).stat()
    if len({status.st_ino for status in nodes.values()}) == 1:  # else the file system shares blocks
        assert all(status.st_mode & 0o777 == 0o444 for status in nodes.values())
        assert own.st_nlink == 1
    assert original.st_nlink == 1
    assert original.st_mode & 0o200
    # What was patched is a file of its own.
    assert (folder / "out" / "large-yarn-16k" / shard).stat().st_nlink == 1
    # An output goes without harm to the others.
    expected = tree(folder / "out" / "large-pi-16k")
    shutil.rmtree(folder / "out" / "large-yarn+resonance-16k")
    assert tree(folder / "out" / "large-pi-16k") == expected


def test_identical_work_is_done_once(folder: Path) -> None:
    jobs = "  - {name: first}\n  - {name: second, to: 16384}\n  - {name: third, checksum: true}\n"
    text = "version: 1\ndefaults: {source: large, method: {name: yarn, temperature: 1.25}, to: 8x}\njobs:\n"
    result = ran(write(folder / "b.yaml", text + jobs))
    how = {one.name: one.stages["convert"]["how"] for one in result.results}
    assert how == {"first": "written", "second": "twin", "third": "twin"}
    recipe = ConversionRecipe(source="large", method=parse_method("yarn", temperature=1.25), to="8x")
    for name, to, checksum in (("first", "8x", False), ("second", 16384, False), ("third", "8x", True)):
        alone = pipeline.extend(
            ConversionRecipe(**{**vars(recipe), "to": to}),
            OutputOptions(out=folder / f"{name}-alone", checksum=checksum),
        )
        assert tree(folder / name) == tree(alone.out), name
        assert verify_integrity(folder / name) == []


def test_resume_skips_what_is_the_same_and_repeats_what_is_not(folder: Path, cli: Callable[..., Ran]) -> None:
    text = "version: 1\noutput: out\nmatrix: {models: [small], methods: [pi, ntk, yarn], lengths: [4x, 8x]}\n"
    write(folder / "b.yaml", text)
    assert cli("run", "b.yaml", "-q").code == 0
    expected = trees(folder / "out")
    again = cli("run", "b.yaml", "-q", "--json")
    assert again.code == 2
    assert "an earlier run left the journal" in again.document["error"]["cause"]
    assert set(cli("run", "b.yaml", "-q", "--resume", "--json").document["counts"]) == {"skipped"}

    config = folder / "out" / "small-pi-8k" / "config.json"
    config.write_text(config.read_text().replace("8192", "8193"))
    (folder / "out" / "small-ntk-8k" / "model-00002-of-00002.safetensors").unlink()
    shutil.rmtree(folder / "out" / "small-yarn-8k")
    os.utime(folder / "out" / "small-yarn-16k" / "model-00001-of-00002.safetensors", (1, 1))
    (folder / "out" / "small-pi-16k" / "notes.txt").write_text("mine")
    planned = cli("run", "b.yaml", "-q", "--resume", "--dry-run", "--json").document
    assert {job["job"]: bool(job["stages"]) for job in planned["jobs"]} == {
        "small-pi-4x": True,
        "small-pi-8x": False,
        "small-ntk-4x": True,
        "small-ntk-8x": False,
        "small-yarn-4x": True,
        "small-yarn-8x": True,
    }
    done = cli("run", "b.yaml", "-q", "--resume", "--json").document
    assert done["counts"] == {"done": 4, "skipped": 2}
    expected["small-pi-16k"]["notes.txt"] = b"mine"
    assert trees(folder / "out") == expected

    # Another source: all of it again, over the outputs that this journal knows as its own.
    index = folder / "small" / "generation_config.json"
    index.write_text('{"bos_token_id": 2}')
    done = cli("run", "b.yaml", "-q", "--resume", "--json").document
    assert done["counts"] == {"done": 6}
    assert trees(folder / "out")["small-pi-8k"]["generation_config.json"] == index.read_bytes()
    # Another option of one job.
    write(folder / "b.yaml", text + "defaults: {portability: exact}\n")
    done = cli("run", "b.yaml", "-q", "--resume", "--json").document
    assert done["counts"] == {"done": 6}


def test_an_output_that_is_not_ours_is_never_replaced(folder: Path, cli: Callable[..., Ran]) -> None:
    write(
        folder / "b.yaml", "version: 1\ndefaults: {source: small, method: pi, to: 4x}\njobs: [{name: a}, {name: b}]\n"
    )
    shutil.copytree(folder / "small", folder / "b")
    before = digest(folder / "b")
    for more in ((), ("--resume",), ("--fresh",)):
        error = cli("run", "b.yaml", "-q", "--json", *more).document["error"]
        assert error["cause"].startswith("b.yaml:3:")
        assert "job b: The output" in error["cause"]
    assert digest(folder / "b") == before
    assert not (folder / "a").exists()
    assert not (folder / "b.journal.jsonl").exists()
    shutil.rmtree(folder / "b")
    assert cli("run", "b.yaml", "-q").code == 0
    shutil.rmtree(folder / "b")
    shutil.copytree(folder / "small", folder / "b")
    error = cli("run", "b.yaml", "-q", "--json", "--resume").document["error"]
    assert "job b: The output" in error["cause"]


FAILING = """
version: 1
defaults: {source: small, method: pi, to: 4x}
jobs:
  - {name: first}
  - {name: middle, source: broken}
  - {name: last}
  - {name: elsewhere, to: 8x}
"""


def test_a_failure_in_the_middle(folder: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that vanishes between plan and run, which no plan can know."""
    source(folder / "broken", seed=3)
    write(folder / "b.yaml", FAILING)
    real = pipeline.extend

    def vanish(recipe: ConversionRecipe, *more: object) -> object:
        (folder / "broken" / "model-00002-of-00002.safetensors").unlink(missing_ok=True)
        return real(recipe, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "extend", vanish)
    done = cli("run", "b.yaml", "-q", "--json")
    assert done.code == 2
    found = {job["job"]: job for job in done.document["jobs"]}
    assert [job["status"] for job in found.values()] == ["done", "failed", "not run", "not run"]
    assert "model-00002" in found["middle"]["error"]["cause"]
    assert done.document["status"] == "failed"
    monkeypatch.undo()
    monkeypatch.chdir(folder)

    # What can't be planned now stops everything, or with --keep-going only itself.
    stopped = cli("run", "b.yaml", "-q", "--json", "--resume")
    assert stopped.code == 2
    assert stopped.document["error"]["cause"].startswith("b.yaml:5:5: job middle: ")
    done = cli("run", "b.yaml", "-q", "--json", "--resume", "--keep-going")
    assert done.code == 2
    assert done.document["counts"] == {"skipped": 1, "done": 2, "refused": 1}
    assert not (folder / "middle").exists()
    shutil.rmtree(folder / "broken")
    source(folder / "broken", seed=3)
    assert cli("run", "b.yaml", "-q", "--resume").code == 0


def test_keep_going_runs_the_rest(folder: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    source(folder / "broken", seed=3)
    write(folder / "b.yaml", FAILING)
    real = pipeline.extend

    def fail(recipe: ConversionRecipe, *more: object) -> object:
        if recipe.source == "broken":
            raise MemoryError
        return real(recipe, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "extend", fail)
    done = cli("run", "b.yaml", "-q", "--json", "--keep-going")
    assert done.code == 5
    assert done.document["counts"] == {"done": 3, "failed": 1}
    journal = [json.loads(line) for line in Path(done.document["journal"]).read_text().splitlines()]
    ends = {event["job"]: event["status"] for event in journal if event["event"] == "end"}
    assert ends == {"first": "done", "middle": "failed", "last": "done", "elsewhere": "done"}


def test_the_summary_is_a_table_and_the_table_is_short(folder: Path, cli: Callable[..., Ran]) -> None:
    write(folder / "b.yaml", "version: 1\noutput: out\nmatrix: {models: [small], methods: [pi], lengths: [4x, 8x]}\n")
    planned = cli("run", "b.yaml", "--dry-run")
    assert planned.code == 0
    assert "small-pi-4x" in planned.out
    assert "2048 -> 8192" in planned.out
    assert not (folder / "out").exists()
    done = cli("run", "b.yaml")
    assert done.code == 0
    assert "2 done" in done.out
    assert "out/small-pi-8k" in done.out
    assert "[2/2] small-pi-8x: done" in done.err


def test_output_folder_and_templates(folder: Path) -> None:
    job = "{source: small, method: pi, to: 4x, out: '{source}/{method}/{length}-{to}'}"
    text = f"version: 1\noutput: a\njobs:\n  - {job}\n"
    result = ran(write(folder / "b.yaml", text), output=Path("b"))
    assert result.results[0].out == str(folder / "b" / "small" / "pi" / "8k-4x")
    assert (folder / "b" / "small" / "pi" / "8k-4x" / "config.json").is_file()


def test_no_torch_and_no_memory_for_light_jobs(folder: Path) -> None:
    """24 conversions in one process: nothing heavy is imported, and what one job held is given back."""
    methods = "[{method: {name: yarn, temperature: 1.25}}, pi, ntk, yarn]"
    lengths = "[2x, 4x, 6x, 8x, 16x, 32x]"
    write(
        folder / "b.yaml",
        f"version: 1\noutput: out\nmatrix: {{models: [large], methods: {methods}, lengths: {lengths}}}\n",
    )
    program = (
        "import sys, os\nsys.argv = ['ctxforge', 'run', 'b.yaml', '-q', '--json']\n"
        "import ctxforge.batch.running as running\n"
        "from ctxforge.cli import main\n"
        "taken, real = [], running.Runner._take\n"
        "def take(self, *more):\n"
        "    taken.append(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))\n"
        "    return real(self, *more)\n"
        "running.Runner._take = take\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 0, ended.code\n"
        "assert len(taken) == 24\n"
        "for name in ('torch', 'transformers', 'huggingface_hub'):\n    assert name not in sys.modules, name\n"
        "sys.stderr.write('\\n' + str(max(taken[4:]) - taken[3]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    more = int(done.stderr.splitlines()[-1])
    assert more < 4_000_000, f"{more / 1e6:.1f} MB more after the first jobs"
    assert len(trees(folder / "out")) == 24


def test_the_order_of_exit_codes() -> None:
    assert set(FROM_BEST_TO_WORST) == set(ExitCode)
    assert worst([]) == 0
    assert worst([0, 3, 1]) == 1
    assert worst([1, 3, 2, 4]) == 4
    assert worst([5, 4]) == 5
    assert worst([70, 5, 130]) == 130
    assert worst([0, 99]) == 70


def test_what_is_prepared_reads_each_source_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctxforge.batch import sources

    opened: list[str] = []
    real = sources.read_checkpoint
    monkeypatch.setattr(sources, "read_checkpoint", lambda name, **more: (opened.append(name), real(name, **more))[1])
    prepared = prepare(write(folder / "b.yaml", BATCH), BatchOptions())
    assert len(prepared.jobs) == 8
    assert sorted(opened) == ["large", "small"]


def test_what_a_killed_run_left_of_a_copy_goes(folder: Path) -> None:
    for name in (".b.source-0", "..b.source-1.ctxforge-12-00000000"):
        source(folder / "out" / name)
    (folder / "out" / "..b.source-2.ctxforge.lock").touch()
    source(folder / "out" / ".c.source-0")
    ran(write(folder / "b.yaml", "version: 1\noutput: out\njobs: [{source: small, method: pi, to: 4x}]\n"))
    assert sorted(path.name for path in (folder / "out").iterdir() if path.name.startswith(".")) == [".c.source-0"]


def test_the_same_in_python(folder: Path) -> None:
    write(folder / "b.yaml", "version: 1\njobs: [{name: a, source: small, method: pi, to: 4x}]\n")
    assert ctxforge.run("b.yaml", output="out").exit_code == 0
    again = ctxforge.run("b.yaml", output="out", resume=True, only=["a"])
    assert [(job.name, job.status) for job in again.results] == [("a", "skipped")]
