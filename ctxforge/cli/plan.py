"""`ctxforge plan`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.options import build_recipe, bytes_text, conversion_options
from ctxforge.cli.output import Output, with_output
from ctxforge.cli.push_options import (
    PUSH_OPTIONS,
    build_push,
    push_options,
    push_target,
    refuse_without_push,
    show_plan,
)

if TYPE_CHECKING:
    from ctxforge.engines import EngineVerdict

_ROWS = 8
_COLUMNS = 64


@click.command(
    short_help="Show what extend would do, without doing it.",
    epilog="Example: ctxforge plan bundled --method yarn --to 4x",
)
@conversion_options
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Where extend would write, for the byte counts.")
@push_target
@push_options
@with_output
def command(ui: Output, out: Path | None, push_to: str | None, **options: Any) -> None:
    """Show what `extend` would do with SOURCE: config diff, tensors edited, bytes to move, lambda of each pair.

    Reads headers only; a Hub source's weights are not downloaded. With --push it checks what publishing needs, and says
    how each file would get to the Hub.
    """
    from ctxforge import pipeline
    from ctxforge.provenance import plan_document

    given = {name: options.pop(name) for name in PUSH_OPTIONS}
    if push_to is None:
        refuse_without_push(given)
    conversion = pipeline.plan(build_recipe(**options))
    plan = conversion.plan
    estimate = conversion.estimate(out or Path("ctxforge-plan-output"))
    ui.heading(f"{plan.method}: {plan.original_length} -> {plan.target_length} tokens (s = {plan.scale:g})")
    ui.text(f"  trained length: {conversion.geometry.evidence}")
    for line in (
        *conversion.lowered.notes,
        *(f"{name} agrees to {worst:.1g}" for name, worst in conversion.agreement.items()),
    ):
        ui.text(f"  {line}")
    for group in plan.groups:
        if group.changed:
            where = f" ({group.layer_type})" if group.layer_type else ""
            ui.heading(f"lambda by pair{where}, a = {group.rotation.temperature:.6g}")
            ui.text(divisor_plot(group.rotation.divisors))
    ui.heading("engines")
    ui.pairs(engine_lines(conversion.engines.rows))
    ui.heading("config.json")
    ui.text(conversion.config_diff.rstrip("\n") or "  unchanged")
    ui.heading("weights")
    edited = sorted({edit.tensor for edit in conversion.edits.tensors})
    ui.pairs(
        [
            ("tensors edited", f"{len(edited)} of {len(conversion.checkpoint.tensors)}"),
            ("to download", bytes_text(estimate.bytes_to_download)),
            ("to read", bytes_text(estimate.bytes_to_read)),
            ("to write", bytes_text(estimate.bytes_to_write)),
        ]
    )
    for line in plan.warnings:
        ui.warn(line)
    push: dict[str, Any] = {}
    if push_to is not None:
        from ctxforge import publish

        found = publish.plan_publish(conversion, build_push(push_to, given)).plan
        show_plan(ui, found)
        push["push"] = found.document()
    ui.document(
        "ok",
        {
            **push,
            "plan": plan_document(conversion),
            "engines": [
                {"engine": row.engine, "versions": row.versions, "verdict": row.verdict, "detail": row.detail}
                for row in conversion.engines.rows
            ],
            "config_diff": conversion.config_diff,
            "bytes": {
                "to_download": estimate.bytes_to_download,
                "to_read": estimate.bytes_to_read,
                "to_write": estimate.bytes_to_write,
            },
        },
    )


def engine_lines(rows: Sequence[EngineVerdict]) -> list[tuple[str, str]]:
    """The engines by verdict: those that simply honour the config on one line, the others with what they do."""
    honouring = [f"{row.engine} {row.versions}" for row in rows if row.verdict == "honours"]
    lines = [("honour it", ", ".join(honouring) or "none")]
    for row in rows:
        if row.verdict != "honours":
            said = "; ".join(part for part in (row.detail, " ".join(row.flags)) if part)
            lines.append((f"{row.engine} {row.versions}", f"{row.verdict}: {said}"))
    return lines


def divisor_plot(divisors: tuple[float, ...]) -> str:
    """Lambda against the pair index as text: the highest value at the top, one column a pair (or several)."""
    step = -(-len(divisors) // _COLUMNS)
    values = [max(divisors[i : i + step]) for i in range(0, len(divisors), step)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    heights = [round((value - low) / span * (_ROWS - 1)) for value in values]
    lines = []
    for row in range(_ROWS - 1, -1, -1):
        label = (
            f"{low + span * row / (_ROWS - 1):8.2f} |"
            if high > low
            else (f"{high:8.2f} |" if row == 0 else " " * 8 + " |")
        )
        lines.append(label + "".join("*" if height == row else " " for height in heights).rstrip())
    lines.append(" " * 9 + "+" + "-" * len(values))
    lines.append(" " * 10 + f"pair 0 ... {len(divisors) - 1}, fast to slow")
    return "\n".join(lines)
