"""Building lm-eval's tasks: once for both models, so that they answer the same prompts, and before one is loaded."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ctxforge.errors import CtxforgeError, InternalError, ResourceError, UsageError, one_line
from ctxforge.quiet import quiet_transformers
from ctxforge.verification.external.budget import asked_length
from ctxforge.verification.external.guard import rolling_error
from ctxforge.verification.external.options import ExternalOptions
from ctxforge.verification.external.require import EXTRA
from ctxforge.verification.external.result import NotRun
from ctxforge.verification.external.room import reserve, too_short
from ctxforge.verification.external.ruler_tasks import RULER

OFFLINE = (
    "Connect, or point HF_HOME at a cache that holds it and set HF_DATASETS_OFFLINE=1 and HF_HUB_OFFLINE=1; or give "
    "`include_path` a folder with a task of that name over a local copy."
)
_GONE = "can't be had"
_SCORED = ("multiple_choice", "loglikelihood", "generate_until")


@dataclass(frozen=True)
class Job:
    """One task that lm-eval has built, for RULER at one length.

    Attributes:
        name: of the task.
        task: lm-eval's object, with its documents.
        length: nominal length in tokens, for RULER.
        asked: what the generator was asked for.
    """

    name: str
    task: Any
    length: int | None = None
    asked: int | None = None


def build_jobs(
    options: ExternalOptions, folder: Path, tokenizer: Any, limits: tuple[int, ...]
) -> tuple[list[Job], list[NotRun]]:
    """Every task of the options with its documents.

    Args:
        options: names, lengths, folders.
        folder: of the result, whose tokenizer RULER measures its prompts with.
        tokenizer: the same one, loaded.
        limits: tokens that each model may see.

    Raises:
        UsageError: an unknown task, one that is no score of documents or marked unsafe, or a length out of reach.
        ResourceError: data or a package can't be had, unless the options skip such tasks.
    """
    asked: dict[str, Any] = {"tokenizer": str(folder)}
    manager = _manager(options, asked)
    jobs: list[Job] = []
    missing: list[NotRun] = []
    for name in options.names:
        if name not in RULER:
            jobs += [Job(task, made) for task, made in _load(manager, name, None, options, missing)]
            continue
        _refuse_remote_code(folder, options)
        for length in options.lengths:
            ask = asked_length(length, limits, reserve(name, tokenizer, chat_template=options.chat_template))
            with own_randomness(options.seed):
                reason = too_short(name, tokenizer, ask)
            if reason is not None:
                missing.append(NotRun(name, length, reason))
                continue
            gone = _gone_before(name, missing)
            if gone is not None:
                missing.append(NotRun(name, length, gone))
                continue
            asked["max_seq_lengths"] = [ask]
            for task, made in _load(manager, name, length, options, missing):
                _check_length(made, ask)
                jobs.append(Job(task, made, length, ask))
    for job in jobs:
        _check(job)
    return jobs, missing


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators seeded inside, and as they were afterwards."""
    python, numbers = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Only lm-eval's errors inside, no bars, no prints: the lengths that its warnings are about are counted here."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    requests: Any = import_module("lm_eval.api.task")
    bars = requests.tqdm
    requests.tqdm = partial(bars, disable=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), quiet_transformers(warnings=False):
            yield
    finally:
        logger.setLevel(level)
        requests.tqdm = bars


def _manager(options: ExternalOptions, asked: dict[str, Any]) -> Any:
    """lm-eval's index of tasks; its own thousands are read only where the user's folders lack a name."""
    manager = import_module("lm_eval.tasks").TaskManager
    for path in options.include_path:
        if not Path(path).is_dir():
            raise UsageError(f"include_path {path} is not a folder.", "Give a folder with lm-eval task files.")
    folders = list(options.include_path)
    if folders:
        own = manager(include_path=folders, include_defaults=False, metadata=asked)
        if set(options.names) <= set(own.all_tasks):
            return own
    return manager(include_path=folders or None, metadata=asked)


def _load(
    manager: Any, name: str, length: int | None, options: ExternalOptions, missing: list[NotRun]
) -> list[tuple[str, Any]]:
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See `lm-eval ls tasks` for the names."
        raise UsageError(f"lm-eval knows no task {name!r}.", hint)
    where = name if length is None else f"{name} at {length} tokens"
    broken = import_module("datasets.exceptions").DatasetsError
    try:
        with own_randomness(options.seed), quiet_lm_eval(), contextlib.redirect_stderr(io.StringIO()):
            return list(manager.load([name])["tasks"].items())
    except CtxforgeError:
        raise
    except (KeyError, IndexError) as error:
        raise UsageError(f"lm-eval cannot build {where}: {error!r}", "Mend the task's file.") from error
    except (ImportError, LookupError, OSError, broken) as error:
        failed = _missing(where, name, error)
        if not options.skip_missing:
            raise failed from error
        missing.append(NotRun(name, length, failed.cause))
        return []
    except ValueError as error:
        if length is None:
            raise UsageError(f"lm-eval cannot build {where}: {error}", "Mend the task's file.") from error
        # A RULER generator says that not even its smallest prompt fits.
        missing.append(NotRun(name, length, one_line(str(error))))
        return []


def _gone_before(name: str, missing: list[NotRun]) -> str | None:
    """Why data that this RULER task shares could not be had before: asking again costs half a minute a length."""
    data = RULER[name].data
    for each in missing:
        if data is not None and each.task in RULER and RULER[each.task].data == data and _GONE in each.reason:
            return each.reason
    return None


def _missing(where: str, name: str, error: Exception) -> ResourceError:
    if isinstance(error, ImportError):
        return ResourceError(f"{where} needs a package that is not installed: {error}", f"Install it: {EXTRA}")
    data = RULER[name].data if name in RULER else None
    return ResourceError(f"the data of {where} {_GONE}{f' ({data})' if data else ''}: {error}", OFFLINE)


def _refuse_remote_code(folder: Path, options: ExternalOptions) -> None:
    """RULER's generators load the tokenizer with trust_remote_code, whatever the user said."""
    path = folder / "tokenizer_config.json"
    if options.trust_remote_code or not path.is_file():
        return
    try:
        mapped = json.loads(path.read_text(encoding="utf-8")).get("auto_map")
    except (ValueError, OSError, AttributeError):
        return
    if mapped:
        raise UsageError(
            f"lm-eval's RULER would run the tokenizer code in {folder}.", "Allow it with --trust-remote-code."
        )


def _check_length(task: Any, asked: int) -> None:
    """That the generator was given this length, and not one from before."""
    found = {int(length) for length in task.dataset["test"]["max_length"]}
    if found != {asked}:
        raise InternalError(f"RULER built lengths {sorted(found)} where {asked} was asked for.", "Please report this.")


def _check(job: Job) -> None:
    if getattr(job.task, "UNSAFE_CODE", False):
        raise UsageError(
            f"task {job.name!r} runs code that the model writes.", "Run it with lm-eval itself, in a sandbox."
        )
    if job.task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise rolling_error(job.name)
    if job.task.OUTPUT_TYPE not in _SCORED:
        raise UsageError(f"task {job.name!r} is of type {job.task.OUTPUT_TYPE!r}.", f"Use {', '.join(_SCORED)}.")
