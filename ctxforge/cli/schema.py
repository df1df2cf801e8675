"""`ctxforge schema`."""

from __future__ import annotations

import json

import click


@click.command(
    short_help="Print the JSON Schema of batch files.",
    epilog="Example: ctxforge schema > ctxforge.schema.json",
)
@click.option("--json", "as_json", is_flag=True, help="The output is JSON anyway.")
def command(as_json: bool) -> None:
    """Print the JSON Schema of the files that `run` takes, for editors and other programs."""
    del as_json
    from ctxforge.batch.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
