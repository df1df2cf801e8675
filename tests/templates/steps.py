"""Running the steps of CI files on this machine, as their runners do, without the services around them.

Left out are the steps that a service does (`uses:`) and the one that installs ctxforge: the one of this environment is
on the PATH instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "templates" / "ci"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This environment's programs, nothing of a CI's or of the user's own, and no network."""
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CTXFORGE_NO_PROGRESS": "1"}
    git = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return {**kept, **quiet, **git, "PATH": path, "HOME": str(folder / ".home"), **more}


def bash(script: str, folder: Path, env: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    """One script in `folder`, its file kept beside it so that stdin is free."""
    file = folder / ".step.sh"
    file.write_text(script)
    done = subprocess.run(
        ["bash", *flags, str(file)], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    file.unlink()
    return done


def github(workflow: dict[str, Any], job: str, folder: Path, **changes: str) -> tuple[int, str]:
    """Run a job's own steps as the runner does: `bash -e`, the first failure stops all but `if: always()`.

    Returns:
        The exit code of the first step that failed, 0 without one, and what all of them said.
    """
    values = {**workflow.get("env", {}), **workflow["jobs"][job].get("env", {}), **changes}
    summary = folder / "summary.md"
    own = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_WORKSPACE": str(folder)}
    env = environment(folder, **{name: str(value) for name, value in values.items()}, **own)
    code, said = 0, ""
    for step in workflow["jobs"][job]["steps"]:
        if "run" not in step or step["name"] == "Install" or (code and step.get("if") != "always()"):
            continue
        done = bash(step["run"], folder, env, "-e")
        said += done.stdout + done.stderr
        code = code or done.returncode
    return code, said


def gitlab(pipeline: dict[str, Any], job: str, folder: Path, **changes: str) -> tuple[int, str]:
    """Run a job's `script` as the runner does in an image with bash; `before_script` is what installs ctxforge."""
    values = {name: str(value) for name, value in {**pipeline["variables"], **changes}.items()}
    done = bash("\n".join(pipeline[job]["script"]), folder, environment(folder, **values), "-eo", "pipefail")
    return done.returncode, done.stdout + done.stderr
