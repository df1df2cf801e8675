"""`ctxforge templates`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ctxforge.cli.output import Output, with_output


@dataclass(frozen=True)
class Template:
    """A file to start from.

    Args:
        source: its path below the templates.
        place: where it belongs in a repository of checkpoints.
        words: what it is.
    """

    source: str
    place: str
    words: str


TEMPLATES = {
    "github": Template(
        "ci/github-workflow.yml",
        ".github/workflows/ctxforge.yml",
        "GitHub Actions: check on every push, verify and convert every night",
    ),
    "gitlab": Template("ci/gitlab-ci.yml", ".gitlab-ci.yml", "GitLab CI: check and verify, as JUnit reports"),
    "pre-commit": Template(
        "ci/pre-commit-config.yaml", ".pre-commit-config.yaml", "pre-commit: check what a commit changes"
    ),
    "gates": Template("ci/gates.toml", "gates.toml", "thresholds of verify"),
    "batch": Template("ci/recipes.yaml", "recipes.yaml", "jobs of run"),
}


@click.command(
    short_help="List files to start from, or write one.",
    epilog="Example: ctxforge templates github --write .",
)
@click.argument("name", required=False, type=click.Choice(list(TEMPLATES)))
@click.option("--write", "folder", type=click.Path(path_type=Path), help="Write it into this repository, at its place.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@with_output
def command(ui: Output, name: str | None, folder: Path | None, force: bool) -> None:
    """List the templates for CI, print the one called NAME, or write it where it belongs."""
    from ctxforge.cli.files import write_text
    from ctxforge.errors import UsageError
    from ctxforge.templates_dir import templates_dir

    if name is None:
        if folder is not None:
            raise UsageError("--write needs the name of a template", f"name one of {', '.join(TEMPLATES)}")
        ui.table(("template", "place", ""), [(key, one.place, one.words) for key, one in TEMPLATES.items()])
        listed = [{"name": key, "place": one.place, "words": one.words} for key, one in TEMPLATES.items()]
        ui.document("ok", {"templates": listed})
        return
    template = TEMPLATES[name]
    text = (templates_dir() / template.source).read_text(encoding="utf-8")
    if folder is None:
        ui.text(text.rstrip("\n"))
        ui.document("ok", {"name": name, "place": template.place, "text": text})
        return
    path = folder / template.place
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "look at it first, and replace it with --force")
    write_text(path, text)
    ui.text(str(path))
    ui.document("ok", {"name": name, "path": str(path)})
