"""The CI templates: their steps run here, on good and on broken checkpoints, with exit codes and artefacts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

import ctxforge
from ctxforge.cli.templates import TEMPLATES as LISTED
from ctxforge.version import __version__
from tests.templates.steps import ROOT, TEMPLATES, environment, github, gitlab

WORKFLOW = yaml.safe_load((TEMPLATES / "github-workflow.yml").read_text())
PIPELINE = yaml.safe_load((TEMPLATES / "gitlab-ci.yml").read_text())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    return ctxforge.extend("bundled", method="yarn", to="4x", out=root / "good").out


@pytest.fixture
def repository(tmp_path: Path, good: Path) -> Path:
    """A models repository with one sound checkpoint."""
    shutil.copytree(good, tmp_path / "models" / "good")
    for name in ("gates.toml", "recipes.yaml"):
        shutil.copy(TEMPLATES / name, tmp_path / name)
    return tmp_path


def spoil(repository: Path, good: Path) -> None:
    """Two broken checkpoints beside the sound one: a config that was edited, weights that are torn."""
    shutil.copytree(good, repository / "models" / "edited")
    path = repository / "models" / "edited" / "config.json"
    path.write_text(path.read_text().replace('"max_position_embeddings": 2048', '"max_position_embeddings": 4096'))
    shutil.copytree(good, repository / "models" / "torn")
    weights = repository / "models" / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def counts(path: Path) -> dict[str, str]:
    """Failures of each suite of a JUnit document."""
    return {suite.get("name", ""): suite.get("failures", "") for suite in ElementTree.parse(path).getroot()}


class TestGithub:
    def test_check_of_a_sound_repository(self, repository: Path) -> None:
        code, said = github(WORKFLOW, "check", repository)
        assert code == 0, said
        assert counts(repository / "reports" / "check.xml") == {"models/good": "0"}
        assert json.loads((repository / "reports" / "check.sarif").read_text())["runs"][0]["results"] == []
        assert "::notice title=ctxforge check::" in said
        assert "### ctxforge check: pass" in (repository / "summary.md").read_text()

    def test_check_of_a_broken_one(self, repository: Path, good: Path) -> None:
        spoil(repository, good)
        code, said = github(WORKFLOW, "check", repository)
        assert code == 2
        assert counts(repository / "reports" / "check.xml") == {
            "models/edited": "3",
            "models/good": "0",
            "models/torn": "1",
        }
        results = json.loads((repository / "reports" / "check.sarif").read_text())["runs"][0]["results"]
        assert {result["ruleId"] for result in results} == {"max-positions", "tokenizer", "provenance", "structure"}
        assert re.search(r"::error file=models/edited/config\.json,line=\d+,col=3,title=ctxforge check", said)
        assert "### ctxforge check: fail" in (repository / "summary.md").read_text()
        shutil.rmtree(repository / "models" / "torn")
        assert github(WORKFLOW, "check", repository)[0] == 1

    def test_a_repository_without_checkpoints(self, tmp_path: Path) -> None:
        assert github(WORKFLOW, "check", tmp_path) == (0, "no checkpoints in models\n")
        assert github(WORKFLOW, "check", tmp_path, HUB="org/model@main")[0] == 4  # offline here

    def test_verify_of_a_sound_repository(self, repository: Path) -> None:
        code, said = github(WORKFLOW, "verify", repository, TIER="smoke")
        assert code == 0, said
        assert counts(repository / "reports" / "verify-good.xml") == {"ctxforge verify models/good": "0"}
        assert json.loads((repository / "reports" / "verify-good.json").read_text())
        assert "### ctxforge verify" in (repository / "summary.md").read_text()

    def test_convert_runs_the_jobs_and_checks_them(self, repository: Path) -> None:
        code, said = github(WORKFLOW, "convert", repository)
        assert code == 0, said
        found = json.loads((repository / "reports" / "convert.json").read_text())
        assert [job["status"] for job in found["jobs"]] == ["done", "done"]
        assert len(counts(repository / "reports" / "converted.xml")) == 2
        assert set(counts(repository / "reports" / "converted.xml").values()) == {"0"}

    def test_convert_fails_with_its_jobs(self, repository: Path) -> None:
        path = repository / "recipes.yaml"
        path.write_text(path.read_text().replace("- bundled ", "- nowhere/at-all "))
        assert github(WORKFLOW, "convert", repository)[0] not in (0, 1)

    def test_actions_are_pinned_and_scripts_take_nothing_from_events(self) -> None:
        text = (TEMPLATES / "github-workflow.yml").read_text()
        used = re.findall(r"uses: (\S+)(.*)", text)
        assert len(used) >= 10
        for action, comment in used:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r"  # v\d+\.\d+\.\d+", comment), action
        assert WORKFLOW["permissions"] == {"contents": "read"}
        writes = [
            (name, scope)
            for name, job in WORKFLOW["jobs"].items()
            for scope, level in job.get("permissions", {}).items()
            if level == "write"
        ]
        assert writes == [("check", "security-events")]
        for job in WORKFLOW["jobs"].values():
            assert all("${{" not in step.get("run", "") for step in job["steps"])
            checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
            assert [step["with"]["persist-credentials"] for step in checkouts] == [False]
            assert "timeout-minutes" in job

    def test_the_pinned_version_is_this_one(self) -> None:
        wanted = f"ctxforge-llm=={'.'.join(__version__.split('.')[:2])}.*"
        assert WORKFLOW["env"]["CTXFORGE"] == PIPELINE["variables"]["CTXFORGE"] == wanted


class TestGitlab:
    def test_check(self, repository: Path, good: Path) -> None:
        code, said = gitlab(PIPELINE, "ctxforge check", repository)
        assert code == 0, said
        spoil(repository, good)
        assert gitlab(PIPELINE, "ctxforge check", repository)[0] == 2
        found = counts(repository / "reports" / "check.xml")
        assert found == {"models/edited": "3", "models/good": "0", "models/torn": "1"}
        assert (repository / "reports" / "check.md").read_text().startswith("### ctxforge check: fail")

    def test_verify_tells_the_worst(self, repository: Path, good: Path) -> None:
        """The sound one is verified by GitHub's script, which has the same loop: models take seconds to load."""
        steps = [step.get("run", "") for step in WORKFLOW["jobs"]["verify"]["steps"] if step.get("name") == "Verify"]
        assert PIPELINE["ctxforge verify"]["script"] == steps
        spoil(repository, good)
        for name in ("good", "edited"):
            shutil.rmtree(repository / "models" / name)
        code, said = gitlab(PIPELINE, "ctxforge verify", repository, TIER="smoke")
        assert code == 2
        assert said.count("Error: model.safetensors") == 1
        assert not list((repository / "reports").glob("*.xml"))

    def test_reports_are_kept_when_a_job_fails(self) -> None:
        artifacts = PIPELINE[".ctxforge"]["artifacts"]
        assert (artifacts["when"], artifacts["reports"]["junit"]) == ("always", "reports/*.xml")
        for job in ("ctxforge check", "ctxforge verify"):
            assert PIPELINE[job]["extends"] == ".ctxforge"
            assert all("pip install" in line or line.startswith("#") for line in PIPELINE[job]["before_script"])


class TestPreCommit:
    """By pre-commit itself, offline: the config of the template, and the manifest at the root of this repository."""

    @pytest.fixture
    def commit(self, repository: Path) -> Callable[[], tuple[int, str]]:
        env = environment(repository, PRE_COMMIT_HOME=str(repository / ".pre-commit"))
        people = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

        def run(*command: str, folder: Path = repository) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command, cwd=folder, env={**env, **people}, capture_output=True, text=True, check=False, timeout=300
            )

        def commit() -> tuple[int, str]:
            run("git", "init", "-q")
            run("git", "add", "models")
            done = run("pre-commit", "run", "--color=never")
            run("git", "commit", "-q", "-m", "x")
            return done.returncode, done.stdout + done.stderr

        commit.run = run  # type: ignore[attr-defined]
        return commit

    def test_the_template(self, repository: Path, good: Path, commit: Callable[[], tuple[int, str]]) -> None:
        shutil.copy(TEMPLATES / "pre-commit-config.yaml", repository / ".pre-commit-config.yaml")
        self.passes_and_fails(repository, good, commit)

    def test_the_manifest(self, repository: Path, good: Path, commit: Any) -> None:
        hooks = repository / ".hooks"
        hooks.mkdir()
        shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
        commit.run("git", "init", "-q", folder=hooks)
        commit.run("git", "add", ".", folder=hooks)
        commit.run("git", "commit", "-q", "-m", "x", folder=hooks)
        revision = commit.run("git", "rev-parse", "HEAD", folder=hooks).stdout.strip()
        used = {"repo": str(hooks), "rev": revision, "hooks": [{"id": "ctxforge-check-system"}]}
        (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [used]}))
        self.passes_and_fails(repository, good, commit)

    @staticmethod
    def passes_and_fails(repository: Path, good: Path, commit: Callable[[], tuple[int, str]]) -> None:
        code, said = commit()
        assert (code, "Passed" in said) == (0, True), said
        spoil(repository, good)
        code, said = commit()
        assert code == 1
        assert "fail  max-positions" in said
        assert "fail  structure" in said
        assert "models/good" not in said  # the commit doesn't touch it

    def test_both_hooks_do_the_same(self) -> None:
        own, system = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
        template = yaml.safe_load((TEMPLATES / "pre-commit-config.yaml").read_text())["repos"][0]["hooks"][0]
        for key in ("entry", "files", "require_serial"):
            assert own[key] == system[key] == template[key]
        assert (own["language"], system["language"], template["language"]) == ("python", "system", "system")


class TestCommand:
    def test_every_template_is_listed_printed_and_written(self, cli: Callable[..., Any], tmp_path: Path) -> None:
        assert {one.source for one in LISTED.values()} == {f"ci/{path.name}" for path in TEMPLATES.iterdir()}
        assert len(cli("templates", "--json").document["templates"]) == len(LISTED)
        for name, one in LISTED.items():
            text = (ROOT / "templates" / one.source).read_text()
            assert cli("templates", name).out == text
            done = cli("templates", name, "--write", tmp_path)
            assert (done.code, done.out.strip()) == (0, str(tmp_path / one.place))
            assert (tmp_path / one.place).read_text() == text

    def test_nothing_is_replaced_unasked(self, cli: Callable[..., Any], tmp_path: Path) -> None:
        (tmp_path / ".gitlab-ci.yml").write_text("mine")
        assert cli("templates", "gitlab", "--write", tmp_path).code == 2
        assert (tmp_path / ".gitlab-ci.yml").read_text() == "mine"
        assert cli("templates", "gitlab", "--write", tmp_path, "--force").code == 0
        assert (tmp_path / ".gitlab-ci.yml").read_text() != "mine"
        assert cli("templates", "--write", tmp_path).code == 2
        assert cli("templates", "jenkins").code == 2


def test_check_needs_only_what_the_templates_install(good: Path) -> None:
    """Neither torch nor any other dependency that `pip install --no-deps` leaves out."""
    code = (
        "import sys\n"
        "left_out = {'torch', 'transformers', 'safetensors', 'accelerate', 'peft', 'pydantic', 'jinja2'}\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in left_out: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"sys.argv = ['ctxforge', 'check', {str(good)!r}, '--junit', {str(good.parent / 'j.xml')!r},"
        f" '--sarif', {str(good.parent / 's.sarif')!r}]\n"
        "from ctxforge.cli import main\n"
        "main()\n"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    installs = [step["run"] for step in WORKFLOW["jobs"]["check"]["steps"] if step.get("name") == "Install"]
    assert "pip install --no-deps" in installs[0]
