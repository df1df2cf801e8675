"""The comparison of docs/comparison-smollm2.md: seven methods on SmolLM2-135M at 16k, as measured, to five digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctxforge.comparison import SCORE
from ctxforge.verification.html import ComparisonRow, render_comparison
from ctxforge.verification.measures import Measures
from ctxforge.verification.perplexity import BucketScore, LengthScore
from ctxforge.verification.report import Protocol
from ctxforge.verification.scored import RetrievalCell, ScoredAnswer
from ctxforge.verification.statistics import Interval

STORED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "fixtures" / "smollm2_16k_compare.json").read_text(encoding="utf-8")
)


def rows() -> list[ComparisonRow]:
    """As `compare` ranked them."""
    return [
        ComparisonRow(
            name=entry["name"],
            measures=_measures(entry["measures"]),
            plan=entry["plan"],
            score=Interval(**entry["score"]),
            difference=None if entry["difference"] is None else Interval(**entry["difference"]),
            warnings=tuple(entry["warnings"]),
        )
        for entry in STORED["methods"]
    ]


def page() -> str:
    """Its page."""
    protocol = {**STORED["protocol"], "prefix_ids": tuple(STORED["protocol"]["prefix_ids"])}
    return render_comparison(
        rows(),
        trained_length=STORED["trained_length"],
        target_length=STORED["target_length"],
        score=SCORE,
        higher_is_better=False,
        protocol=Protocol(**protocol),
        title="Methods on SmolLM2-135M-Instruct",
        command="ctxforge compare SmolLM2-135M-Instruct --to 16k",
    )


def _measures(data: dict[str, Any]) -> Measures:
    return Measures(
        **{
            **data,
            "lengths": tuple(LengthScore(*row) for row in data["lengths"]),
            "buckets": tuple(BucketScore(*row) for row in data["buckets"]),
            "retrieval": tuple(RetrievalCell(*row) for row in data["retrieval"]),
            "answers": tuple(ScoredAnswer(*row) for row in data["answers"]),
            "window_buckets": tuple(tuple(BucketScore(*row) for row in window) for window in data["window_buckets"]),
            "short_windows": tuple(data["short_windows"]),
            "beyond": tuple(data["beyond"]),
            "truncated": (),
        }
    )
