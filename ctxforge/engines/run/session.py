"""Run engines on a checkpoint and compare each with the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ctxforge.engines.run.compare import compare
from ctxforge.engines.run.discover import python_for
from ctxforge.engines.run.reference import Planned, bundled_text, read_plan, run_reference
from ctxforge.engines.run.table import RUNNERS, Runner, find_runner
from ctxforge.engines.run.types import Progress, RunResult, Status
from ctxforge.engines.run.worker import Answer, WorkerError, ask
from ctxforge.errors import UsageError

DEFAULT_TOKENS = 512
TIMEOUT_SECONDS = 900.0


def run_engines(
    folder: Path,
    engines: tuple[str, ...] = (),
    *,
    text: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    progress: Progress | None = None,
    gguf: Path | None = None,
    seconds: float = TIMEOUT_SECONDS,
) -> list[RunResult]:
    """Per-token log-probabilities of each engine on `folder`, float32, against the plan's.

    The plan's are those of transformers 5 with its rotary tables replaced by what ctxforge's own reader makes of the
    config. No code of the checkpoint is run, no network is used.

    Args:
        folder: a checkpoint folder.
        engines: names of `RUNNERS`; empty for all of them.
        text: real text of at least `tokens` tokens; the bundled text (Jane Austen's *Persuasion*) by default.
        tokens: how many to compare over; cut to the config's length.
        progress: called with (engine, done, total).
        gguf: a converted GGUF for llama.cpp to run; it converts the folder itself otherwise.
        seconds: what one engine may take.

    Returns:
        One result an engine, in the order given. An engine that is missing, fails or crashes is a result too.

    Raises:
        UsageError: an unknown engine, too few tokens, or an environment variable that names no executable.
        CheckpointError: no config.json, or transformers 5 itself can't run the folder.
    """
    rows = [find_runner(name) for name in engines or tuple(RUNNERS)]
    if tokens < 2:
        raise UsageError(f"{tokens} tokens hold nothing to compare", "compare over 2 tokens or more")
    folder = folder.resolve()
    planned = read_plan(folder)
    if planned.code is not None:
        why = f"the checkpoint brings its own code ({planned.code}), which is not run here"
        return [_without(row, "can't tell", why) for row in rows]
    pythons = {row.name: python_for(row) for row in rows}
    tell = progress or (lambda _what, _done, _total: None)
    total = 1 + sum(python is not None for python in pythons.values())
    results: list[RunResult] = []
    reference: Answer | None = None
    done = 0
    for row in rows:
        python = pythons[row.name]
        if python is None:
            hint = f"{row.install}; or name its Python in {row.variable}"
            results.append(_without(row, "not installed", hint))
            continue
        if reference is None:
            tell("reference", done, total)
            reference = run_reference(folder, text or bundled_text(), tokens, planned, seconds)
        done += 1
        tell(row.name, done, total)
        results.append(_run(row, python, folder, reference, planned, gguf, seconds))
    tell("done", total, total)
    return results


def _run(
    row: Runner,
    python: str,
    folder: Path,
    reference: Answer,
    planned: Planned,
    gguf: Path | None,
    seconds: float,
) -> RunResult:
    request: dict[str, Any] = {"folder": str(folder), "ids": list(reference.ids)}
    if gguf is not None and row.name == "llama.cpp":
        request["gguf"] = str(gguf.resolve())
    try:
        answer = ask(python, row.worker, request, seconds=seconds)
    except WorkerError as error:
        return _without(row, "failed", str(error))
    result = compare(row, answer, reference, planned.length)
    return replace(result, detail="; ".join(part for part in (result.detail, planned.remark) if part))


def _without(row: Runner, status: Status, detail: str) -> RunResult:
    return RunResult(row.name, None, status, None, None, 0, detail, None, row.tolerance)
