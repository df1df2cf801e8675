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
    """List the methods; with NAME, explain one: formula, parameters, evidence, costs."""
    from ctxforge.rope.methods import METHODS, find_method

    chosen = [find_method(name)] if name else list(METHODS.values())
    documents = [_describe(method) for method in chosen]
    if name is None:
        ui.table(
            ["method", "name in the field", "needs training"],
            [[entry["name"], entry["title"], entry["needs_training"]] for entry in documents],
        )
    else:
        entry = documents[0]
        ui.heading(entry["title"])
        ui.text(f"  {entry['summary']}")
        ui.pairs([("formula", entry["formula"]), ("source", entry["reference"]), ("training", entry["needs_training"])])
        for parameter in entry["parameters"]:
            ui.text(f"  --param {parameter['name']}={parameter['default']}  {parameter['explanation']}")
        for line in entry["evidence"]:
            ui.text(f"  - {line}")
    ui.document("ok", {"methods": documents})


def _describe(method: Any) -> dict[str, Any]:
    return {
        "name": method.name,
        "title": method.title,
        "reference": method.reference,
        "summary": method.summary,
        "formula": " ".join((method.compute.__doc__ or "").split("Raises:")[0].split()),
        "needs_training": method.needs_training,
        "evidence": list(method.evidence),
        "parameters": [
            {"name": field.name, "default": field.default, "explanation": field.metadata["explanation"]}
            for field in dataclasses.fields(method.parameters)
        ],
    }
