"""Whether lm-eval and what its benchmarks import are installed, asked before a model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata, util

from ctxforge.errors import ResourceError
from ctxforge.verification.external.options import expand
from ctxforge.verification.external.ruler_tasks import RULER

EXTRA = "pip install 'ctxforge-llm[eval]'"
OLDEST = (0, 4, 13)
_RULER_MODULES = ("wonderwords", "nltk", "scipy")
_LONGBENCH_MODULES = ("jieba", "fuzzywuzzy", "rouge")


def require_lm_eval(tasks: Iterable[str] = ()) -> str:
    """The version of lm-eval that is installed, with all that these benchmarks import.

    Args:
        tasks: names of tasks, groups or benchmarks: `ruler` needs packages of its own, `longbench` others.

    Raises:
        ResourceError: lm-eval or one of those packages is missing, or lm-eval is older than `OLDEST`.
    """
    if util.find_spec("lm_eval") is None:
        raise ResourceError("the full tier needs lm-eval, which is not installed.", f"Install it: {EXTRA}")
    version = installed_version()
    if release(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ResourceError(f"lm-eval is {version}, and {oldest} or later is needed.", f"Install it: {EXTRA}")
    for benchmark, modules in needed_modules(tasks).items():
        missing = [name for name in modules if util.find_spec(name) is None]
        if missing:
            raise ResourceError(f"{benchmark} needs {', '.join(missing)} beside lm-eval.", f"Install them: {EXTRA}")
    return version


def needed_modules(tasks: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Modules that lm-eval imports for these tasks, by benchmark."""
    names = expand(tasks)
    needed: dict[str, tuple[str, ...]] = {}
    if any(name in RULER for name in names):
        needed["RULER"] = _RULER_MODULES
    # Version 2 asks for a letter and scores it without those packages.
    if any(re.match(r"longbench(_|$)", name) for name in names):
        needed["LongBench"] = _LONGBENCH_MODULES
    return needed


def installed_version() -> str:
    """lm-eval's version as its package says; "0" where it does not."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        return "0"


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 4, 13) of "0.4.13.dev1"."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else (0,)
