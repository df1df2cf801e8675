"""`ctxforge diff` for people: tables, and one line that says it all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ctxforge.cli.options import bytes_text
from ctxforge.cli.output import Output
from ctxforge.differences import Amounts, Differences, JsonChange, TensorDifference
from ctxforge.differences.json_changes import path_text
from ctxforge.differences.types import group_of

_ROWS = 20
"""Changed keys of one file that are shown without --full."""

_LIST = 4
"""Changes within one list of numbers beyond which they are summed up in a line."""

_WIDTH = 48


def show(ui: Output, found: Differences, *, full: bool) -> None:
    """The whole comparison on stdout."""
    for side, source, revision in zip("AB", found.sources, found.revisions, strict=True):
        ui.text(f"{side}  {source}" + (f" at {revision}" if revision else ""))
    for one in found.json:
        if one.changes:
            ui.heading(one.file)
            _json_table(ui, one.changes, full)
        else:
            ui.text(f"\n{one.file}: the same values; only formatting or key order differs")
    _rotary(ui, found)
    _tensors(ui, found, full)
    _layout(ui, found)
    if found.files:
        ui.heading("Files")
        _table(
            ui,
            ("file", "what", "bytes of A", "bytes of B"),
            [(f.file, f.kind, *map(_count, f.sizes)) for f in found.files],
        )
    for note in found.notes:
        ui.text(note)
    ui.text(f"\n{verdict(found)}")


def verdict(found: Differences) -> str:
    """One line: what differs, or in what sense nothing does."""
    parts = [f"{len(one.changes)} values of {one.file}" for one in found.json if one.changes]
    kinds = {"added": "added", "removed": "removed", "shape": "of another shape", "dtype": "of another dtype"}
    kinds["bytes"] = "of other bytes"
    for kind, words in kinds.items():
        count = sum(one.kind == kind for one in found.tensors)
        parts += [f"{count} tensors {words}"] if count else []
    files = sum(one.kind != "not compared" for one in found.files)
    parts += [f"{files} files"] if files else []
    metadata = sum(bool(one.metadata) for one in found.headers)
    parts += [f"the metadata of {metadata} weight files"] if metadata else []
    if parts:
        return f"different: {', '.join(parts)}"
    if not found.complete:
        return "no difference in what was compared"
    told = found.sharding.differs or found.headers or found.json
    return "the same, but for formatting or the layout in files" if told else "the same"


def _table(ui: Output, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of texts that come from files: "[/INST]" is one, and no markup."""
    from rich.markup import escape

    ui.table(header, [[escape(cell) for cell in row] for row in rows])


def _json_table(ui: Output, changes: Sequence[JsonChange], full: bool) -> None:
    rows = [_json_row(change) for change in changes] if full else _summed_up(changes)
    shown = rows if full else rows[:_ROWS]
    _table(ui, ("key", "A", "B"), shown)
    if len(rows) > len(shown):
        ui.text(f"  and {len(rows) - len(shown)} more (--full)")


def _json_row(change: JsonChange) -> tuple[str, str, str]:
    before = "-" if change.kind == "added" else _value(change.before)
    after = "-" if change.kind == "removed" else _value(change.after)
    return path_text(change.path), before, after


def _summed_up(changes: Sequence[JsonChange]) -> list[tuple[str, str, str]]:
    """One row a change, but one for a list of which many elements changed."""
    lists: dict[tuple[str | int, ...], list[JsonChange]] = {}
    for change in changes:
        if change.path and isinstance(change.path[-1], int):
            lists.setdefault(change.path[:-1], []).append(change)
    rows, done = [], set()
    for change in changes:
        holder = change.path[:-1]
        inside = lists.get(holder, []) if change.path and isinstance(change.path[-1], int) else []
        if len(inside) <= _LIST:
            rows.append(_json_row(change))
        elif holder not in done:
            done.add(holder)
            first, last = inside[0], inside[-1]
            rows.append(
                (
                    f"{path_text(holder)}: {len(inside)} elements",
                    f"{_value(first.before)} ... {_value(last.before)}",
                    f"{_value(first.after)} ... {_value(last.after)}",
                )
            )
    return rows


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."


def _rotary(ui: Output, found: Differences) -> None:
    changed = [one for one in found.rotary if one.changed]
    if not changed:
        return
    ui.heading("What that means for the rotation")
    for one in changed:
        if one.layer_type:
            ui.text(f"  {one.layer_type}")
        ui.pairs([("A", one.before), ("B", one.after)])
        if one.largest_change is not None:
            ratio = one.largest_change
            words = (
                "no pair turns at another speed"
                if not one.pairs_changed
                else (
                    f"{one.pairs_changed} of {one.pairs} pairs turn at another speed; the largest divisor change is"
                    f" x {ratio:.6g}, of pair {one.pair}"
                )
            )
            ui.text(f"  {words}")
        if None not in one.temperature and one.temperature[0] != one.temperature[1]:
            ui.text("  temperature on cos and sin: {:.6g} -> {:.6g}".format(*one.temperature))
        if one.folded != (1.0, 1.0):
            ui.text("  recorded: the weights carry a factor on q.k of {:.6g} -> {:.6g}".format(*one.folded))
            ui.text("  so q.k is scaled by {} -> {} in all".format(*map(_scale, one.temperature, one.folded)))
        if one.lengths[0] != one.lengths[1]:
            ui.text(f"  works at {_count(one.lengths[0])} -> {_count(one.lengths[1])} tokens")


def _scale(temperature: float | None, folded: float) -> str:
    """What cos, sin and the weights do to q.k together."""
    return "-" if temperature is None else f"{temperature**2 * folded:.6g}"


def _tensors(ui: Output, found: Differences, full: bool) -> None:
    ui.heading("Tensors")
    same = len(found.every_tensor) - len(found.tensors)
    ui.text(
        f"  {same} of {len(found.every_tensor)} are equal; {bytes_text(found.bytes_read)} compared,"
        f" {bytes_text(found.bytes_skipped)} known to be equal without reading"
    )
    if not found.tensors:
        return
    header = ("tensor" if full else "group", "what", "tensors", "changed", "largest", "relative")
    if full:
        rows = [_tensor_row(one.name, one.kind, [one], 1) for one in found.tensors]
    else:
        sizes: dict[str, int] = {}
        for name in found.every_tensor:
            sizes[group_of(name)] = sizes.get(group_of(name), 0) + 1
        rows = [
            _tensor_row(group, kind, members, sizes[group])
            for group, every in found.by_group.items()
            for kind in dict.fromkeys(one.kind for one in every)
            if (members := [one for one in every if one.kind == kind])
        ]
    _table(ui, header, rows)


def _tensor_row(name: str, kind: str, members: Sequence[TensorDifference], of: int) -> tuple[str, ...]:
    count = f"{len(members)} of {of}" if of > 1 else "1"
    measured = [one.amounts for one in members if one.amounts is not None]
    if not measured:
        return name, _shape_words(kind, members), count, "", "", ""
    total = sum(measured[1:], measured[0])
    strange = f" ({total.not_finite} not finite)" if total.not_finite else ""
    return name, kind, count, f"{_share(total)}{strange}", _number(total.largest), _number(total.largest_relative)


def _shape_words(kind: str, members: Sequence[TensorDifference]) -> str:
    """What a tensor is, or what it became where all of a group became the same."""
    words = {_became(one) for one in members}
    return f"{kind}: {words.pop()}" if len(words) == 1 else kind


def _became(one: TensorDifference) -> str:
    sides = [f"{info.dtype} {list(info.shape)}" for info in (one.before, one.after) if info is not None]
    return " -> ".join(dict.fromkeys(sides))


def _layout(ui: Output, found: Differences) -> None:
    layout = found.sharding
    if layout.differs:
        ui.heading("Layout, not a difference")
        ui.text(
            f"  {layout.files[0]} -> {layout.files[1]} weight files; {layout.moved} tensors in a file of another name,"
            f" {layout.shifted} elsewhere in their file"
        )
    for one in found.headers:
        ui.heading(f"Header of {one.file}")
        for change in one.metadata:
            ui.text("  metadata {}: {} -> {}".format(*_json_row(change)))
        if one.spelling:
            ui.text("  spelled or padded otherwise; the same tensors")


def _share(total: Amounts) -> str:
    if total.share in (0.0, 1.0) or total.changed < 100:
        return f"{total.changed} of {total.elements}"
    return f"{100 * total.share:.3g} % of {total.elements}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)
