"""Every bad input that users bring: one line of cause, one of remedy, the documented exit code, nothing written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.llama_folder import CONFIG, TENSORS, safetensors_bytes, write_folder

Break = Callable[[Path], None]


def edit(**changes: object) -> Break:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**CONFIG, **changes})) and None


def write(name: str, content: str | bytes) -> Break:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def remove(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def both(*breaks: Break) -> Break:
    def apply(folder: Path) -> None:
        for one in breaks:
            one(folder)

    return apply


def shards(mapping: dict[str, str], present: dict[str, bytes]) -> Break:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = {"metadata": {"total_size": 768}, "weight_map": mapping}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for name, data in present.items():
            (folder / name).write_bytes(data)

    return apply


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NAMES = list(TENSORS)
GOOD = safetensors_bytes()
FIRST = safetensors_bytes({NAMES[0]: TENSORS[NAMES[0]]})
SECOND = safetensors_bytes({NAMES[1]: TENSORS[NAMES[1]]})


def overlapping() -> bytes:
    header = json.dumps(
        {
            "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
            "b": {"dtype": "BF16", "shape": [4], "data_offsets": [4, 12]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(12)


def duplicated() -> bytes:
    entry = '"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}'
    header = f"{{{entry}, {entry}}}".encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


# name, what is broken, words of the message, exit code
CASES: list[tuple[str, Break, str, int]] = [
    ("no config.json", remove("config.json"), "config.json", 2),
    (
        "the original Meta layout",
        both(
            remove("config.json"),
            remove("model.safetensors"),
            write("params.json", "{}"),
            write("consolidated.00.pth", b"x"),
        ),
        "-hf",
        2,
    ),
    ("config.json is not JSON", write("config.json", "{not json"), "config.json", 2),
    ("config.json is a list", write("config.json", "[1]"), "object", 2),
    ("a string for a number", edit(hidden_size="big", head_dim=None), "hidden_size", 2),
    ("NaN", write("config.json", json.dumps({**CONFIG, "rope_theta": float("nan")})), "finite", 2),
    ("a huge value", write("config.json", json.dumps(CONFIG).replace("4096", "1" + "0" * 400)), "config.json", 2),
    ("duplicated keys", write("config.json", json.dumps(CONFIG)[:-1] + ', "model_type": "llama"}'), "model_type", 2),
    ("an unknown model_type", edit(model_type="mamba2"), "mamba2", 3),
    ("no weights", remove("model.safetensors"), "weights", 2),
    ("a truncated shard", write("model.safetensors", GOOD[:-3]), "model.safetensors", 2),
    ("overlapping tensors", write("model.safetensors", overlapping()), "model.safetensors", 2),
    ("duplicated tensor names", write("model.safetensors", duplicated()), "model.safetensors", 2),
    ("a header longer than the file", write("model.safetensors", struct.pack("<Q", 10**6) + b"{}"), "header", 2),
    ("a missing shard", shards({NAMES[0]: ONE, NAMES[1]: TWO}, {ONE: FIRST}), TWO, 2),
    (
        "an extra shard",
        shards({NAMES[0]: ONE}, {ONE: FIRST, TWO: SECOND}),
        TWO,
        2,
    ),
    ("an index that points outside", shards({NAMES[0]: "../x.safetensors"}, {}), "../x.safetensors", 2),
    ("an index with an absolute path", shards({NAMES[0]: "/etc/passwd"}, {}), "/etc/passwd", 2),
    ("an unknown rope type", edit(rope_scaling={"rope_type": "spiral", "factor": 2.0}), "spiral", 3),
    (
        "contradicting dialects",
        edit(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        "contradicts itself",
        2,
    ),
]


def snapshot(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_refused(ran: object, words: str, code: int) -> None:
    assert ran.code == code, ran.err
    lines = [line for line in ran.err.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 2, ran.err
    assert lines[0].startswith("Error: ")
    assert lines[1].startswith("Hint: ")
    assert len(lines[1]) > len("Hint: ")
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(("name", "broken", "words", "code"), CASES, ids=[case[0] for case in CASES])
def test_broken_sources(
    cli: Callable[..., object], tmp_path: Path, name: str, broken: Break, words: str, code: int
) -> None:
    source = write_folder(tmp_path / "source")
    broken(source)
    before = snapshot(source)
    for command in (
        ("inspect", source),
        ("plan", source, "-m", "yarn", "--to", "16k"),
        ("extend", source, "-m", "yarn", "--to", "16k", "-o", tmp_path / "out"),
    ):
        assert_refused(cli(*command), words, code)
    assert snapshot(source) == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["source"]


def test_a_symlink_loop(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(source / "model.safetensors")
    assert_refused(cli("inspect", source), "model.safetensors", 2)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root reads everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    import subprocess
    import sys

    source = write_folder(tmp_path / "source")
    (source / "model.safetensors").chmod(0)
    tmp_path.chmod(0o755)
    for parent in [*tmp_path.parents]:
        if str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    command = [sys.executable, "-m", "ctxforge", "inspect", str(source)]
    if os.geteuid() == 0:
        # Root ignores modes unless it drops the capability to.
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "Error: " in done.stderr


LENGTHS = [
    ("4096", "not longer", 2),
    ("1k", "not longer", 2),
    ("0", "not positive", 2),
    ("-5", "not a length", 2),
    ("16384.5", "whole number", 2),
    ("99999999999999999", "times the trained length", 2),
    ("sixteen", "not a length", 2),
]


@pytest.mark.parametrize(("length", "words", "code"), LENGTHS)
def test_lengths(cli: Callable[..., object], tmp_path: Path, length: str, words: str, code: int) -> None:
    source = write_folder(tmp_path / "source")
    assert_refused(cli("extend", source, "-m", "yarn", f"--to={length}", "-o", tmp_path / "out"), words, code)
    assert not (tmp_path / "out").exists()


def test_no_target(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    assert_refused(cli("extend", source, "-m", "yarn", "-o", tmp_path / "out"), "no target length", 2)


def test_quantised_weights_where_a_fold_is_needed(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    (source / "model.safetensors").write_bytes(safetensors_bytes(dtype="F8_E4M3", item=1))
    refused = cli("extend", source, "-m", "ntk-by-parts", "--to", "16k", "-o", tmp_path / "out")
    assert_refused(refused, "quantised", 3)
    assert cli("extend", source, "-m", "yarn", "--to", "16k", "-o", tmp_path / "out").code == 0


def test_outputs_that_cannot_be(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    before = snapshot(source)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("keep")
    for out in (taken, source, source / "inside"):
        refused = cli("extend", source, "-m", "yarn", "--to", "16k", "-o", out)
        assert_refused(refused, str(out), 2)
    # Even --overwrite never replaces the source, nor what contains it.
    for out in (source, tmp_path):
        assert cli("extend", source, "-m", "yarn", "--to", "16k", "-o", out, "--overwrite").code == 2
    assert snapshot(source) == before
    assert (taken / "precious.txt").read_text() == "keep"


def test_usage_errors_are_two_lines(cli: Callable[..., object], tmp_path: Path) -> None:
    assert_refused(cli("extned", "x"), "extend", 2)
    assert_refused(cli("extend", "bundled", "--out", tmp_path / "out"), "--method", 2)
    assert_refused(cli("extend", "bundled", "-m", "yarn", "--frobnicate"), "--frobnicate", 2)
    assert_refused(cli("plan", "bundled", "-m", "yarn", "--to", "4x", "-p", "beta_fast"), "not a parameter", 2)
    assert_refused(cli("plan", "bundled", "-m", "yarn", "--to", "4x", "--temperature", "99"), "temperature", 2)
    assert_refused(cli("verify", tmp_path, "--text", tmp_path / "none.txt"), "does not exist", 2)


def test_a_source_that_is_nowhere(cli: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    refused = cli("inspect", "./no-such-folder")
    assert refused.code == 2
    assert "Traceback" not in refused.err


def test_a_relative_target_on_an_undecidable_length(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", rope_scaling={"type": "linear", "factor": 4.0})
    refused = cli("plan", source, "-m", "yarn", "--to", "4x")
    assert_refused(refused, "not decidable", 3)
    assert "--trained-length" in refused.err
    assert cli("plan", source, "-m", "yarn", "--to", "4x", "--trained-length", "16k").code == 0
