"""Running a worker script under some Python: a request file in, an answer file out, one line where it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxforge.errors import one_line

_WORKERS = Path(__file__).with_name("workers")
_LONGEST_LINE = 300
_NAMES_ERROR = re.compile(r"\berror\b", re.IGNORECASE)
# Engines must neither reach for the network nor report home, and another environment must not see our modules.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_FOREIGN = ("PYTHONPATH", "PYTHONHOME")


@dataclass(frozen=True)
class Answer:
    """What a worker found.

    Attributes:
        version: as the engine names itself.
        logprobs: natural logarithms of the tokens' probabilities, by the token's position.
        ids: the tokens, where the worker made them.
        readings: the same log-probabilities under other rotary tables, by the table's name.
        facts: remarks by name.
    """

    version: str
    logprobs: Mapping[int, float]
    ids: tuple[int, ...] = ()
    readings: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class WorkerError(Exception):
    """An engine that did not answer; the message is one line."""


def ask(python: str, worker: str, request: Mapping[str, Any], *, seconds: float) -> Answer:
    """Run workers/`worker`.py under `python`.

    Raises:
        WorkerError: it could not start, failed, crashed, took longer than `seconds`, or answered nonsense.
    """
    with tempfile.TemporaryDirectory(prefix="ctxforge-engine-") as scratch:
        asked, answered = Path(scratch, "request.json"), Path(scratch, "answer.json")
        asked.write_text(json.dumps(request), encoding="utf-8")
        log = Path(scratch, "log.txt")
        _run([python, str(_WORKERS / f"{worker}.py"), str(asked), str(answered)], log, scratch, seconds)
        return _read(answered, log)


def _run(command: list[str], log: Path, scratch: str, seconds: float) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN} | _ENVIRONMENT
    try:
        with log.open("wb") as output:
            # Its own session, so that an engine's children can be ended with it.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            finally:
                _end(process)
    except subprocess.TimeoutExpired:
        raise WorkerError(f"no answer within {seconds:g} s") from None
    except OSError as error:
        raise WorkerError(f"{command[0]} does not start: {error}") from None
    if code != 0:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        raise WorkerError(one_line(f"{how}: {_last_line(log)}"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the worker and whatever it started and left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
    finally:
        process.wait()


def _read(answered: Path, log: Path) -> Answer:
    try:
        found = json.loads(answered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise WorkerError(one_line(f"no answer: {_last_line(log)}")) from None
    if "error" in found:
        raise WorkerError(_cause(one_line(str(found["error"])), log))
    positions = found["positions"]
    return Answer(
        version=found["version"],
        logprobs=dict(zip(positions, found["logprobs"], strict=True)),
        ids=tuple(found.get("ids", ())),
        readings={
            name: dict(zip(positions, values, strict=True)) for name, values in found.get("readings", {}).items()
        },
        facts=found.get("facts", {}),
    )


def _cause(error: str, log: Path) -> str:
    """The error, and the first line in which the engine's own log names one: bindings often pass on less."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [one_line(line) for line in lines if _NAMES_ERROR.search(line)]
    more = f" ({named[0]})" if named and named[0] not in error and error not in named[0] else ""
    return (error[:_LONGEST_LINE] + more)[: 2 * _LONGEST_LINE]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:_LONGEST_LINE] if lines else "it said nothing"
