"""`ctxforge calibrate` from the command line: what it says where, and every bad input as two lines and a code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctxforge.checkpoint.staging import locked
from ctxforge.sources import bundled_text
from tests.calibrate.data_builders import stretches, write_jsonl
from tests.calibrate.run_builders import SHORT, build, events, left, tree, weights
from tests.cli.test_bad_input import assert_refused

Cli = Callable[..., Any]
Break = Callable[[Path], list[object]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with source, base, data.jsonl and the recipe short.json; token caches go elsewhere."""
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CTXFORGE_NO_PROGRESS", "1")
    folder = tmp_path / "here"
    build(folder)
    (folder / "short.json").write_text(json.dumps(SHORT))
    return folder


def command(root: Path, *more: object, data: str | None = "data.jsonl") -> list[object]:
    """A calibration of `root`/base to `root`/out."""
    given = [] if data is None else ["--data", root / data]
    return ["calibrate", root / "base", "--recipe", root / "short.json", *given, "--out", root / "out", *more]


def test_what_a_calibration_says(cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CTXFORGE_NO_PROGRESS")
    source, base = tree(root / "source"), tree(root / "base")
    ran = cli(*command(root))
    assert ran.code == 0, ran.err
    assert ran.out == f"{root / 'out'}\n"
    # No bar where stderr is no terminal, but a line each half minute.
    assert not {"\r", "\x1b"} & set(ran.err)
    lines = [line for line in ran.err.splitlines() if not line.endswith(" %")]
    assert lines[0].startswith("short: 6 steps, ")
    assert lines[1].startswith("step 6 was kept: far context ")
    assert lines[2].startswith("as written and loaded again: far context ")
    assert lines[-1] == f"log: {root / 'out.calibration' / 'log.jsonl'}"
    assert cli("check", root / "out").code == 0
    assert (tree(root / "source"), tree(root / "base")) == (source, base)
    assert left(root) == []
    assert {path.name for path in (root / "out.calibration").iterdir()} == {"log.jsonl", "reference.json"}

    ran = cli(*command(root, "--json", "--overwrite"))
    assert ran.code == 0, ran.err
    document = ran.document
    assert (document["command"], document["status"]) == ("calibrate", "ok")
    found = document["calibration"]
    assert (found["steps"], found["best_step"], found["ended"]) == (6, 6, "all 6 steps are done")
    assert found["held_out"]["scores"] == [
        [one["step"], one["score"]] for one in events(root / "out.calibration" / "log.jsonl", "held_out")
    ]
    ran = cli(*command(root, "--quiet", "--overwrite"))
    assert (ran.code, ran.err) == (0, "")


def test_an_unchanged_model_is_said_to_be_one(cli: Cli, root: Path) -> None:
    ran = cli(*command(root, "--set", "optimiser.learning_rate=0.9", "--set", "adapter=full", "--quiet"))
    assert ran.code == 0, ran.err
    assert ran.err.startswith("Warning: no step scored better on held-out text than the checkpoint before")
    assert weights(root / "out") == weights(root / "base")


def test_extend_and_calibrate_in_one(cli: Cli, root: Path) -> None:
    """The same weights as by two commands, and the provenance of both."""
    given = ["--data", root / "data.jsonl", "--out", root / "one", "--json"]
    ran = cli("extend", root / "source", "-m", "pi", "--to", "2x", "--calibrate", root / "short.json", *given)
    assert ran.code == 0, ran.err
    assert ran.document["calibration"]["best_step"] == 6
    assert cli(*command(root)).code == 0
    assert weights(root / "one") == weights(root / "out")
    one, out = (json.loads((root / name / "ctxforge.json").read_text()) for name in ("one", "out"))
    assert one["calibrations"][0]["held_out"] == out["calibrations"][0]["held_out"]
    assert one["source"]["name"] == out["source"]["name"] == str(root / "source")
    assert {path.name for path in (root / "one.calibration").iterdir()} == {"log.jsonl", "reference.json"}
    assert left(root) == []
    # A refused one leaves nothing, nor does it change the output that is there.
    before = tree(root)
    refused = cli("extend", root / "source", "-m", "pi", "--to", "2x", "--calibrate", "quick", "--out", root / "two")
    assert_refused(refused, "no data to calibrate on", 2)
    assert tree(root) == before
    assert not (root / "two.calibration").exists()


def test_a_plan_trains_and_writes_nothing(cli: Cli, root: Path, tmp_path: Path) -> None:
    before = tree(root)
    ran = cli(*command(root, "--plan"))
    assert ran.code == 0, ran.err
    for words in ("32 -> 64 tokens", "6 steps of 3 rows of 64 tokens", "every 3 steps", "data.jsonl", "GiB on the cpu"):
        assert words in ran.out
    ran = cli(*command(root, "--plan", "--json", "--steps", "9", "--seed", "4"))
    assert (ran.document["plan"]["stages"][0]["steps"], ran.document["plan"]["seed"]) == (9, 4)
    assert ran.document["memory"]["total"] >= ran.document["memory"]["estimate"]["weights"] > 0
    assert tree(root) == before
    assert not (tmp_path / "cache").exists()
    assert not (root / "out.calibration").exists()


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom ctxforge.cli import main\nsys.argv = ['ctxforge', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for arguments in (["calibrate", "--help"], ["extend", "--help"]):
        ran = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(ran, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "--data" in done.stdout


def texts(*found: str) -> Break:
    def write(root: Path) -> list[object]:
        write_jsonl(root / "data.jsonl", found)
        return []

    return write


def data(content: bytes) -> Break:
    def write(root: Path) -> list[object]:
        (root / "data.jsonl").write_bytes(content)
        return []

    return write


def change(*settings: str) -> Break:
    return lambda _root: [word for one in settings for word in ("--set", one)]


def quantised(root: Path) -> list[object]:
    path = root / "base" / "config.json"
    found = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "fp8"}}
    path.write_text(json.dumps(found))
    return []


def no_tokenizer(root: Path) -> list[object]:
    (root / "base" / "tokenizer.json").unlink()
    return []


def work_in_a_file(root: Path) -> list[object]:
    (root / "file").write_text("x")
    return ["--work", root / "file" / "work"]


def work_is_a_file(root: Path) -> list[object]:
    (root / "out.calibration").write_text("x")
    return []


def taken(root: Path) -> list[object]:
    (root / "out").mkdir()
    (root / "out" / "precious.txt").write_text("keep")
    return []


def guarded(root: Path) -> list[object]:
    text = bundled_text()[:4000]
    write_jsonl(root / "data.jsonl", [text])
    (root / "guard.txt").write_text(text)
    return ["--guard-text", root / "guard.txt"]


CASES: list[tuple[str, Break, tuple[str, ...], int]] = [
    ("data shorter than a row", texts(*stretches(9, 40)), ("9 documents", "none reaches 64", "train at"), 2),
    ("data without a record", data(b"\n\n"), ("holds no records",), 2),
    ("an empty file", data(b""), ("holds no records",), 2),
    ("a binary file", data(bytes(range(256)) * 8), ("binary",), 2),
    ("one line with an array", data(b'[{"text": "' + b"a" * 300 + b'"}]'), ("JSON array", "jq"), 2),
    ("a line that is no JSON", data(b'{"text": "a"}\n{"text": \n'), ("line 2", "not JSON"), 2),
    ("a column that isn't there", lambda r: ["--data", f"{r / 'data.jsonl'}#body"], ("body", "line 1"), 2),
    ("no such file", lambda r: ["--data", r / "none.jsonl"], ("there is no data at",), 2),
    ("a suffix that isn't read", lambda r: ["--data", r / "base" / "config.json"], ("suffix",), 2),
    ("a share that leaves nothing", change("held_out.share=0.0001"), ("leaves nothing held out",), 2),
    ("a share that leaves nothing to train on", change("held_out.share=0.999"), ("share",), 2),
    ("a quantised base", quantised, ("quantised",), 3),
    ("no tokenizer", no_tokenizer, ("base",), 2),
    ("an output that is there", taken, ("out",), 2),
    ("a run's folder inside a file", work_in_a_file, ("file",), 5),
    ("a run's folder that is a file", work_is_a_file, ("out.calibration",), 5),
    ("a run's folder in the base", lambda r: ["--work", r / "base" / "work"], ("--work",), 2),
    ("a run's folder in the source", lambda r: ["--work", r / "source"], ("--work",), 2),
    ("a run's folder that is the output", lambda r: ["--work", r / "out"], ("--work",), 2),
    ("an unknown recipe", lambda _r: ["--recipe", "quik"], ("quik", "did you mean quick?"), 2),
    ("a recipe that is nowhere", lambda r: ["--recipe", r / "none.toml"], ("does not exist",), 2),
    ("an unknown field", change("rows.cuont=3"), ("cuont", "did you mean count?"), 2),
    ("an unknown section", change("row.count=3"), ("row", "did you mean rows?"), 2),
    ("no change", change("rows.count"), ("section.field=value",), 2),
    ("a wrong type", change("rows.count=many"), ("rows.count",), 2),
    ("a number that can't be", change("optimiser.learning_rate=7"), ("optimiser.learning_rate",), 2),
    ("an unknown placement", change("rows.placement=random"), ("rows.placement",), 2),
    ("an unknown adapter", change("adapter=loraa"), ("loraa",), 2),
    ("rows longer than the target", change("rows.length=96"), ("96", "rows.length"), 2),
    ("a target below the trained length", lambda _r: ["--to", "16"], ("exceeds the target",), 2),
    ("a length that is none", lambda _r: ["--to", "long"], ("long",), 2),
    ("no steps", lambda _r: ["--steps", "0"], ("--steps",), 2),
    ("an attention that isn't there", lambda _r: ["--attention", "magic"], ("magic", "--attention"), 2),
    ("a text to guard that isn't there", lambda r: ["--guard-text", r / "none.txt"], ("none.txt",), 2),
    ("a guard that leaves nothing", guarded, ("sharing a passage",), 2),
    ("a source that isn't there", lambda r: ["--source", r / "nowhere"], ("nowhere",), 2),
]


@pytest.mark.parametrize(("name", "broken", "words", "code"), CASES, ids=[case[0] for case in CASES])
def test_bad_input(cli: Cli, root: Path, name: str, broken: Break, words: tuple[str, ...], code: int) -> None:
    more = broken(root)
    before = tree(root)
    # A later --data stands beside an earlier one, so that one of them is enough to be refused for.
    ran = cli(*command(root, *more, data=None if "--data" in more else "data.jsonl"))
    for one in words:
        assert_refused(ran, one, code)
    assert tree(root) == before
    assert left(root) == []
    assert not (root / "out.calibration").is_dir()


def test_no_data(cli: Cli, root: Path) -> None:
    assert_refused(cli(*command(root, data=None)), "no data to calibrate on", 2)
    ran = cli(*command(root, "--json", data=None))
    assert ran.code == 2
    assert ran.document["status"] == "error"
    assert "--data" in ran.document["error"]["remedy"]
    assert not (root / "out.calibration").exists()


def test_outputs_that_cannot_be(cli: Cli, root: Path) -> None:
    before = tree(root)
    for out in (root / "base", root / "base" / "inside", root / "nowhere" / "out"):
        for more in ([], ["--overwrite"]):
            assert_refused(cli(*command(root, "--out", out, *more)), str(out.parent), 2)
    assert tree(root) == before
    assert sorted(path.name for path in root.iterdir()) == ["base", "data.jsonl", "short.json", "source"]


def test_a_run_in_the_same_folder(cli: Cli, root: Path) -> None:
    work = root / "work"
    work.mkdir()
    with locked(work):
        assert_refused(cli(*command(root, "--work", work)), "Another run of ctxforge", 5)
    given = ["--data", root / "data.jsonl", "--out", root / "out", "--work", work]
    with locked(work):
        refused = cli("extend", root / "source", "-m", "pi", "--to", "2x", "--calibrate", root / "short.json", *given)
        assert_refused(refused, "Another run of ctxforge", 5)
    assert not (root / "out").exists()
    assert cli(*command(root, "--work", work)).code == 0


FILES: list[tuple[str, str, tuple[str, ...]]] = [
    ("r.toml", "steps = \n", ("not valid TOML",)),
    ("r.json", '{"steps": 3,}', ("not valid JSON",)),
    ("r.json", "[1]", ("no table",)),
    ("r.toml", 'base = "quik"\n', ("did you mean quick?",)),
    ("r.toml", 'base = "quick"\n[rows]\ncuont = 3\n', ("rows.cuont", "did you mean rows.count?")),
    ("r.toml", 'base = "quick"\nstep = 3\n', ("step", "did you mean steps?")),
    ("r.toml", 'base = "quick"\n[optimizer]\nwarmup = 3\n', ("optimizer", "did you mean optimiser?")),
    ("r.toml", 'base = "quick"\nsteps = "many"\n', ("steps",)),
    ("r.toml", 'base = "quick"\nsteps = 0\n', ("steps",)),
    ("r.toml", 'base = "quick"\n[adapter]\nrank = 0\n', ("rank",)),
    ("r.toml", 'base = "quick"\nadapter = "full"\nrows = 3\n', ("rows",)),
]


@pytest.mark.parametrize(("name", "content", "words"), FILES)
def test_recipe_files_that_are_wrong(cli: Cli, root: Path, name: str, content: str, words: tuple[str, ...]) -> None:
    (root / name).write_text(content)
    for one in words:
        assert_refused(cli(*command(root, "--recipe", root / name, "--plan")), one, 2)


def test_recipe_files(cli: Cli, root: Path) -> None:
    """A file changes its base, in sections; --set changes the file; --steps is the last word."""
    (root / "mine.toml").write_text(
        'base = "full"\nsteps = 7\nadapter = "rslora"\n[rows]\ncount = 5\n[held_out]\nwindows = 2\n'
    )
    ran = cli(*command(root, "--recipe", root / "mine.toml", "--set", "rows.count=6", "--plan", "--json"))
    assert ran.code == 0, ran.err
    found = ran.document["plan"]["recipe"]
    assert (found["name"], found["steps"], found["rows"]["count"]) == ("mine", 7, 6)
    assert (found["rows"]["placement"], found["rows"]["short_share"]) == ("full-length", 0.3)
    assert (found["held_out"]["windows"], found["held_out"]["short_windows"]) == (2, 16)
    assert (found["adapter"]["kind"], found["adapter"]["rslora"]) == ("lora", True)
    assert found["optimiser"]["warmup"] == 20
    ran = cli(*command(root, "--recipe", root / "mine.toml", "--steps", "3", "--plan", "--json"))
    assert ran.document["plan"]["recipe"]["steps"] == 3


@pytest.mark.parametrize(
    "given", [["--steps", "3"], ["--set", "rows.count=2"], ["--seed", "1"], ["--data", "x.jsonl"], ["--work", "w"]]
)
def test_options_of_a_calibration_without_one(cli: Cli, root: Path, given: list[str]) -> None:
    before = tree(root)
    refused = cli("extend", root / "source", "-m", "pi", "--to", "2x", "--out", root / "out", *given)
    assert_refused(refused, f"{given[0]} is of a calibration", 2)
    assert "--calibrate" in refused.err
    assert tree(root) == before
