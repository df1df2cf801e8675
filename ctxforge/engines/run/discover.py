"""Which Python runs an engine: the one that an environment variable names, else this one where it has the engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from ctxforge.engines.run.table import Runner
from ctxforge.errors import UsageError


def python_for(runner: Runner) -> str | None:
    """The Python to run `runner` with; None where the engine is not installed.

    Raises:
        UsageError: the environment variable names no executable.
    """
    named = os.environ.get(runner.variable)
    if named:
        found = shutil.which(Path(named).expanduser())
        if found is None:
            raise UsageError(
                f"{runner.variable} names {named!r}, which is no executable", "name a Python, or unset the variable"
            )
        # Workers run elsewhere; and a link is kept as it is, since it is what makes an environment.
        return str(Path(found).absolute())
    if importlib.util.find_spec(runner.module) is None:
        return None
    if runner.distribution is not None:
        name, prefix = runner.distribution
        if not importlib.metadata.version(name).startswith(prefix):
            return None
    return sys.executable
