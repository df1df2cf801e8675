"""Records of `attention_quality.py`: kept, merged, and as tables with what they show; no measurement, no torch.

Distances are from the end of the context, where the question stands. A stratum of the grid counts as near when all of
it lies within L0 / 2, as far when all of it lies beyond L0, else as in between: a window of about L0 sees the near ones
and those in between, blocks of L0 / 2 the near ones and some of those, and neither sees a far one.

Two verdicts, by thresholds that `ctxforge verify` declares:
- flat: beyond L0 the loss is at most 0.05 nats above that of the source cut to its last L0 tokens (gate `use`);
- far retrieval: `as the source` when the answers to far needles cost at most 0.5 nats more than the source's own at L0
  (gate `retrieval_nll`); `none` when they cost more and not one is exact; `less` otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxforge.verification.gates import GATES

Record = Mapping[str, Any]
RESULTS, TABLES = "attention-quality.json", "attention-quality.md"
# Nats a token that short text may lose before it is worth a word.
_NOTHING = 0.001
_LIMITS = {gate.name: gate.threshold for gate in GATES}


def identified(record: Record) -> tuple[str, float, str]:
    """What a record is of; a later one takes the place of an earlier one of the same."""
    return record["model"], float(record["factor"]), record["system"]


def merged(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of several result files; of one (model, factor, system) the last one."""
    found = {identified(record): record for path in files for record in json.loads(path.read_text("utf-8"))["records"]}
    return list(found.values())


def write(out: Path, records: Sequence[Record]) -> None:
    """Both files, the results whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / f"{RESULTS}.part"
    part.write_text(json.dumps({"schema": 1, "records": list(records)}), "utf-8")
    part.replace(out / RESULTS)
    (out / TABLES).write_text(render(records), "utf-8")


@dataclass(frozen=True)
class Answers:
    """Needles of one range of distance: mean answer loss in nats a token, how many answers are exact, of how many."""

    nll: float
    exact: int
    count: int

    def __str__(self) -> str:
        return f"{self.nll:.2f} ({self.exact}/{self.count})" if self.count else "-"


@dataclass(frozen=True)
class Standing:
    """What a record says, in the terms of this file.

    Attributes:
        cut: mean loss of the source's last L0 tokens of context, on the tokens beyond L0.
        beyond: of the system, on the same tokens, with all the context it was given.
        source: the source's answers at L0.
        near, between, far: the system's at the target, by distance.
        short: nats a token that short text lost.
    """

    cut: float
    beyond: float
    source: Answers
    near: Answers
    between: Answers
    far: Answers
    short: float

    @property
    def ratio(self) -> float:
        """Perplexity beyond L0 over that of the source cut to its last L0 tokens."""
        return math.exp(self.beyond - self.cut)

    @property
    def flat(self) -> bool:
        """Whether the perplexity beyond L0 is no worse than that of cutting."""
        return self.cut - self.beyond >= _LIMITS["use"]

    def found(self, answers: Answers) -> str:
        """`as the source`, `less` or `none`."""
        if answers.nll - self.source.nll <= _LIMITS["retrieval_nll"]:
            return "as the source"
        return "less" if answers.exact else "none"


def standing(record: Record) -> Standing:
    """The numbers of a record that was measured."""
    report = record["report"]
    trained, target = report["protocol"]["trained_length"], report["protocol"]["target_length"]
    result, source = report["result"], report["source"]

    def at(answers: Iterable[Record], length: int, inside: Callable[[float, float], bool]) -> Answers:
        chosen = []
        for answer in answers:
            nearest, farthest = (length * (1 - (answer["stratum"] + i) / answer["strata"]) for i in (1, 0))
            if answer["length"] == length and inside(nearest, farthest):
                chosen.append(answer)
        losses = [_number(answer["nll"]) for answer in chosen]
        return Answers(_mean(losses), sum(answer["exact"] for answer in chosen), len(chosen))

    def near(_nearest: float, farthest: float) -> bool:
        return farthest <= float(trained) / 2

    def far(nearest: float, _farthest: float) -> bool:
        return nearest >= float(trained)

    return Standing(
        cut=_mean([_number(x) for x in source["truncated"]]),
        beyond=_mean([_number(x) for x in result["beyond"]]),
        source=at(source["answers"], trained, lambda *_: True),
        near=at(result["answers"], target, near),
        between=at(result["answers"], target, lambda *ends: not near(*ends) and not far(*ends)),
        far=at(result["answers"], target, far),
        short=_number(report["short_context"]["mean"]),
    )


def render(records: Sequence[Record]) -> str:
    """Markdown: a table for each model and factor, then what it shows."""
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record["model"], float(record["factor"])), []).append(record)
    parts = [_table(*key, group) for key, group in groups.items()]
    shown = [line for key, group in groups.items() for line in _shows(*key, group)]
    shown += [f"- Not as described: {line}" for line in contradictions(records)]
    return "\n".join([*parts, "What it shows:\n", *shown]) + "\n"


def contradictions(records: Sequence[Record]) -> list[str]:
    """Where a number is not what a system's own description promises, a line each."""
    found = []
    for record in records:
        if record["error"] or record["role"] == "untrained":
            continue
        told, role = standing(record), record["role"]
        reasons = []
        if told.flat != (role != "unmodified"):
            reasons.append(f"perplexity beyond L0 is {told.ratio:.2f} times that of cutting")
        far = told.found(told.far)
        if told.far.count and (far == "none") != (role in ("unmodified", "window")):
            reasons.append(f"answers beyond L0 are {told.far}, the source's at L0 {told.source}")
        if role != "unmodified" and told.near.count and told.found(told.near) != "as the source":
            reasons.append(f"answers within L0/2 are {told.near}, the source's at L0 {told.source}")
        found += [f"{record['model']} at {record['factor']:g}x, {record['system']}: {reason}." for reason in reasons]
    return found


def _table(model: str, factor: float, group: Sequence[Record]) -> str:
    measured = [record for record in group if not record["error"]]
    if not measured:
        lines = [f"- {record['system']}: {record['error']}" for record in group]
        return "\n".join([f"### {model} at {factor:g}x\n", *lines, ""])
    report = measured[0]["report"]
    trained, target = report["protocol"]["trained_length"], report["protocol"]["target_length"]
    told = standing(measured[0])
    edges = [(bucket["start"], bucket["end"]) for bucket in report["result"]["buckets"]]
    unit = 1024 if all(edge % 1024 == 0 for pair in edges for edge in (*pair, trained)) else 1
    short, long = _length(trained, unit), _length(target, unit)
    heads = ["system", "parameters", f"ppl to {short}", f"ppl to {long}"]
    heads += [f"{_length(start, unit)}-{_length(end, unit)}" for start, end in edges]
    heads += [
        "beyond L0, of cutting",
        "answers within L0/2",
        "to L0",
        "beyond L0",
        "short text",
        "gates that fail",
        "s",
    ]
    own = f"The source at its own {short}: answers {told.source}"
    cut = f"cut to its last {short} tokens, perplexity {math.exp(told.cut):.2f} beyond L0"
    lines = [
        f"### {model} at {factor:g}x: {short} to {long}\n",
        f"{_conditions(report['protocol'])} {own}; {cut}.\n",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for record in group:
        cells = _cells(record) if not record["error"] else [record["error"], *[""] * (len(heads) - 3)]
        chosen = ", ".join(f"{name}={_value(value)}" for name, value in record["parameters"].items())
        lines.append("| " + " | ".join([record["system"], chosen or "-", *cells]) + " |")
    return "\n".join([*lines, ""])


def _cells(record: Record) -> list[str]:
    told, result = standing(record), record["report"]["result"]
    trained, target = (record["report"]["protocol"][name] for name in ("trained_length", "target_length"))
    lengths = {score["length"]: score["ppl"] for score in result["lengths"]}
    gates = [gate["name"] for gate in record["report"]["judgement"]["gates"] if gate["verdict"] == "fail"]
    return [
        *(f"{_number(lengths[length]):.2f}" for length in (trained, target)),
        *(f"{_number(bucket['ppl']):.2f}" for bucket in result["buckets"]),
        f"{told.ratio:.3f}",
        *(str(answers) for answers in (told.near, told.between, told.far)),
        f"{round(told.short, 4) + 0.0:+.4f}",  # no negative zero
        ", ".join(gates) or "-",
        f"{record['seconds']:.1f}",
    ]


def _conditions(protocol: Record) -> str:
    torch, transformers = (protocol["versions"][name] for name in ("torch", "transformers"))
    return (
        f"{protocol['dtype']} on {protocol['device']}, torch {torch}, transformers {transformers};"
        f" {protocol['windows']} windows, {protocol['seeds']} haystacks of {protocol['needles']} strata."
    )


def _shows(model: str, factor: float, group: Sequence[Record]) -> list[str]:
    told = {record["system"]: standing(record) for record in group if not record["error"]}
    where = f"{model} at {factor:g}x"
    if not told:
        return [f"- {where}: nothing could be measured."]
    flat = {name: one for name, one in told.items() if one.flat}
    lines = []
    if flat:
        low, high = min(one.ratio for one in flat.values()), max(one.ratio for one in flat.values())
        lines.append(f"- {where}, perplexity: flat ({low:.3f} to {high:.3f} of cutting) with {', '.join(flat)}.")
    rising = [f"{name} ({one.ratio:.2f} of cutting)" for name, one in told.items() if not one.flat]
    if rising:
        lines.append(f"- {where}, perplexity: rises with {', '.join(rising)}.")
    for state in ("as the source", "less", "none"):
        some = [f"{name} {one.far}" for name, one in told.items() if one.far.count and one.found(one.far) == state]
        if some:
            lines.append(f"- {where}, needles beyond L0, {_FOUND[state]}: {', '.join(some)}.")
    blind = [name for name, one in flat.items() if one.far.count and one.found(one.far) == "none"]
    if blind:
        lines.append(f"- {where}, flat perplexity and no far retrieval: {', '.join(blind)}.")
    costs = [f"{name} {one.short:+.4f}" for name, one in told.items() if one.short >= _NOTHING]
    lines.append(
        f"- {where}, short text, nats a token more: {', '.join(costs) or 'none'}; under {_NOTHING:g} elsewhere."
    )
    lines += [f"- {where}, not measured: {r['system']} ({r['error']})." for r in group if r["error"]]
    return lines


_FOUND = {
    "as the source": f"found about as the source finds those at L0 (at most {_LIMITS['retrieval_nll']:g} nats more)",
    "less": "found, but less",
    "none": "not one found",
}


def _length(tokens: int, unit: int) -> str:
    return f"{tokens // unit}{'k' if unit > 1 and tokens else ''}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _number(value: float | None) -> float:
    """Reports hold None where a number was not finite."""
    return math.inf if value is None else value
