"""The commands end to end on the bundled model, in human and JSON form."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ctxforge
from ctxforge.errors import UsageError
from ctxforge.recipe import validated
from ctxforge.sources import bundled_model
from tests.llama_folder import CONFIG, write_folder

Run = Callable[..., object]


def test_help_imports_neither_torch_nor_rich() -> None:
    code = (
        "import sys; sys.argv = ['ctxforge', '--help']\n"
        "from ctxforge.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'rich', 'numpy', 'transformers', 'huggingface_hub', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(','.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout


def test_config_only_conversion_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, ctxforge\n"
        f"ctxforge.extend('bundled', method='yarn', to='4x', out={str(tmp_path / 'out')!r})\n"
        "heavy = {'torch', 'numpy', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(','.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_short_helps_in_the_table_equal_the_commands() -> None:
    import click

    from ctxforge.cli.main import COMMANDS, LazyGroup

    group = LazyGroup("ctxforge")
    for name, text in COMMANDS.items():
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.short_help == text
        assert command.help
        assert "Example: ctxforge" in (command.epilog or "")


def test_every_command_takes_json() -> None:
    import click

    from ctxforge.cli.main import COMMANDS, LazyGroup

    group = LazyGroup("ctxforge")
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert any("--json" in parameter.opts for parameter in command.params), name


def test_extend_then_check_then_inspect(cli: Callable[..., object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("extend", "bundled", "--method", "yarn", "--to", "4x", "--out", out)
    assert done.code == 0, done.err
    assert done.out.strip() == str(out)
    assert "short prompts pay" in done.err
    checked = cli("check", out, "--json")
    assert checked.code == 0
    report = checked.document["checkpoints"][0]
    assert {item["name"]: item["verdict"] for item in report["checks"]} == {
        "structure": "pass",
        "rope": "pass",
        "dialects": "pass",
        "integer-types": "pass",
        "max-positions": "pass",
        "tokenizer": "pass",
        "recorded-rotation": "pass",
        "provenance": "pass",
    }
    seen = cli("inspect", out, "--json").document
    assert seen["trained_length"] == 2048
    assert seen["original_length"] == 512
    source = bundled_model()
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    record = json.loads((out / "ctxforge.json").read_text())
    assert record["source"]["name"] == "bundled"
    assert len(record["plan"]["tables"][0]["divisors"]) == 32


def test_plan_writes_nothing_and_tells_everything(
    cli: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = cli("plan", "bundled", "-m", "ntk-by-parts", "--to", "4x")
    assert shown.code == 0
    for word in ("lambda by pair", "+++ config.json", "tensors edited", "fast to slow", "folded into"):
        assert word in shown.out
    document = cli("plan", "bundled", "-m", "yarn:beta_fast=16", "--to", "4x", "--json").document
    assert document["plan"]["parameters"]["beta_fast"] == 16
    assert document["bytes"]["to_download"] == 0
    assert document["bytes"]["to_write"] > 1_000_000
    assert not list(tmp_path.iterdir())


def test_json_output_is_one_document_and_stdout_holds_nothing_else(cli: Callable[..., object], tmp_path: Path) -> None:
    done = cli("extend", "bundled", "-m", "yarn", "--to", "4x", "--out", tmp_path / "out", "--json")
    assert done.document["schema_version"] == 1
    assert done.document["status"] == "ok"
    failed = cli("extend", "bundled", "-m", "yarn", "--to", "4x", "--out", tmp_path / "out", "--json")
    assert failed.code == 2
    assert failed.document["status"] == "error"
    assert failed.document["error"]["exit_code"] == 2
    assert failed.err.startswith("Error: ")


def test_methods_lists_and_explains(cli: Callable[..., object]) -> None:
    from ctxforge.rope.methods import METHODS

    listed = cli("methods", "--json").document
    assert [entry["name"] for entry in listed["methods"]] == list(METHODS)
    assert {"yarn", "ntk", "ntk-by-parts", "pi", "abf", "llama3", "dynamic-ntk", "none"} < set(METHODS)
    assert [entry["name"] for entry in listed["modifiers"]] == ["resonance"]
    assert "custom code" in cli("methods").out or not any(method.needs_code for method in METHODS.values())
    explained = cli("methods", "yarn")
    assert "2309.00071" in explained.out
    assert "beta_fast" in explained.out
    assert "Arena-Hard" in explained.out
    assert cli("methods", "linear").out == cli("methods", "pi").out
    assert "2403.00071" in cli("methods", "resonance").out
    assert cli("methods", "yran").code == 2


@pytest.mark.parametrize(
    ("method", "code", "word"),
    [
        ("yarn+resonance", 0, "yarn+resonance: 512 -> 2048"),
        ("mrrope-pro", 0, "mrrope-pro: 512 -> 2048"),
        ("linear", 0, "pi: 512 -> 2048"),
        ("yarn+resonanse", 2, "did you mean 'resonance'?"),
        ("resonance", 2, "yarn+resonance"),
        ("longrope", 2, "needs a list of factors"),
        ("longrope:factors=/no/such/list", 2, "can't be read"),
        ("randomised-positions", 3, "changes no config"),
    ],
)
def test_plan_takes_modifiers_aliases_and_lists(cli: Callable[..., object], method: str, code: int, word: str) -> None:
    done = cli("plan", "bundled", "--method", method, "--to", "4x")
    assert done.code == code, done.err
    assert word in done.out + done.err


def test_method_none_leaves_everything_as_it_is(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    done = cli("extend", source, "--method", "none", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_tokenizer_limit_follows_and_its_key_order_stays(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    assert cli("extend", source, "-m", "ntk", "--to", "16k", "-o", tmp_path / "out").code == 0
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert list(config.items()) == [("model_max_length", 16384), ("legacy", False)]
    emitted = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [key for key in emitted if key in CONFIG] == list(CONFIG)


def test_check_finds_what_was_broken_afterwards(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    out = ctxforge.extend(source, method="yarn", to="16k", out=tmp_path / "out").out
    path = out / "config.json"
    config = json.loads(path.read_text())

    def verdicts(**changes: object) -> set[str]:
        path.write_text(json.dumps({**config, **changes}))
        done = cli("check", out, "--json")
        assert done.code == 1
        return {item["name"] for item in done.document["checkpoints"][0]["checks"] if item["verdict"] == "fail"}

    assert verdicts(rope_theta=20000.0) == {"rope", "provenance"}
    assert "integer-types" in verdicts(max_position_embeddings=16384.0)
    assert "max-positions" in verdicts(max_position_embeddings=32768)
    theta = {**config["rope_parameters"], "rope_theta": 20000.0}
    assert "recorded-rotation" in verdicts(rope_theta=20000.0, rope_parameters=theta)
    missing = dict.fromkeys(("rope_scaling", "rope_theta"))
    assert "dialects" in verdicts(**missing)
    path.write_text(json.dumps(config))
    (out / "tokenizer_config.json").write_text('{"model_max_length": 4096}')
    failed = cli("check", out)
    assert failed.code == 1
    assert "fail  tokenizer" in failed.out


def test_python_api(tmp_path: Path) -> None:
    plan = ctxforge.plan("bundled", method="ntk", to=2048)
    assert plan.plan.scale == 4
    done = ctxforge.extend("bundled", method="ntk", to=2048, out=tmp_path / "out", link=True)
    assert ctxforge.check(done.out).passed
    assert ctxforge.inspect(done.out).geometry.trained_length == 2048
    assert done.report.tensor_bytes_written == 0


def test_python_api_refuses_wrong_types(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="temperature"):
        ctxforge.plan("bundled", method="yarn", to="4x", temperature="hot")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="zz"):
        validated({"source": "bundled", "method": {"name": "yarn", "zz": 1}})


def test_completion_and_version(cli: Callable[..., object]) -> None:
    done = cli("--version")
    assert done.code == 0
    assert done.out.startswith("ctxforge ")
    listed = subprocess.run(
        [sys.executable, "-m", "ctxforge"],
        env={"_CTXFORGE_COMPLETE": "bash_complete", "COMP_WORDS": "ctxforge ins", "COMP_CWORD": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "inspect" in listed.stdout


def test_check_finds_an_edited_tensor_that_was_edited_again(cli: Callable[..., object], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    out = ctxforge.extend(source, method="ntk-by-parts", to="16k", out=tmp_path / "out").out
    assert cli("check", out).code == 0
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    done = cli("check", out)
    assert done.code == 1
    assert "q_proj.weight changed since the conversion" in done.out
