"""What a conversion can't do or costs, a line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ctxforge.lengths import format_length
from ctxforge.publish.card.cache_size import cache_size
from ctxforge.publish.card.changes import Explained
from ctxforge.publish.card.evaluation import short_interval
from ctxforge.publish.card.record import Record
from ctxforge.verification.html import numbers

if TYPE_CHECKING:
    from ctxforge.verification.report import VerifyReport


def limits(
    record: Record,
    report: VerifyReport | None,
    config: Mapping[str, Any],
    methods: tuple[Explained, ...],
    attachment: Explained | None,
) -> list[str]:
    """Length, short text, training that was not done, the attention system's limits, memory, dialects."""
    lines = [_length(record, report), _short(report)]
    if not record.calibrations:
        lines += [f"{one.title} needs training ({one.needs}), and none was done." for one in methods if one.needs]
        if attachment is not None and attachment.needs:
            lines.append(f"{attachment.title}: {attachment.needs} None was done.")
    lines += [f"Known of {one.title}: {line}" for one in methods for line in one.cannot]
    if attachment is not None:
        lines += [f"{attachment.title}: {line}" for line in attachment.cannot]
    lines += [_memory(record, config, attachment), _dialects(record, config)]
    when = "Before the calibration: " if record.calibrations else ""
    lines += [f"{when}{line}" for line in record.warnings]
    return list(dict.fromkeys(line for line in lines if line))


def _length(record: Record, report: VerifyReport | None) -> str:
    target = record.target_length
    if target is None:
        return ""
    words = f"Made for at most {target} tokens. Beyond that the config promises nothing"
    if report is None:
        return words + ", and nothing up to there was measured."
    measured = max((score.length for score in report.result.lengths), default=0)
    measured = max([measured, *(answer.length for answer in report.result.answers)])
    if not measured:
        return words + ", and no length was measured."
    return words + f"; the longest text that was measured has {measured} tokens."


def _short(report: VerifyReport | None) -> str:
    interval = None if report is None else short_interval(report)
    if report is None or interval is None or report.short_context is None:
        return "What the conversion costs on short text was not measured."
    bounds = "too few windows for an interval"
    if interval.bounds is not None:
        bounds = f"95 % {numbers.bounds(interval, numbers.nats)}"
    lost, length = numbers.nats(report.short_context.mean), report.short_context.length
    measured = f"{bounds}, {interval.units} windows"
    words = f"Text inside the first {length} tokens: loss {lost} nats a token against the unmodified model"
    return f"{words} ({measured}); positive is worse."


def _memory(record: Record, config: Mapping[str, Any], attachment: Explained | None) -> str:
    if attachment is not None and attachment.cost:
        return f"Cost of {attachment.title}: {attachment.cost}."
    target = record.target_length
    if target is None:
        return ""
    found = cache_size(config, target)
    if found is None:
        return ""
    window = f" and {found.windowed} that keep a window" if found.windowed else ""
    return (
        f"Memory: the KV cache of one sequence of {format_length(target)} tokens takes {_amount(found.bytes)} at"
        f" {8 * found.element} bits a number: {found.layers} layers{window}, {found.heads} heads of keys and values,"
        f" {found.head_dim} dimensions each. It comes on top of the weights, for every sequence at once."
    )


def _amount(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{numbers.number(count / size)} {unit}"
    return f"{count} bytes"


def _dialects(record: Record, config: Mapping[str, Any]) -> str:
    if not record.changed or config.get("rope_parameters") is None or config.get("rope_theta") is None:
        return ""
    return (
        "config.json says the rotation twice, for transformers 5 (rope_parameters) and for everything that reads the"
        " older keys (rope_theta, rope_scaling). save_pretrained of transformers 5 keeps the first alone: engines that"
        " read the older keys then lose the extension without a word."
    )
