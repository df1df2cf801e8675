"""Serve commands and warnings: what the engines' registry says, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest

import ctxforge
from ctxforge.engines import report
from ctxforge.engines.registry import ENGINES
from ctxforge.publish.card.serving import serving
from tests.publish.card.builders import REPO, card, conversion, part

FOLDER = REPO.split("/")[1]
# Forms that engines part on: all agree; some misread the temperature; nobody serves lists or moving tables alike.
CASES: dict[str, dict[str, Any]] = {
    "yarn": {},
    "yarn, exact": {"temperature": 1.0, "portability": "exact"},
    "pi": {},
    "drope": {},
    "dynamic-ntk": {},
    "longrope": {"parameters": {"factors": [1.0] * 16 + [4.0] * 16}},
}


def config(name: str) -> dict[str, Any]:
    emitted: dict[str, Any] = ctxforge.plan("bundled", method=name.split(",")[0], to="4x", **CASES[name]).emitted_config
    return emitted


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_the_report_once_and_in_its_place(name: str) -> None:
    emitted = config(name)
    text = part(card(config=emitted).text, "Serving it").replace("\\", "")
    wrong = text.partition("\n\n**")[0]
    refusing = text.partition("These stop")[2].partition("Not known")[0]
    served = set(
        re.findall(r"^\*\*([\w.-]+)\*\*(?: from [\w.]+ on)? \((.*?); (?:measured|by reading)", text, re.MULTILINE)
    )
    for row in report(emitted).rows:
        here = [
            versions for engine, versions in served if engine == row.engine and row.versions in versions.split("; ")
        ]
        patched = "ctxforge gguf" in row.serve_command
        if row.verdict.startswith("honours") or (row.verdict == "computes something else" and patched):
            assert here, row
        else:
            assert not here, row
        if row.verdict == "computes something else" and not patched:
            assert f"- **{row.engine}** " in wrong
            assert row.versions in wrong
            assert row.detail.replace("_", "") in wrong.replace("_", "")
        if row.verdict == "refuses":
            assert f"- {row.engine} " in refusing
            assert row.versions in refusing


def test_some_engines_are_wrong_somewhere() -> None:
    """The control: without a case of each verdict the test above would show little."""
    verdicts = {row.verdict for name in CASES for row in report(config(name)).rows}
    assert verdicts >= {"honours", "honours with flags", "computes something else", "refuses"}
    assert "Do not serve it with these" in part(card(config=config("yarn, exact")).text, "Serving it")


@pytest.mark.parametrize("name", CASES)
def test_commands_have_the_options_of_the_registry(name: str) -> None:
    """Word for word the registry's for the repository, or for the folder that `hf download` makes of it."""
    emitted = config(name)
    by_id, by_folder = report(emitted, folder=REPO).rows, report(emitted, folder=FOLDER).rows
    real = {command for row in (*by_id, *by_folder) for command in row.serve_command.split(" && ") if command}
    found = serving(emitted, REPO)
    text = part(card(config=emitted).text, "Serving it")
    for one in found.served:
        for command in one.commands:
            assert command in real or command == f"hf download {REPO} --local-dir {FOLDER}"
            assert f"\n{command}\n" in text
        if "hf download" in one.commands[0]:
            assert not any(REPO in command for command in one.commands[1:])
        else:
            assert REPO in one.commands[0]
    blocks = re.findall(r"```console\n(.*?)\n```", text, re.DOTALL)
    assert len(blocks) == len(found.served)


def test_the_length_that_is_served() -> None:
    text = part(card().text, "Serving it")
    assert f"\nvllm serve {REPO} --max-model-len 2048\n" in text
    assert "--context-length 2048" in text
    assert "--max-total-tokens 2048 --max-input-tokens 2047" in text
    linear = part(card(config=config("pi")).text, "Serving it")
    assert (
        linear.count("- --max-model-len 2048; would take 8192 tokens, the config means 2048") == 1
    )  # of every version


def test_on_a_branch_everything_is_downloaded_first() -> None:
    """Engines differ in how they are told a branch; `hf download` is not one of them."""
    text = part(card(branch="yarn 2k").text, "Serving it")
    blocks = re.findall(r"```console\n(.*?)\n```", text, re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        first, *rest = block.splitlines()
        assert first == f"hf download {REPO} --revision 'yarn 2k' --local-dir {FOLDER}"
        assert rest
        assert REPO not in "".join(rest)


def test_least_versions() -> None:
    least = {one.engine: one.least for one in serving(config("yarn"), REPO).served}
    assert least["transformers"] == "4.51"
    assert least["vllm"] == ""  # every version that was read
    assert least["tgi"] == ""  # one version was read
    assert least["llama.cpp"] == ""  # no version, a month
    exact = {one.engine: one.least for one in serving(config("yarn, exact"), REPO).served}
    assert exact["vllm"] == "0.30"
    coded = {one.engine: one.least for one in serving(conversion("none", "lm-infinite").emitted_config, REPO).served}
    assert coded == {"transformers": "5.12"}


def test_what_cannot_be_asked_is_said() -> None:
    text = part(card(config={"model_type": "nobody's"}).text, "Serving it")
    assert text.strip().startswith("What engines make of this config was not worked out: model type")
    assert "```" not in text


def test_engines_that_take_ids_are_engines() -> None:
    from ctxforge.publish.card.serving import _TAKES_IDS

    assert set(_TAKES_IDS) <= {engine.name for engine in ENGINES}
