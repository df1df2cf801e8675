"""How to serve a conversion: each engine's command and versions, and which engines to keep away from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctxforge.engines import EngineVerdict, report
from ctxforge.errors import CtxforgeError

# They take a Hub id where the others want a folder.
_TAKES_IDS = ("transformers", "vllm", "sglang", "mlx-lm")
_SERVES = ("honours", "honours with flags")
_PATCH = "ctxforge gguf"
_FIRST = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_OPEN = re.compile(r"later|\.x\b")
_LATER = re.compile(r"([0-9]+(?:\.[0-9]+)*) or later")


@dataclass(frozen=True)
class Served:
    """An engine that computes what was meant, or does once its file is patched.

    Attributes:
        engine: its name.
        versions: ranges of versions, the newest first.
        least: the least version that does, where every later one does too; empty where that is not known.
        commands: lines of a shell.
        notes: what to know: settings, lengths it serves by default.
        measured: whether a run of this form has shown the same.
    """

    engine: str
    versions: tuple[str, ...]
    least: str
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    measured: bool


@dataclass(frozen=True)
class Kept:
    """Versions of an engine with one verdict, and the reason."""

    engine: str
    versions: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Serving:
    """Every engine by what it makes of the config.

    Attributes:
        served: those to use.
        wrong: those that load it and compute something else without a word.
        refusing: those that stop.
        unknown: those that nobody has read or run for this model.
        problem: why the engines could not be asked; empty when they were.
    """

    served: tuple[Served, ...] = ()
    wrong: tuple[Kept, ...] = ()
    refusing: tuple[Kept, ...] = ()
    unknown: tuple[Kept, ...] = ()
    problem: str = ""


def serving(config: Mapping[str, Any], repo_id: str, branch: str | None = None) -> Serving:
    """What each engine of the registry makes of a config, with commands for the repository `repo_id`.

    Engines differ in how they are told a branch, so what is on one is downloaded first.
    """
    folder = repo_id.rsplit("/", 1)[-1]
    download = f"hf download {repo_id}{f' --revision {shlex.quote(branch)}' if branch else ''} --local-dir {folder}"
    by_name = () if branch else _TAKES_IDS
    try:
        by_id, by_folder = report(config, folder=repo_id).rows, report(config, folder=folder).rows
    except CtxforgeError as error:
        return Serving(problem=error.cause)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
        return Serving(problem="config.json holds values that no reader takes")
    rows = [one if one.engine in by_name else other for one, other in zip(by_id, by_folder, strict=True)]
    return Serving(
        served=tuple(
            _served(group, [] if group[0].engine in by_name else [download])
            for group in _by_engine(rows)
            if any(map(_serves, group))
        ),
        wrong=_kept([row for row in rows if row.verdict == "computes something else" and not _serves(row)]),
        refusing=_kept([row for row in rows if row.verdict == "refuses"]),
        unknown=_kept([row for row in rows if row.verdict == "unknown"]),
    )


def _serves(row: EngineVerdict) -> bool:
    return row.verdict in _SERVES or (row.verdict == "computes something else" and _PATCH in row.serve_command)


def _served(every: Sequence[EngineVerdict], before: Sequence[str]) -> Served:
    """What serves it among the rows of one engine, which are the newest first."""
    rows = [row for row in every if _serves(row)]
    newest = rows[0]
    return Served(
        engine=newest.engine,
        versions=tuple(row.versions for row in rows),
        least=_least(rows) if list(every[: len(rows)]) == rows else "",
        commands=(*before, *newest.serve_command.split(" && ")),
        notes=_notes(rows),
        measured=newest.evidence == "measured" and newest.verdict in _SERVES,
    )


def _notes(rows: Sequence[EngineVerdict]) -> tuple[str, ...]:
    """What to know, once where it is the same of all versions."""
    found = {row.versions: _note(row) for row in rows}
    if len(set(found.values())) == 1:
        return tuple(note for note in [_note(rows[0])] if note)
    return tuple(f"{versions}: {note}" for versions, note in found.items() if note)


def _least(rows: Sequence[EngineVerdict]) -> str:
    """The version that ranges begin with; empty where they have no beginning, or end with the version that was read."""
    oldest = rows[-1]
    if not _OPEN.search(rows[0].versions):
        return ""
    said = _LATER.search(oldest.detail)
    if said is not None:
        return said[1]
    found = _FIRST.match(oldest.versions)
    return "" if found is None or "earlier" in oldest.versions else found[0]


def _note(row: EngineVerdict) -> str:
    if row.verdict not in _SERVES:
        return f"only with the file that {_PATCH} writes; without it: {row.detail}"
    return "; ".join(part for part in (" ".join(row.flags), row.detail) if part)


def _by_engine(rows: Sequence[EngineVerdict]) -> list[list[EngineVerdict]]:
    found: dict[str, list[EngineVerdict]] = {}
    for row in rows:
        found.setdefault(row.engine, []).append(row)
    return list(found.values())


def _kept(rows: Sequence[EngineVerdict]) -> tuple[Kept, ...]:
    """Rows of one engine and one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        found.setdefault((row.engine, row.detail), []).append(row.versions)
    return tuple(Kept(engine, tuple(versions), reason) for (engine, reason), versions in found.items())
