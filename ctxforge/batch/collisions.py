"""Jobs that would get in each other's way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ctxforge.batch.planning import Planned
from ctxforge.batch.tree import wrong
from ctxforge.errors import UsageError
from ctxforge.lengths import format_length


def refuse_alike(planned: Sequence[Planned]) -> None:
    """Refuse jobs that would get in each other's way.

    Raises:
        UsageError: two jobs with one output, an output inside another or over another job's source, or two jobs that
            publish to one branch.
    """
    taken: dict[Path, Planned] = {}
    pushed: dict[tuple[str, str], Planned] = {}
    for one in planned:
        if one.written:
            place = _real(one.out)
            if place in taken:
                raise _twice(one, taken[place], f"the output {one.out}", "out")
            taken[place] = one
        push = one.job.spec.push
        if push is not None and not push.create_pr:
            target = (_repository(one).lower(), push.branch or "main")
            if target in pushed:
                raise _twice(one, pushed[target], f"the branch {target[1]} of {_repository(one)}", "push")
            pushed[target] = one
    for one in planned:
        for parent in _real(one.out).parents if one.written else ():
            if parent in taken:
                raise wrong(
                    one.job.node.at(["out"]),
                    f"the output of job {one.name} lies inside that of job {taken[parent].name}",
                    "give them folders of their own",
                )
        source = _real(Path(one.recipe.source))
        if source in taken:
            raise wrong(
                one.job.node.at(["source"]),
                f"job {taken[source].name} would write over the source of job {one.name}",
                "give it another output",
            )


def _twice(one: Planned, other: Planned, what: str, entry: str) -> UsageError:
    return wrong(
        one.job.node.at([entry]),
        f"jobs {other.name} and {one.name} would both write {what}",
        "name an `out` for one of them, or leave one out" if entry == "out" else "name another repository or branch",
    )


def _repository(one: Planned) -> str:
    """The repository that is pushed to; without a name it is made of source, method and length."""
    push = one.job.spec.push
    assert push is not None
    name = f"{Path(one.recipe.source.partition('@')[0]).name}-{one.method}-{format_length(one.target_length)}"
    return push.repo or name


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
