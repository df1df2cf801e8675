"""Carry a plan out: everything large first, one file at a time, then one commit that makes it all visible at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ctxforge.errors import HubError
from ctxforge.lengths import format_length
from ctxforge.publish.commit import CopyRefusedError, Intent, commit, commit_url, find_landed
from ctxforge.publish.connection import Connection
from ctxforge.publish.download import brought_small, with_attributes
from ctxforge.publish.preflight import Prepared
from ctxforge.publish.readme import make_card
from ctxforge.publish.repository import Repository, read_repository
from ctxforge.publish.sending import Sending
from ctxforge.publish.steps import everything, plan_steps
from ctxforge.version import __version__

if TYPE_CHECKING:
    from ctxforge.publish.plan import PushPlan


@dataclass(frozen=True)
class Published:
    """A finished publication.

    Attributes:
        repo: owner/name.
        commit: the commit that holds it.
        url: of the commit, or of the pull request.
        pull_request: number of the pull request; None for a commit to a branch.
        changed: False where the repository held all of it already.
        plan: what was done.
        not_copied: files that the server would not copy and that were uploaded instead.
    """

    repo: str
    commit: str
    url: str
    pull_request: int | None
    changed: bool
    plan: PushPlan
    not_copied: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "repo": self.repo,
            "commit": self.commit,
            "url": self.url,
            "pull_request": self.pull_request,
            "changed": self.changed,
            "not_copied": list(self.not_copied),
            "push": self.plan.document(),
        }


def execute(connection: Connection, prepared: Prepared) -> Published:
    """Do what the plan says; the branch changes in one step, at the end, or not at all.

    Raises:
        CtxforgeError: something failed for good; what was handed over stays at the Hub, and a rerun doesn't send it
            again.
    """
    publication, options = prepared.publication, prepared.options
    target = _ensure_target(connection, prepared)
    wanted = with_attributes(connection, target, brought_small(connection, publication.source, publication.wanted))
    sending = Sending(connection, publication.source, target, options.revision, options.create_pr)
    results = sending.large(wanted, prepared.results)
    while True:
        record = publication.provenance(wanted, results)
        card = make_card(publication, prepared.repo, record, options.branch)
        every = everything(wanted, publication, card, record)
        steps = plan_steps(every, publication.source, target, results, sending.refused)
        intent = Intent(
            repo=prepared.repo,
            revision=options.revision,
            parent=target.sha,
            proposing=options.create_pr,
            title=options.message or title(record),
            description=f"Made by ctxforge {__version__}.",
            wanted=every,
            results=results.sha256,
            deletes=prepared.plan.deletes,
        )
        if not intent.missing(target.files) and all(step.route == "kept" for step in steps):
            url = commit_url(connection, prepared.repo, target.sha)
            return Published(prepared.repo, target.sha, url, None, False, prepared.plan)
        if options.create_pr:
            with connection.errors(prepared.repo):
                there = find_landed(connection, intent)
            if there is not None:
                return Published(prepared.repo, there.commit, there.url, there.pull_request, False, prepared.plan)
        try:
            landed = commit(connection, intent, sending.operations(steps, intent.deletes))
        except CopyRefusedError as refused:
            sending.give_up_copying(steps, refused)
            results = sending.large(wanted, results)
            continue
        return Published(
            prepared.repo,
            landed.commit,
            landed.url,
            landed.pull_request,
            True,
            prepared.plan,
            tuple(sorted(sending.refused.paths)),
        )


def _ensure_target(connection: Connection, prepared: Prepared) -> Repository:
    """The target, made where it doesn't exist, and its branch."""
    repo, options = prepared.repo, prepared.options
    target = prepared.target
    with connection.errors(repo):
        if target is None:
            connection.run(
                f"creating {repo}",
                lambda: connection.api.create_repo(repo, private=options.private, repo_type="model", exist_ok=True),
            )
            target = read_repository(connection, repo, options.revision)
            if target is None:
                raise HubError(f"{repo} was created and is not there.", "Run the command again.")
            if options.private and not target.private:
                raise HubError(f"{repo} was to be private and is public.", "Nothing was put there; delete it.")
        if not target.branch and not options.create_pr:
            base = target.sha
            connection.run(
                f"making the branch {options.revision}",
                lambda: connection.api.create_branch(repo, branch=options.revision, revision=base, exist_ok=True),
            )
            target = replace(target, branch=True)
    return target


def title(record: Mapping[str, Any] | None) -> str:
    """The commit's title: what was done to what."""
    known = record or {}
    plan, source = known.get("plan"), known.get("source")
    length = plan.get("target_length") if isinstance(plan, Mapping) else None
    if not isinstance(plan, Mapping) or not isinstance(source, Mapping) or not isinstance(length, int):
        return "Upload a checkpoint"
    attachment = plan.get("attachment")
    attached = attachment.get("name") if isinstance(attachment, Mapping) else None
    how = " and ".join(str(one) for one in (plan.get("method"), attached) if one and one != "none") or "no change"
    tuned = ", calibrated" if known.get("calibrations") else ""
    return f"Extend {source.get('name')} to {format_length(length)} tokens: {how}{tuned}"
