"""`ctxforge card`."""

from __future__ import annotations

from pathlib import Path

import click

from ctxforge.cli.output import Output, with_output


@click.command(
    short_help="Show the model card that a folder would be published with.",
    epilog="Example: ctxforge card llama-64k --repo me/llama-64k > card.md",
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--repo", metavar="OWNER/NAME", help="The name that it shall have, for the commands that serve it.")
@click.option(
    "--source-card",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="README.md of the source. Default: the one in DIR.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What ctxforge verify --json printed. Default: verification.json in DIR.",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), metavar="FOLDER", help="Write it here, with its figures.")
@with_output
def command(
    ui: Output, folder: Path, repo: str | None, source_card: Path | None, report: Path | None, out: Path | None
) -> int:
    """Show the model card that ctxforge push would give the checkpoint in DIR: README.md on stdout, or with its figures
    in --out.

    Nothing is sent and no network is used. push renders the card anew, from the source's card as it is on the Hub; a
    README.md of your own in DIR is published as it is instead.
    """
    from ctxforge.errors import ExitCode
    from ctxforge.publish.card.preview import preview

    made = preview(folder, repo, source_card, report)
    for line in made.remarks:
        ui.note(line)
    if out is None:
        if not ui.as_json:
            click.echo(made.text, nl=False)
        if made.files:
            ui.note(f"it shows {', '.join(made.files)}: --out FOLDER writes them too")
    else:
        _write(out, made.contents)
        ui.text(str(out / "README.md"))
    files = sorted(made.files)
    ui.document("ok", {"card": made.text, "figures": files, "remarks": list(made.remarks), "out": out and str(out)})
    return ExitCode.OK


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    from ctxforge.checkpoint.staging import writing
    from ctxforge.errors import UsageError
    from ctxforge.publish.card.source_card import BEGIN

    with writing(folder):
        there = folder / "README.md"
        if there.is_file() and BEGIN.encode() not in there.read_bytes():
            raise UsageError(f"{there} is somebody's own", "give --out a folder without a README.md")
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data)
