"""Methods asked for wrongly: one line of cause, one of remedy, the documented exit code, nothing written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ran
from tests.llama_folder import safetensors_bytes, write_folder

GPT2 = {
    "model_type": "gpt2",
    "n_positions": 1024,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "max_position_embeddings": None,
}

# arguments after the source, words of the cause, words of the remedy, exit code
CASES: list[tuple[str, list[str], str, str, int]] = [
    ("another method's option", ["-m", "ntk:beta_fast=64"], "ntk has no parameter 'beta_fast'", "critical_pair", 2),
    ("a misspelt method", ["-m", "yarm"], "unknown method 'yarm'", "did you mean 'yarn'", 2),
    ("a misspelt modifier", ["-m", "yarn+resonence"], "resonence", "resonance", 2),
    ("a method for learned tables", ["-m", "learned-interpolation"], "don't combine", "yarn", 3),
    ("a method for ALiBi", ["-m", "alibi-interpolation"], "don't combine", "yarn", 3),
    ("a position scheme", ["-m", "randomised-positions"], "calibration", "", 3),
    ("a negative temperature", ["-m", "yarn", "--temperature", "-1"], "temperature of -1", "0.1 and 10", 2),
    ("no temperature at all", ["-m", "yarn", "--temperature", "0"], "temperature of 0", "0.1 and 10", 2),
    ("a temperature that is no number", ["-m", "yarn", "--temperature", "nan"], "temperature of nan", "0.1 and 10", 2),
    ("no factors", ["-m", "longrope"], "factors", "factors=", 2),
    ("a factor file that is not there", ["-m", "longrope:factors=nowhere.json"], "nowhere.json", "", 2),
    ("too few factors", ["-m", "longrope:factors=FOLDER/short.json"], "2", "one number for each rotated pair", 2),
    ("falling factors", ["-m", "longrope:factors=FOLDER/falling.json"], "decreases at pair 1", "monotone", 2),
    ("a factor of zero", ["-m", "longrope:factors=FOLDER/zero.json"], "0", "above 0", 2),
    ("a negative factor", ["-m", "longrope:factors=FOLDER/negative.json"], "-2", "above 0", 2),
    ("a factor that is no number", ["-m", "longrope:factors=FOLDER/nan.json"], "", "", 2),
    ("factors that are no list", ["-m", "longrope:factors=FOLDER/word.json"], "", "", 2),
    ("an unknown portability", ["-m", "yarn", "--portability", "everywhere"], "everywhere", "--help", 2),
]
FACTORS = {
    "short": [1.0, 2.0],
    "falling": [4.0, 3.0, 2.0, 1.0],
    "zero": [1.0, 0.0, 2.0, 4.0],
    "negative": [1.0, -2.0, 2.0, 4.0],
    "nan": [1.0, float("nan"), 2.0, 4.0],
    "word": "four",
}


def _state(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _refused(ran: Ran, cause: str, remedy: str, code: int, out: Path) -> None:
    lines = ran.err.strip().splitlines()
    assert ran.code == code, ran.err
    assert len(lines) == 2
    assert lines[0].startswith("Error: ")
    assert cause in lines[0]
    assert lines[1].startswith("Hint: ")
    assert remedy in lines[1]
    assert ran.out == ""
    assert not out.exists()


@pytest.mark.parametrize(("name", "arguments", "cause", "remedy", "code"), CASES, ids=[case[0] for case in CASES])
def test_refused_in_two_lines(
    cli: Callable[..., Ran], tmp_path: Path, name: str, arguments: list[str], cause: str, remedy: str, code: int
) -> None:
    source = write_folder(tmp_path / "source")
    for stem, factors in FACTORS.items():
        (tmp_path / f"{stem}.json").write_text(json.dumps(factors))
    before = _state(source)
    out = tmp_path / "out"
    filled = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    ran = cli("extend", source, *filled, "--to", "4x", "--out", out)
    _refused(ran, cause, remedy, code, out)
    assert _state(source) == before


def test_a_rope_method_on_a_learned_table(cli: Callable[..., Ran], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", **GPT2)
    ran = cli("extend", source, "-m", "yarn", "--to", "4x", "--out", tmp_path / "out")
    _refused(ran, "gpt2 has a table of learned positions", "learned-interpolation", 3, tmp_path / "out")


def test_a_type_refused_with_its_reason(cli: Callable[..., Ran], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", model_type="mamba")
    ran = cli("extend", source, "-m", "yarn", "--to", "4x", "--out", tmp_path / "out")
    _refused(ran, "state", "", 3, tmp_path / "out")


def _quantised(folder: Path, **changes: Any) -> Path:
    write_folder(folder, **changes)
    tensors = {"model.embed_tokens.weight": (8, 16), "model.layers.0.self_attn.q_proj.weight": (16, 16)}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, dtype="I8", item=1))
    return folder


def test_a_fold_on_quantised_weights(cli: Callable[..., Ran], tmp_path: Path) -> None:
    source = _quantised(tmp_path / "source")
    ran = cli("extend", source, "-m", "ntk-by-parts", "--to", "4x", "--out", tmp_path / "out")
    _refused(ran, "quantised (I8)", "--portability exact", 3, tmp_path / "out")
    # The way that the remedy names works: no weight is touched.
    ran = cli("extend", source, "-m", "ntk-by-parts", "--portability", "exact", "--to", "4x", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_scaling"]["attention_factor"] == 1.0


def test_dialects_that_disagree(cli: Callable[..., Ran], tmp_path: Path) -> None:
    source = write_folder(
        tmp_path / "source", rope_theta=10000.0, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    ran = cli("extend", source, "-m", "yarn", "--to", "4x", "--out", tmp_path / "out")
    _refused(ran, "contradicts itself", "rope_parameters", 2, tmp_path / "out")


def test_a_scaled_source_without_its_trained_length(cli: Callable[..., Ran], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", rope_scaling={"type": "linear", "factor": 4.0})
    ran = cli("extend", source, "-m", "yarn", "--to", "64k", "--out", tmp_path / "out")
    _refused(ran, "not decidable", "--trained-length", 3, tmp_path / "out")
