"""What is wrong in a batch file is told with file, line and column, and with what was meant; nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch.files import source, write
from tests.conftest import Ran

HEAD = "version: 1\ndefaults: {source: bundled, method: yarn, to: 4x}\n"

# text, what follows the file's name in the cause, words of the remedy, exit code
CASES = [
    ("version: 1\njob: []\n", ":2:1: a batch file has no entry 'job'", "did you mean jobs?", 2),
    ("jobs: []\n", ":1:1: the file says no version", "version: 1", 2),
    ("version: 2\n", ":1:10: version 2 of the format", "newer ctxforge", 2),
    ("version: true\n", ":1:10: version True", "", 2),
    (HEAD, " has no jobs", "matrix", 2),
    (HEAD + "jobs:\n  - metod: pi\n", ":4:5: the job has no entry 'metod'", "did you mean method?", 2),
    (HEAD + "jobs:\n  - method: {nam: pi}\n", ":4:14: method has no entry 'nam'", "did you mean name?", 2),
    (HEAD + "jobs:\n  - verify: {teir: smoke}\n", ":4:14: verify has no entry 'teir'", "did you mean tier?", 2),
    (HEAD + "jobs:\n  - verify: {tier: slow}\n", ":4:14: verify.tier: input should be 'smoke'", "schema", 2),
    (HEAD + "jobs:\n  - link: yes\n", ":4:5: link: input should be a valid boolean", "", 2),
    (HEAD + "jobs:\n  - to: true\n", ":4:5: to: input should be a valid string or input", "", 2),
    (HEAD + "jobs:\n  - to: 1.5\n", ":4:5: to: ", "", 2),
    (HEAD + "jobs:\n  - 3\n", ":4:5: a job is a number, not a mapping", "", 2),
    (HEAD + "jobs:\n  name: x\n", ":4:3: jobs is a mapping, not a list", "", 2),
    (HEAD + "jobs:\n  - {to: 4x}\n  - method: yarm\n", ":5:5: job bundled-yarm-4x: ", "yarn", 2),
    (HEAD + "jobs:\n  - attach: self-extent\n", ":4:5: job bundled-yarn-self-extent-4x: ", "self-extend", 2),
    (HEAD + "jobs:\n  - method: 'yarn:beta_fats=3'\n", ":4:5: job bundled-yarn-4x: ", "beta_fast", 2),
    (HEAD + "jobs:\n  - method: 'yarn:beta_fast'\n", ":4:13: 'beta_fast' is not a parameter", "key=value", 2),
    (HEAD + "jobs:\n  - source: nowhere/at/all\n", ":4:5: job all-yarn-4x: There is no file or folder", "", 2),
    (HEAD + "jobs:\n  - to: 4y\n", ":4:5: job bundled-yarn-4y: '4y' is not a length", "", 2),
    ("version: 1\njobs:\n  - method: yarn\n", ":3:5: the job has no source", "", 2),
    ("version: 1\njobs:\n  - {source: bundled, to: 4x}\n", ":3:5: job bundled-none-4x: neither a method", "", 2),
    (HEAD + "jobs:\n  - {name: a}\n  - name: a\n", ":5:5: two jobs are called a (the first at", "", 2),
    (HEAD + "jobs:\n  - {to: 4x}\n  - {to: 4x}\n", ":5:5: two jobs are called bundled-yarn-4x", "", 2),
    (HEAD + "jobs:\n  - name: a/b\n", ":4:5: 'a/b' is no name", "", 2),
    (HEAD + "jobs:\n  - {name: a, out: x}\n  - name: b\n    out: x\n", ":6:5: jobs a and b would both", "out", 2),
    (HEAD + "jobs:\n  - {to: 4x}\n  - {to: 2048}\n", ":5:5: jobs bundled-yarn-4x and bundled-yarn-2048 w", "", 2),
    (HEAD + "jobs:\n  - {name: a, out: x}\n  - name: b\n    out: x/y\n", ":6:5: the output of job b lies in", "", 2),
    (HEAD + "jobs:\n  - out: '{nmae}'\n", ":4:5: '{nmae}' has no field {nmae}", "did you mean {name}?", 2),
    (HEAD + "jobs:\n  - out: '{name'\n", ":4:5: '{name' has a brace", "", 2),
    (HEAD + "jobs:\n  - out: '{name.x}'\n", ":4:5: '{name.x}' has no field", "", 2),
    (HEAD + "jobs:\n  - out: no/such/../../../x/y\n", ":4:5: job bundled-yarn-4x: The folder", "mkdir", 2),
    (HEAD + "jobs:\n  - verify: {trust_remote_code: true}\n", ":4:14: job bundled-yarn-4x turns on trust", "type", 2),
    (HEAD + "jobs:\n  - calibrate:\n      trust_remote_code: true\n", ":5:7: job bundled-yarn-4x turns on", "type", 2),
    (HEAD + "jobs:\n  - calibrate: quik\n", ":4:5: job bundled-yarn-4x: there is no recipe 'quik'", "quick", 2),
    (HEAD + "jobs:\n  - calibrate: {recipe: {base: quick, stps: 3}}\n", ":4:5: job bundled-yarn-4x: a r", "steps", 2),
    (HEAD + "jobs:\n  - verify: {gates: {short_nl: 0.1}}\n", ":4:5: job bundled-yarn-4x: ", "short_nll", 2),
    (HEAD + "jobs:\n  - verify: {text_path: none.txt}\n", ":4:5: job bundled-yarn-4x: none.txt does not exist", "", 2),
    (HEAD + "jobs:\n  - resources: {memory: lots}\n", ":4:5: job bundled-yarn-4x: 'lots' is no amount", "8GB", 2),
    (HEAD + "jobs:\n  - version: 7\n", ":4:5: job bundled-yarn-4x: version 7 of a job", "", 2),
    (HEAD + "matrix: {}\n", ":3:9: the matrix has no axis", "", 2),
    (HEAD + "matrix: {lengths: []}\n", ":3:10: lengths of the matrix is empty", "", 2),
    (HEAD + "matrix: {length: [4x]}\n", ":3:10: a matrix has no entry 'length'", "did you mean lengths?", 2),
    (HEAD + "matrix: {lengths: 4x}\n", ":3:19: an axis of the matrix is text, not a list", "", 2),
    (HEAD + "matrix: {lengths: [4x], exclude: [{length: 8x}]}\n", ":3:35: this exclude leaves no", "", 2),
    (HEAD + "matrix: {lengths: [4x], exclude: [{size: 8x}]}\n", ":3:36: an exclude has no entry 'size'", "", 2),
    (HEAD + "include: [none.yaml]\n", ":3:11: the included file", "relative", 2),
    (HEAD + "include: [[x]]\n", ":3:11: an include is no path", "", 2),
    (HEAD + "output: 3\n", ":3:9: output is no path", "", 2),
]  # fmt: skip


@pytest.mark.parametrize(("text", "cause", "remedy", "code"), CASES, ids=[case[1][:40] for case in CASES])
def test_a_mistake_is_told_with_its_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., Ran],
    text: str,
    cause: str,
    remedy: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.yaml", text)
    done = cli("run", "b.yaml", "--json", "-q")
    assert done.code == code, done.err
    error = done.document["error"]
    assert error["cause"].startswith("b.yaml" + cause), error["cause"]
    assert remedy in error["remedy"], error["remedy"]
    assert [path.name for path in tmp_path.iterdir()] == ["b.yaml"]


def test_trust_remote_code_has_to_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.yaml", HEAD + "jobs:\n  - verify: {tier: smoke, trust_remote_code: true}\n")
    assert cli("run", "b.yaml", "--dry-run", "--trust-remote-code").code == 0
    monkeypatch.setenv("CTXFORGE_RUN_TRUST_REMOTE_CODE", "1")
    assert cli("run", "b.yaml", "--dry-run").code == 2


def test_a_matrix_of_thousands_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "s")
    lengths = ", ".join(str(4096 + i) for i in range(1001))
    write(tmp_path / "b.yaml", f"version: 1\nmatrix: {{models: [s], methods: [pi], lengths: [{lengths}]}}\n")
    done = cli("run", "b.yaml", "--json")
    assert done.code == 2
    assert "makes 1001 jobs" in done.document["error"]["cause"]
    assert "--yes" in done.document["error"]["remedy"]
    done = cli("run", "b.yaml", "--dry-run", "--yes", "--json", "-q", "--only", "s-pi-4097")
    assert [job["job"] for job in done.document["jobs"]] == ["s-pi-4097"]
    many = ", ".join(["4x"] * 400)
    write(tmp_path / "b.yaml", f"version: 1\nmatrix: {{models: [{many}], methods: [{many}], lengths: [{many}]}}\n")
    assert "64000000 jobs, more than 100000" in cli("run", "b.yaml", "--yes", "--json").document["error"]["cause"]


def test_an_output_over_another_jobs_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "s")
    source(tmp_path / "t")
    jobs = "jobs:\n  - {source: s, out: t, overwrite: true}\n  - {source: t}\n"
    write(tmp_path / "b.yaml", f"version: 1\ndefaults: {{method: pi, to: 4x}}\n{jobs}")
    cause = cli("run", "b.yaml", "--json").document["error"]["cause"]
    assert "job s-pi-4x would write over the source of job t-pi-4x" in cause


def test_only_names_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.yaml", HEAD + "jobs: [{name: first}, {name: second}]\n")
    error = cli("run", "b.yaml", "--only", "frist", "--json").document["error"]
    assert "--only frist matches no job" in error["cause"]
    assert "did you mean first?" in error["remedy"]
    done = cli("run", "b.yaml", "--dry-run", "--only", "s*", "--json", "-q")
    assert [job["job"] for job in done.document["jobs"]] == ["second"]
