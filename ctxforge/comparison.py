"""Compare methods on one model that is loaded once: rotary tables are swapped in place, never the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ctxforge import schemes
from ctxforge.checkpoint import fetch, read_checkpoint
from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.lengths import parse_length
from ctxforge.origins import understand_checkpoint
from ctxforge.provenance import tables_document
from ctxforge.recipe import MethodChoice
from ctxforge.rope import RopeGeometry, RopePlan
from ctxforge.sources import resolve_source

if TYPE_CHECKING:
    from ctxforge.verification import Measures, Protocol, VerifySettings
    from ctxforge.verification.html import ComparisonRow
    from ctxforge.verification.statistics import Interval

UNMODIFIED = "unmodified"
SCORE = "answer loss at the target, nats a token"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Comparison:
    """Methods measured on the same tokens, best first.

    Attributes:
        rows: one a method, and the model as it is; ranked by `SCORE`, lower is better.
        trained_length, target_length: L0 and L' in tokens.
        protocol: how everything was measured.
    """

    rows: tuple[ComparisonRow, ...]
    trained_length: int
    target_length: int
    protocol: Protocol


def compare(
    source: str,
    methods: Sequence[MethodChoice],
    *,
    to: str,
    text: str,
    settings: VerifySettings,
    original_length: str | None = None,
    trained_length: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Measure `source` as it is and with each method's lambda and temperature, on one load of its weights.

    Every method sees the same windows and the same haystacks; differences to the best are paired by prompt.

    Args:
        source: a folder, a Hub id, or "bundled".
        methods: static RoPE methods.
        to: target length, as for `extend`.
        text: what to measure on, at least as long as the target.
        settings: what to measure; retrieval must be on, methods are ranked by it.
        original_length, trained_length: as for `extend`.
        fresh: forget what an interrupted run of the same comparison left.
        progress: called with (what, done, of how many).

    Raises:
        UsageError: no method, the same one twice, or no retrieval.
        UnsupportedError: a model without RoPE, or a method that no static table expresses.
        CtxforgeError: see `extend` and `verify`.
    """
    from ctxforge import verification
    from ctxforge.verification.journal import Journal, journal_folder, kept_when_interrupted
    from ctxforge.verification.load import load_model, load_tokenizer, memory_errors, pick_device, pick_dtype
    from ctxforge.verification.processes import find_processes
    from ctxforge.verification.swap import swapped

    names = [_name(choice) for choice in methods]
    if not names or len(set(names)) != len(names):
        raise UsageError("compare needs methods, each once", "write --methods pi,ntk,yarn")
    if not settings.retrieval:
        raise UsageError("compare ranks methods by retrieval, which was switched off", "leave --no-retrieval out")
    checkpoint = read_checkpoint(resolve_source(source))
    if checkpoint.root is None or checkpoint.weights != "safetensors":
        checkpoint = fetch(checkpoint)
    stated = None if trained_length is None else parse_length(trained_length)
    geometry = understand_checkpoint(checkpoint, stated)
    original = None if original_length is None else parse_length(original_length)
    base = original or geometry.trained_length
    target = None if base is None else parse_length(to, relative_to=base)
    plans = {
        name: _static(schemes.make_plan(geometry, choice, target, original), geometry, name)
        for name, choice in zip(names, methods, strict=True)
    }
    first = next(iter(plans.values()))
    processes = find_processes(settings.device)
    device = pick_device(settings.device, processes.local_rank)
    root = checkpoint.root
    assert root is not None
    settings = replace(settings, dtype=pick_dtype(settings.dtype, root, device, first.target_length))
    tokenizer = load_tokenizer(root, settings)
    tokens = verification.prepare_text(tokenizer, text, first.target_length, settings)
    lengths = (first.original_length, first.target_length)
    protocol = verification.protocol(tokens, *lengths, settings, device, processes.count)
    tables = {UNMODIFIED: [], **{name: _tables(plan) for name, plan in plans.items()}}
    journals = {
        name: Journal(
            journal_folder(
                root,
                tokens.sha256,
                settings,
                lengths,
                device=device.split(":")[0],
                versions=protocol.versions,
                variant=repr(values),
            )
        )
        for name, values in tables.items()
    }
    if fresh and processes.rank == 0:
        for journal in journals.values():
            journal.discard()
    measures: dict[str, Measures] = {}
    with kept_when_interrupted(list(journals.values())), memory_errors(lengths[1], settings, root, device):
        model = load_model(root, settings, device)
        for name, values in tables.items():
            with swapped(model, values):
                measures[name] = verification.evaluate_model(
                    model,
                    tokenizer,
                    text=tokens,
                    trained_length=first.original_length,
                    target_length=first.target_length,
                    settings=settings,
                    label=name,
                    journal=journals[name],
                    processes=processes,
                    progress=progress,
                )
    if processes.rank == 0:
        for journal in journals.values():
            journal.discard()
    return Comparison(_ranked(measures, plans), first.original_length, first.target_length, protocol)


def _name(choice: MethodChoice) -> str:
    name = "+".join((choice.name, *choice.modifiers))
    return name + (f":{','.join(f'{k}={v}' for k, v in choice.parameters.items())}" if choice.parameters else "")


def _static(plan: schemes.Plan, geometry: schemes.Geometry, name: str) -> RopePlan:
    moving = isinstance(plan, RopePlan) and any(
        group.rotation.length_dependent or group.rotation.code is not None for group in plan.groups if group.changed
    )
    if not isinstance(plan, RopePlan) or not isinstance(geometry, RopeGeometry) or moving:
        raise UnsupportedError(
            f"{name} is not one static rotary table, and compare swaps tables in place",
            "convert it with `ctxforge extend` and measure the output with `ctxforge verify`",
        )
    return plan


def _tables(plan: RopePlan) -> list[Any]:
    from ctxforge.rope.spectrum import plain_frequencies
    from ctxforge.verification.swap import TableValues

    return [
        TableValues(
            group.layer_type,
            [
                f / divisor
                for f, divisor in zip(
                    plain_frequencies(group.rotated_dims, group.base), group.rotation.divisors, strict=True
                )
            ],
            group.rotation.temperature,
        )
        for group in plan.groups
        if group.changed
    ]


def _ranked(measures: dict[str, Measures], plans: dict[str, RopePlan]) -> tuple[ComparisonRow, ...]:
    """Rows by answer loss at the target; intervals over prompts, differences paired with the best method's."""
    from ctxforge.verification.html import ComparisonRow

    losses = {name: _losses(found) for name, found in measures.items()}
    order = sorted(losses, key=lambda name: sum(losses[name]))
    best = losses[order[0]]
    rows = []
    for name in order:
        paired = [mine - other for mine, other in zip(losses[name], best, strict=True)]
        plan = plans.get(name)
        rows.append(
            ComparisonRow(
                name=name,
                measures=measures[name],
                plan=None if plan is None else _document(plan),
                score=_interval(losses[name]),
                difference=None if name == order[0] else _interval(paired),
                warnings=() if plan is None else plan.warnings,
            )
        )
    return tuple(rows)


def _losses(found: Measures) -> list[float]:
    longest = max(answer.length for answer in found.answers)
    return [answer.nll for answer in found.answers if answer.length == longest]


def _interval(values: list[float]) -> Interval:
    from ctxforge.verification.statistics import paired_bootstrap

    return paired_bootstrap(values)[0]


def _document(plan: RopePlan) -> dict[str, Any]:
    return {
        "method": plan.method,
        "parameters": dict(plan.parameters),
        "original_length": plan.original_length,
        "target_length": plan.target_length,
        "scale": plan.scale,
        "composed": plan.composed,
        "tables": tables_document(plan, {}),
    }
