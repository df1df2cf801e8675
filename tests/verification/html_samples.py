"""Reports to render: a stored one of the bundled model with yarn, and a made-up one with everything that is awkward.

`fixtures/bundled_yarn_2k.json` is `VerifyReport.to_dict()` of the bundled model extended to 2k (8 windows, 10 depths,
4 haystacks) with the plan of its ctxforge.json, rounded to five digits.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ctxforge.verification.external.options import ExternalOptions
from ctxforge.verification.external.result import Average, ExternalReport, NotRun, TaskScore
from ctxforge.verification.far_context import FarContext
from ctxforge.verification.gates import (
    EffectiveLength,
    Judgement,
    Measurement,
    default_gates,
    difference,
    exact,
    judge,
    ratio,
)
from ctxforge.verification.html import ComparisonRow
from ctxforge.verification.measures import Measures
from ctxforge.verification.perplexity import BucketScore, LengthScore
from ctxforge.verification.protocols.result import DocumentScore, ProtocolResult
from ctxforge.verification.report import Protocol, ShortContext, VerifyReport
from ctxforge.verification.scored import RetrievalCell, ScoredAnswer
from ctxforge.verification.statistics import Interval, paired_bootstrap, too_few
from ctxforge.verification.tasks import PromptScore

STORED = json.loads((Path(__file__).parent / "fixtures" / "bundled_yarn_2k.json").read_text(encoding="utf-8"))
PLAN: dict[str, Any] = STORED["plan"]
COMMAND = "ctxforge verify out --source bundled --windows 8 --needles 10 --seeds 4 --report report.html"
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>&amp;"
# No space to break at.
ENDLESS = "organisation/" + "A-very-long-model-name-" * 9
EFFECTIVE = EffectiveLength(2048, 1024, 2048, True, (), "2k, the longest length measured (95 % 1k to 2k)")


def measures_of(data: dict[str, Any]) -> Measures:
    parts = {
        "lengths": tuple(LengthScore(**entry) for entry in data["lengths"]),
        "buckets": tuple(BucketScore(**entry) for entry in data["buckets"]),
        "retrieval": tuple(RetrievalCell(**entry) for entry in data["retrieval"]),
        "answers": tuple(ScoredAnswer(**entry) for entry in data["answers"]),
        "window_buckets": tuple(tuple(BucketScore(**b) for b in window) for window in data["window_buckets"]),
        "short_windows": tuple(data["short_windows"]),
    }
    return filled(Measures, {**data, **parts})


def filled(kind: Any, known: dict[str, Any]) -> Any:
    """`kind` with fields that the stored report is too old to hold left empty."""
    given = {}
    for field in dataclasses.fields(kind):
        if field.name in known or field.default is dataclasses.MISSING:
            given[field.name] = known.get(field.name, () if field.name in ("beyond", "truncated") else None)
    return kind(**given)


def stored_report() -> VerifyReport:
    data = STORED["report"]
    protocol = {**data["protocol"], "prefix_ids": tuple(data["protocol"]["prefix_ids"])}
    short = data["short_context"]
    return VerifyReport(
        filled(Protocol, protocol),
        measures_of(data["result"]),
        measures_of(data["source"]),
        ShortContext(short["length"], tuple(short["differences"]), short["mean"]),
    )


def measured(report: VerifyReport) -> dict[str, Measurement]:
    """Some of the measurements of a stored report, at its target."""
    assert report.source is not None
    target, trained = report.protocol.target_length, report.protocol.trained_length
    theirs = {(a.seed, a.stratum): a for a in report.source.answers if a.length == trained}
    ours = {(a.seed, a.stratum): a for a in report.result.answers if a.length == target}
    shared = [prompt for prompt in ours if prompt in theirs]
    pairs = [(float(ours[p].exact), float(theirs[p].exact)) for p in shared]
    losses = [(ours[p].nll, theirs[p].nll) for p in shared]
    return {
        "nonfinite_losses": exact(0),
        "cache_difference": exact(1.2e-5),
        "short_nll": difference(report.result.short_windows, report.source.short_windows, unit="document"),
        "retrieval": ratio(*zip(*pairs, strict=True), unit="prompt", outcomes=True),
        "retrieval_nll": difference(*zip(*losses, strict=True), unit="prompt"),
    }


def judged(report: VerifyReport, *, broken: bool = False, required: tuple[str, ...] = ("use",)) -> Judgement:
    found = measured(report)
    if broken:
        found["nonfinite_losses"] = exact(3)
    return judge(default_gates(required=required), found, missing={"delta_use": "it was not asked for"})


def awkward_report(words: str = HOSTILE) -> VerifyReport:
    """Nine lengths to 64k, values that are not finite, three windows, `words` wherever text of others can stand."""
    base = stored_report()
    lengths = tuple(256 << i for i in range(9))
    cells = tuple(
        RetrievalCell(n, i, i / 10, (i + 1) / 10, 0.3 * i if i < 9 else math.nan, 20 - 2 * i, 20)
        for n in lengths
        for i in range(10)
    )
    buckets = tuple(BucketScore(8192 * i, 8192 * (i + 1), 8192, 1.0 + 2.0 * i, math.exp(1 + 2 * i)) for i in range(8))
    broken = (*buckets[:-1], BucketScore(57344, 65536, 8191, math.nan, math.nan))
    result = dataclasses.replace(
        base.result,
        label=f"result {words}",
        lengths=tuple(LengthScore(n, n - 1, 800.0 if n > 8192 else 2.0, math.inf) for n in lengths),
        buckets=broken,
        retrieval=cells,
        window_buckets=(broken,) * 3,
        attention=words,
        retrieval_way=words,
        finite=False,
    )
    protocol = dataclasses.replace(
        base.protocol,
        trained_length=8192,
        target_length=65536,
        needle_form=words,
        average=words,
        versions={"python": words, words: "1"},
    )
    report = VerifyReport(protocol, result, None, ShortContext(8192, (math.nan, 0.1), math.nan))
    return with_external(everything(words, report), words)


def awkward_plan(words: str = HOSTILE) -> dict[str, Any]:
    table = PLAN["tables"][0]
    divisors = [1.0] * 8 + [8.0] * 16 + [1e30] * 8
    return {
        **PLAN,
        "method": words,
        "warnings": [words],
        "expressed_as": [words],
        "tables": [{**table, "layer_type": words, "divisors": divisors}, {**table, "layer_type": "full", "base": 5e5}],
    }


def tasks_of(lengths: tuple[int, ...], words: str = "", *, hits: int = 6) -> tuple[PromptScore, ...]:
    """Eight pass keys of which `hits` are right, and three generated answers, one of them empty, a length each."""
    scores = []
    for length in lengths:
        scores += [
            PromptScore("passkey", i, i % 4, length, 0.25 * (i + 1), i < hits, float(i < hits)) for i in range(8)
        ]
        scores += [
            PromptScore("multi-value", 0, None, length, None, True, 1.0, "1 2 3 4"),
            PromptScore("multi-value", 1, None, length, None, False, 0.25, f"one {words or 'only'}"),
            PromptScore("multi-value", 2, None, length, None, False, 0.25, ""),
        ]
    return tuple(scores)


def protocol_of(name: str, length: int, nll: float, *, documents: int = 8, words: str = "") -> ProtocolResult:
    scores = tuple(DocumentScore(nll + 0.01 * i, 100.0, 100, 2) for i in range(documents))
    mean = nll + 0.01 * (documents - 1) / 2
    parameters = {
        "stride": 256,
        "truncate": False,
        "prefix_tokens": 1,
        "mean": "over windows",
        "shorter_documents": 0,
        "own_knob": words or "x",
    }
    traps = ("Windows reach over documents.", f"Cold starts count. {words}")
    ppl = math.exp(mean) if math.isfinite(mean) else mean
    return ProtocolResult(name, length, parameters, traps, scores, mean, ppl, 100 * documents, 2 * documents, "a pass")


def far_context_of(*gains: float, keys: int = 40) -> FarContext:
    mean = sum(gains) / len(gains)
    losses = tuple(1.0 if keys else math.nan for _ in gains)
    counts = tuple(keys for _ in gains)
    longppl = math.e if keys else math.nan
    return FarContext(256, 64, 512, 2.0, 2.0, gains, mean, losses, counts, 1792 * len(gains), longppl)


def everything(words: str = "", report: VerifyReport | None = None) -> VerifyReport:
    """A report (the stored one) with tasks, protocols and far context of result and source."""
    base = report or stored_report()
    broken = math.nan if report is not None else 1.2
    lengths = base.protocol.trained_length, base.protocol.target_length
    result = dataclasses.replace(
        base.result,
        tasks=tasks_of(lengths, words),
        protocols=(
            protocol_of("yarn-sliding", lengths[1], 1.1, words=words),
            protocol_of("one-pass", lengths[0], broken, documents=2, words=words),
        ),
        far_context=far_context_of(*(0.1 * i for i in range(8)), keys=0 if report is not None else 40),
    )
    source = None
    if base.source is not None:
        source = dataclasses.replace(
            base.source,
            tasks=tasks_of(lengths[:1], words, hits=8),
            protocols=(
                protocol_of("yarn-sliding", lengths[1], 2.1, words=words),
                protocol_of("one-pass", lengths[0], 1.1, documents=2, words=words),
            ),
            far_context=far_context_of(*(-0.1 for _ in range(8)), keys=0),
        )
    return dataclasses.replace(base, result=result, source=source, notes=(f"a task was left out {words}",))


def external_report(words: str = "") -> ExternalReport:
    share = Interval(0.5, 0.4, 0.6, 100, "Wilson")
    ruler = TaskScore(
        benchmark="ruler",
        task=f"ruler_vt{words}",
        metric="string_match_all",
        filter="none",
        length=2048,
        asked=2044,
        version="1",
        result=share,
        source=Interval(0.75, 0.7, 0.8, 100, "Wilson"),
        difference=Interval(-0.25, -0.3, -0.2, 100, "paired bootstrap"),
        documents=101,
        left_out=1,
        source_left_out=3,
        paired=100,
        longest=2040,
        traps=(f"spaces count {words}",),
    )
    alone = {"source": None, "difference": None, "source_left_out": None, "traps": ()}
    piqa = {"benchmark": "tasks", "task": "piqa", "metric": "acc", "length": None, "asked": None, **alone}
    return ExternalReport(
        lm_eval="0.4.9",
        options=ExternalOptions(tasks=("ruler", "piqa"), lengths=(2048,), limit=101),
        limit=2048,
        source_limit=512,
        scores=(ruler, dataclasses.replace(ruler, **piqa, result=too_few(0.5, 2))),
        averages=(Average("ruler", 2048, 1, 13, 0.5, 0.75),),
        left_out=(),
        not_run=(NotRun("ruler_qa_squad", 2048, f"no data {words}"),),
        device="cpu",
        versions={"lm_eval": "0.4.9"},
        traps=(f"a trap of all {words}",),
    )


def with_external(report: VerifyReport, words: str = "") -> VerifyReport:
    """The report with scores that lm-eval handed over."""
    return dataclasses.replace(report, external=external_report(words))


def comparison_rows(names: tuple[str, ...] = ("none", "pi", "yarn"), words: str = "") -> list[ComparisonRow]:
    """The stored source under the first name, the stored result made worse step by step under the others."""
    report = stored_report()
    assert report.source is not None
    last = [window[-1].nll for window in report.result.window_buckets]
    rows = []
    for step, name in enumerate(names):
        values = [nll + 0.4 * (len(names) - 1 - step) for nll in last]
        plan = None if step == 0 else {**PLAN, "method": name}
        gap = [a - b for a, b in zip(values, last, strict=True)]
        rows.append(
            ComparisonRow(
                name,
                report.source if step == 0 else report.result,
                plan,
                paired_bootstrap(values)[0],
                None if name == names[-1] else paired_bootstrap(gap)[0],
                (words,) if words else (),
            )
        )
    return rows
