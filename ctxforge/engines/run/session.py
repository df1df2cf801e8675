"""Run engines on a checkpoint and compare each with the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxforge.engines.run.compare import compare
from ctxforge.engines.run.discover import python_for
from ctxforge.engines.run.readings import readings
from ctxforge.engines.run.table import RUNNERS, Runner, find_runner
from ctxforge.engines.run.types import Progress, RunResult, Status
from ctxforge.engines.run.worker import Answer, WorkerError, ask
from ctxforge.errors import CheckpointError, CtxforgeError, UsageError
from ctxforge.rope import understand

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
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json", "give a checkpoint's folder")
    pythons = {row.name: python_for(row) for row in rows}
    tell = progress or (lambda _what, _done, _total: None)
    total = 1 + sum(python is not None for python in pythons.values())
    results: dict[str, RunResult] = {}
    tell("reference", 0, total)
    tables, length, remark = _plan(folder)
    reference: Answer | None = None
    done = 1
    for row in rows:
        python = pythons[row.name]
        if python is None:
            hint = f"{row.install}; or name its Python in {row.variable}"
            results[row.name] = _without(row, "not installed", hint)
            continue
        if reference is None:
            reference = _reference(folder, text or _bundled_text(), min(tokens, length or tokens), tables, seconds)
        tell(row.name, done, total)
        results[row.name] = _run(row, python, folder, reference, length, gguf, seconds, remark)
        done += 1
    tell("done", total, total)
    return [results[row.name] for row in rows]


def _run(
    row: Runner,
    python: str,
    folder: Path,
    reference: Answer,
    length: int | None,
    gguf: Path | None,
    seconds: float,
    remark: str,
) -> RunResult:
    request: dict[str, Any] = {"folder": str(folder), "ids": list(reference.ids)}
    if gguf is not None and row.name == "llama.cpp":
        request["gguf"] = str(gguf.resolve())
    try:
        answer = ask(python, row.worker, request, seconds=seconds)
    except WorkerError as error:
        return _without(row, "failed", str(error))
    result = compare(row, answer, reference, length)
    if not remark:
        return result
    fields = {**vars(result), "detail": "; ".join(part for part in (result.detail, remark) if part)}
    return RunResult(**fields)


def _reference(folder: Path, text: str, tokens: int, tables: Mapping[str, Any], seconds: float) -> Answer:
    """transformers 5 in this environment: the tokens, and their log-probabilities under every reading."""
    row = RUNNERS["transformers"]
    python = python_for(row)
    if python is None:
        raise UsageError("the reference needs transformers 5", row.install)
    request = {"folder": str(folder), "text": text, "tokens": tokens, "readings": tables}
    try:
        return ask(python, row.worker, request, seconds=seconds)
    except WorkerError as error:
        raise CheckpointError(
            f"transformers 5 can't run {folder}: {error}", "without a reference no engine can be compared"
        ) from None


def _plan(folder: Path) -> tuple[dict[str, Any], int | None, str]:
    """Rotary tables by reading, the configured length, and a remark where no table of ours stands for the config."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}", "repair config.json") from None
    try:
        geometry = understand(config)
    except CtxforgeError as error:
        return {}, None, f"compared with transformers' own reading: {error.cause}"
    tables = readings(geometry)
    remark = "" if tables else "compared with transformers' own reading: it is no fixed table"
    return tables, geometry.max_position_embeddings, remark


def _bundled_text() -> str:
    import ctxforge

    return Path(ctxforge.__file__).with_name("bundled").joinpath("text.txt").read_text(encoding="utf-8")


def _without(row: Runner, status: Status, detail: str) -> RunResult:
    return RunResult(row.name, None, status, None, None, 0, detail, None, row.tolerance)
