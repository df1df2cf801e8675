"""The gate on depth reads the depth labels: shuffled labels hide a model that is blind at one end, and must show it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ctxforge.sources import bundled_model, bundled_text
from ctxforge.verification import VerifySettings, evaluate_model
from ctxforge.verification.evidence import measurements
from ctxforge.verification.gates.defaults import GATES
from ctxforge.verification.gates.evaluate import judge_measurement
from ctxforge.verification.gates.types import GateResult
from ctxforge.verification.load import load_model, load_tokenizer
from ctxforge.verification.measures import Measures

SETTINGS = VerifySettings(device="cpu", needles=9, seeds=4, lengths=(512,), buckets=4, short_windows=1)


@pytest.fixture(scope="module")
def source() -> Measures:
    return evaluate_model(
        load_model(bundled_model(), SETTINGS, "cpu"),
        load_tokenizer(bundled_model(), SETTINGS),
        text=bundled_text(),
        trained_length=512,
        target_length=512,
        settings=SETTINGS,
        label="source",
    )


def blind_to_the_beginning(measures: Measures) -> Measures:
    """The first third of the depth is never found; elsewhere as the source."""
    return replace(
        measures,
        answers=tuple(
            replace(a, nll=a.nll + 4.0, exact=False) if 3 * a.stratum < a.strata else a for a in measures.answers
        ),
    )


def shuffled(measures: Measures) -> Measures:
    """The same answers with their depth labels dealt anew, haystack by haystack."""
    rng = random.Random(1)
    answers = []
    for seed in sorted({a.seed for a in measures.answers}):
        mine = [a for a in measures.answers if a.seed == seed]
        labels = [a.stratum for a in mine]
        rng.shuffle(labels)
        answers += [replace(a, stratum=label) for a, label in zip(mine, labels, strict=True)]
    return replace(measures, answers=tuple(answers))


def depth_gate(result: Measures, source: Measures) -> GateResult:
    found, _missing = measurements(result, source, 512, 512)
    judged = judge_measurement(
        next(gate for gate in GATES if gate.name == "retrieval_depth_nll"), found["retrieval_depth_nll"]
    )
    assert isinstance(judged, GateResult)
    return judged


def test_a_blind_third_fails_the_gate_on_depth_and_not_with_shuffled_labels(source: Measures) -> None:
    blind = blind_to_the_beginning(source)
    seen, hidden = depth_gate(blind, source), depth_gate(shuffled(blind), source)
    assert seen.verdict == "fail"
    assert seen.interval is not None
    assert hidden.interval is not None
    assert seen.interval.value == pytest.approx(4.0, abs=0.01)
    # A third of the answers lose 4 nats: dealt anew, every third of the depth loses about 4 / 3.
    assert hidden.interval.value < 3.0
    assert depth_gate(source, source).verdict == "pass"
