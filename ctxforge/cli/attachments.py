"""`ctxforge attachments`."""

from __future__ import annotations

import click

from ctxforge.cli.output import Output, with_output


@click.command(
    short_help="List the attention systems, or explain one.", epilog="Example: ctxforge attachments lm-infinite"
)
@click.argument("name", required=False)
@with_output
def command(ui: Output, name: str | None) -> None:
    """List the attention systems that `extend --attach` knows; with NAME, what one can do and cannot, and its cost."""
    from ctxforge.attention import attachments, describe, find_attachment

    found = [describe(one) for one in (attachments().values() if name is None else [find_attachment(name)])]
    if name is None:
        ui.table(
            ["attachment", "name in the field", "needs", "cost"],
            [[entry["name"], entry["title"], entry["needs"], entry["cost"]] for entry in found],
        )
    else:
        (entry,) = found
        ui.heading(f"{entry['name']}: {entry['title']}")
        ui.text(f"  {entry['summary']}")
        ui.pairs([(key, entry[key]) for key in ("reference", "needs", "cost", "engines")])
        for heading in ("can", "cannot"):
            ui.text(f"  {heading}")
            for line in entry[heading]:
                ui.text(f"  - {line}")
        for parameter in entry["parameters"]:
            shown = "" if parameter["default"] is None else parameter["default"]
            ui.text(f"  {parameter['name']}={shown}  {parameter['explanation']}")
    ui.document("ok", {"attachments": found})
