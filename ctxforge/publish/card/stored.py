"""A stored verification report as the objects that it was made from, so that the report's own tables can be drawn."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.verification.gates.types import Gate, GateResult, Judgement, Verdict
from ctxforge.verification.report import SCHEMA_VERSION, VerifyReport
from ctxforge.verification.statistics import Interval

_REMEDY = "give what `ctxforge verify --report FILE.json` or `ctxforge verify --json` wrote"
# Fields that reports of earlier versions lack: of one process.
_EARLIER: Mapping[str, Any] = {"processes": 1}

_NAME = re.compile(r"[\w.-]{1,80}")


def read_report(document: Mapping[str, Any]) -> VerifyReport:
    """`VerifyReport.to_dict()` backwards; numbers that were not finite come back as not a number.

    Args:
        document: of `--report`, or of `--json` with the report in it.

    Raises:
        UsageError: it is no such document, or of another version.
    """
    inner = document.get("report", document)
    if not isinstance(inner, Mapping) or "protocol" not in inner:
        raise UsageError("this is no verification report", _REMEDY)
    if inner.get("schema") != SCHEMA_VERSION:
        raise UsageError(f"a verification report of schema {inner.get('schema')!r} can't be read", _REMEDY)
    try:
        plain = {key: value for key, value in inner.items() if key not in ("schema", "judgement")}
        found: VerifyReport = _build(VerifyReport, {**plain, "judgement": None})
        judgement = inner.get("judgement")
        return dataclasses.replace(found, judgement=None if judgement is None else _judgement(judgement))
    except _MismatchError as error:
        raise UsageError(f"the verification report is malformed: {error}", _REMEDY) from None


class _MismatchError(Exception):
    """A value that its field can't hold."""


def _judgement(document: Any) -> Judgement:
    _require(isinstance(document, Mapping), "judgement")
    results = []
    for entry in _entries(document.get("gates")):
        _require(isinstance(entry, Mapping), "judgement.gates")
        _require(_NAME.fullmatch(str(entry.get("name"))) is not None, "the name of a gate")
        interval = entry.get("interval")
        results.append(
            GateResult(
                gate=_build(Gate, entry),
                verdict=_verdict(entry.get("verdict")),
                interval=None if interval is None else _build(Interval, interval),
                decided_by=_convert(typing.get_type_hints(_Decided)["by"], entry.get("decided_by"), "decided_by"),
                words=_convert(str, entry.get("words"), "words"),
            )
        )
    left_out = []
    for entry in _entries(document.get("left_out", [])):
        _require(isinstance(entry, Mapping), "judgement.left_out")
        left_out.append((_convert(str, entry.get("gate"), "gate"), _convert(str, entry.get("reason"), "reason")))
    return Judgement(tuple(results), tuple(left_out), document.get("strict") is True)


@dataclasses.dataclass(frozen=True)
class _Decided:
    by: typing.Literal["interval", "point", "exact", "not measured"]


def _verdict(value: Any) -> Verdict:
    _require(value in tuple(Verdict), "verdict")
    return Verdict(value)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, document: Any) -> Any:
    """A dataclass from a mapping of its fields; lists that are missing are empty, what may be None is."""
    _require(isinstance(document, Mapping), kind.__name__)
    given = {}
    for field in dataclasses.fields(kind):
        hint = _hints(kind)[field.name]
        if field.name in document:
            given[field.name] = _convert(hint, document[field.name], f"{kind.__name__}.{field.name}")
        elif field.default is dataclasses.MISSING:
            given[field.name] = _missing(hint, field.name, kind.__name__)
    return kind(**given)


def _missing(hint: Any, name: str, owner: str) -> Any:
    if typing.get_origin(hint) is tuple:
        return ()
    if type(None) in typing.get_args(hint):
        return None
    _require(name in _EARLIER, f"{owner} has no {name}")
    return _EARLIER[name]


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _first([entry for entry in arguments if entry is not type(None)], value, where)
    if origin is tuple:
        inner = arguments[0]
        return tuple(_convert(inner, entry, where) for entry in _entries(value, where))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(value, Mapping), where)
        return {str(key): _convert(arguments[1], entry, where) for key, entry in value.items()}
    if origin is typing.Literal:
        _require(value in arguments, where)
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value)
    if hint is float:
        number = math.nan if value is None else value
        _require(isinstance(number, int | float) and not isinstance(number, bool), where)
        return float(number)
    _require(isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), where)
    return value


def _first(hints: list[Any], value: Any, where: str) -> Any:
    """The first of several kinds that the value fits."""
    for hint in hints:
        try:
            return _convert(hint, value, where)
        except _MismatchError:
            continue
    raise _MismatchError(where)


def _entries(value: Any, where: str = "judgement") -> list[Any]:
    _require(isinstance(value, list | tuple), where)
    return list(value)


def _require(holds: bool, where: str) -> None:
    if not holds:
        raise _MismatchError(where)
