"""Options of publishing that `extend`, `plan` and `push` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.output import Output

if TYPE_CHECKING:
    from ctxforge.publish import Published, PushOptions, PushPlan

PUSH_OPTIONS = {
    "private": "--private",
    "branch": "--branch",
    "create_pr": "--create-pr",
    "commit_message": "--commit-message",
    "yes": "--yes",
}
"""The options by the names of their arguments."""


def push_target(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--push [REPO]`, for the commands that make something first."""
    return click.option(
        "--push",
        "push_to",
        is_flag=False,
        flag_value="",
        metavar="[REPO]",
        help="Publish the result on the Hub, in one commit; without REPO as <you>/<model>-<method>-<length>. Nothing is"
        " written here unless --out, --verify or --calibrate asks for it.",
    )(function)


def push_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Who sees it, where it goes, what is agreed to."""
    decorators = (
        click.option(
            "--private/--public", "private", default=None, help="Of a new repository. Default: as its owner has it."
        ),
        click.option("--branch", metavar="NAME", help="Commit to this branch, made from main where it doesn't exist."),
        click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing."),
        click.option("--commit-message", metavar="TEXT", help="Title of the commit. Default: what was done."),
        click.option(
            "--yes",
            is_flag=True,
            help="Go on where publishing would stop and ask: a public copy of a gated or private model, a repository"
            " that holds something else, another licence.",
        ),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def build_push(repo: str | None, given: dict[str, Any], *, force: bool = False) -> PushOptions:
    """What the shared options ask for; an empty `repo` is the default name."""
    from ctxforge.publish import PushOptions

    return PushOptions(
        repo=repo or None,
        private=given["private"],
        branch=given["branch"],
        create_pr=given["create_pr"],
        message=given["commit_message"],
        yes=given["yes"],
        force=force,
    )


def refuse_without_push(given: dict[str, Any]) -> None:
    """Refuse options of publishing where nothing is to be published."""
    from ctxforge.errors import UsageError

    told = [name for name, value in given.items() if value not in (None, False)]
    if told:
        raise UsageError(
            f"{PUSH_OPTIONS[told[0]]} is of publishing, and --push was not given", "add --push, or leave it out"
        )


def show_plan(ui: Output, plan: PushPlan) -> None:
    """The plan of a publication, as a result."""
    ui.heading("push")
    ui.pairs(plan.rows())
    for line in plan.notes:
        ui.note(line)
    for line in plan.warnings:
        ui.warn(line)
    if plan.nothing_to_do:
        ui.text("  nothing to do: it is all there")


def remark_plan(ui: Output, plan: PushPlan) -> None:
    """The plan of a publication, beside the work."""
    for name, value in plan.rows():
        ui.note(f"  {name}: {value}")
    for line in plan.notes:
        ui.note(line)
    for line in plan.warnings:
        ui.warn(line)


def show_published(ui: Output, done: Published) -> None:
    """The address on stdout, which is all that a script needs."""
    ui.text(done.url)
    if not done.changed:
        ui.note(f"{done.repo} held all of it already")
