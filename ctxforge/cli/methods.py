"""`ctxforge methods`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ctxforge.cli.output import Output, with_output


@click.command(short_help="List the methods, or explain one.", epilog="Example: ctxforge methods yarn")
@click.argument("name", required=False)
@with_output
def command(ui: Output, name: str | None) -> None:
    """List the methods and modifiers; with NAME, explain one: formula, parameters, results, costs.

    A modifier follows a method after a plus sign: --method yarn+resonance.
    """
    from ctxforge.rope.methods import METHODS, find_method
    from ctxforge.rope.modifiers import MODIFIERS

    if name is None:
        documents = [_describe(method) for method in METHODS.values()]
        steps = [_describe_modifier(modifier) for modifier in MODIFIERS.values()]
        ui.table(
            ["method", "name in the field", "needs", "positions"],
            [[entry["name"], _title(entry), entry["needs"], entry["scheme"]] for entry in documents],
        )
        for entry in steps:
            ui.text(f"modifier, after any static method: +{entry['name']} ({entry['title']})")
        ui.document("ok", {"methods": documents, "modifiers": steps})
    elif name.lstrip("+") in MODIFIERS:
        entry = _describe_modifier(MODIFIERS[name.lstrip("+")])
        ui.heading(f"+{entry['name']}: {entry['title']}")
        _explain(ui, entry, [])
        ui.document("ok", {"methods": [], "modifiers": [entry]})
    else:
        entry = _describe(find_method(name))
        ui.heading(_title(entry))
        rows = [("needs", entry["needs"]), ("training", entry["needs_training"]), ("positions", entry["scheme"])]
        if entry["aliases"]:
            rows.append(("also", ", ".join(entry["aliases"])))
        _explain(ui, entry, rows)
        ui.document("ok", {"methods": [entry], "modifiers": []})


def _explain(ui: Output, entry: dict[str, Any], rows: list[tuple[str, str]]) -> None:
    ui.text(f"  {entry['summary']}")
    ui.pairs([("formula", entry["formula"]), ("source", entry["reference"]), *rows])
    for parameter in entry.get("parameters", ()):
        shown = "" if parameter["default"] is None else parameter["default"]
        ui.text(f"  --param {parameter['name']}={shown}  {parameter['explanation']}")
    for heading in ("evidence", "costs"):
        if entry[heading]:
            ui.text(f"  {heading}")
            for line in entry[heading]:
                ui.text(f"  - {line}")


def _title(entry: dict[str, Any]) -> str:
    return f"{entry['title']} (experimental)" if entry["experimental"] else str(entry["title"])


def _formula(function: Any) -> str:
    return " ".join((function.__doc__ or "").split("Raises:")[0].split())


def _describe(method: Any) -> dict[str, Any]:
    return {
        "name": method.name,
        "title": method.title,
        "aliases": list(method.aliases),
        "reference": method.reference,
        "summary": method.summary,
        "formula": _formula(method.compute),
        "scheme": method.scheme,
        "needs": method.needs,
        "needs_code": method.needs_code,
        "needs_training": method.needs_training,
        "experimental": method.experimental,
        "evidence": list(method.evidence),
        "costs": list(method.costs),
        "parameters": [
            {
                "name": field.name,
                "default": field.default,
                "kind": field.metadata["kind"],
                "explanation": field.metadata["explanation"],
            }
            for field in dataclasses.fields(method.parameters)
        ],
    }


def _describe_modifier(modifier: Any) -> dict[str, Any]:
    return {
        "name": modifier.name,
        "title": modifier.title,
        "reference": modifier.reference,
        "summary": modifier.summary,
        "formula": _formula(modifier.apply),
        "evidence": list(modifier.evidence),
        "costs": list(modifier.costs),
    }
