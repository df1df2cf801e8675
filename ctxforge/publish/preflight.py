"""Refuse before any work what would fail after it: token, names, visibility, licence, card, space."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctxforge.checkpoint.jsonio import MAX_JSON_BYTES, ascii_name
from ctxforge.errors import CtxforgeError, HubError, UsageError
from ctxforge.provenance import FILE_NAME
from ctxforge.publish.account import find_account
from ctxforge.publish.connection import Connection
from ctxforge.publish.download import brought_small, small_file, with_attributes
from ctxforge.publish.memory import known_results
from ctxforge.publish.options import PushOptions
from ctxforge.publish.plan import PushPlan
from ctxforge.publish.publication import CARD_DIGEST, README, Publication, Results
from ctxforge.publish.readme import Card, licence_of, make_card, validate_card
from ctxforge.publish.repository import Repository, other_type, read_repository
from ctxforge.publish.routes import Step
from ctxforge.publish.shards import work_folder
from ctxforge.publish.space import needed_space, refuse_without_space
from ctxforge.publish.steps import everything, plan_steps, stale_files
from ctxforge.publish.target import default_name, parse_target

_HARMLESS = re.compile(r"\.git\w+|README\.md|LICEN[CS]E.*|NOTICE.*", re.IGNORECASE)
_BRANCH = re.compile(r"\w[\w./-]*", re.ASCII)
_MOST_FILES = 25_000
_MOST_IN_COMMIT = 1_000_000_000


@dataclass(frozen=True)
class Prepared:
    """A publication that passed: its plan, and what execution goes on from."""

    publication: Publication
    options: PushOptions
    plan: PushPlan
    target: Repository | None
    results: Results

    @property
    def repo(self) -> str:
        """owner/name of the target."""
        return self.plan.repo


def resolve_target(connection: Connection, options: PushOptions, record: Mapping[str, Any] | None) -> str:
    """owner/name to publish to, checked against what the token may do.

    Raises:
        UsageError: not a valid name, or none at all.
        HubError: no token, or one that may not write there.
    """
    given = parse_target(options.repo) if options.repo else default_name(record or {})
    if not _BRANCH.fullmatch(options.revision) or ".." in options.revision or options.revision.endswith((".", "/")):
        raise UsageError(f"{ascii_name(options.revision)} is not a valid branch.", "Give --branch a plain name.")
    if options.create_pr and options.private is not None:
        raise UsageError("A pull request doesn't change who sees a repository.", "Leave --private and --public out.")
    account = find_account(connection)
    repo = given if "/" in given else f"{account.name}/{given}"
    account.refuse_without_write(parse_target(repo), proposing=options.create_pr)
    return repo


def prepare(connection: Connection, publication: Publication, options: PushOptions, repo: str) -> Prepared:
    """Check everything that can be checked in advance, and plan.

    Args:
        connection: the Hub.
        publication: what is to be published.
        options: how.
        repo: what `resolve_target` gave.

    Raises:
        CtxforgeError: one of the checks refuses.
    """
    target = _at_base(read_repository(connection, repo, options.revision), publication.source)
    warnings = _check_target(connection, publication, options, repo, target)
    remote = _remote_record(connection, target)
    _check_taken(publication, options, target, remote)
    results = known_results(publication.wanted, publication.record, remote)
    wanted = publication.wanted
    if remote is not None:  # so that a push that was done already is seen to be
        assert target is not None
        wanted = with_attributes(connection, target, brought_small(connection, publication.source, wanted))
    plan_steps(wanted, publication.source, target, results)  # hashes what must be compared, and no more
    record = publication.provenance(wanted, results, hashing=False)
    card = make_card(publication, repo, record, options.branch)
    if card is not None:
        warnings += (*card.remarks, *validate_card(connection, card))
    warnings += _check_licence(publication, card, options)
    every = everything(wanted, publication, card, record)
    steps = plan_steps(every, publication.source, target, results)
    _check_size(steps)
    warnings += _edited_card(connection, target, remote, steps)
    folder = work_folder(repo)
    disk = needed_space(steps)
    refuse_without_space(folder, disk)
    private = target.private if target is not None else options.private
    source = publication.source
    plan = PushPlan(
        repo=repo,
        revision=options.revision,
        creates=target is None,
        private=private,
        pull_request=options.create_pr,
        source=None if source is None else f"{source.repo}@{source.sha}",
        steps=steps,
        deletes=stale_files(steps, target, remote),
        disk=disk,
        warnings=warnings,
        notes=publication.notes,
    )
    return Prepared(publication, options, plan, target, results)


def _at_base(target: Repository | None, source: Repository | None) -> Repository | None:
    """The target as a new branch of it begins: at the source's commit where it is the source itself, else at main."""
    if target is None or source is None or target.branch or target.repo != source.repo:
        return target
    return replace(target, sha=source.sha, files=source.files)


def _check_target(
    connection: Connection, publication: Publication, options: PushOptions, repo: str, target: Repository | None
) -> tuple[str, ...]:
    if target is None:
        if options.create_pr:
            raise HubError(f"There is no repository {repo} to open a pull request on.", "Leave --create-pr out.")
        kind = other_type(connection, repo)
        if kind is not None and not options.yes:
            raise HubError(
                f"{repo} is a {kind} on the Hub, not a model.",
                "Choose another name, or make a model of this name beside it with --yes.",
            )
    warnings: tuple[str, ...] = ()
    private = options.private if target is None else target.private
    if target is not None and options.private is not None and options.private != target.private:
        raise UsageError(
            f"{repo} exists and is {'private' if target.private else 'public'}; a push doesn't change that.",
            "Leave --private and --public out, or change it in the repository's settings.",
        )
    source = publication.source
    if source is not None and (source.gated or source.private) and not private and source.repo != repo:
        kind = "gated" if source.gated else "private"
        if not options.yes:
            raise UsageError(
                f"{source.repo} is {kind}, and {repo} would be a public copy of it.",
                "Add --private, or --yes if its licence lets you publish it.",
            )
        warnings = (f"{source.repo} is {kind}: this makes a public copy of its weights",)
    return warnings


def _check_taken(
    publication: Publication, options: PushOptions, target: Repository | None, remote: Mapping[str, Any] | None
) -> None:
    if target is None or options.yes or options.create_pr:
        return
    source = publication.source
    if source is not None and source.repo == target.repo:
        if options.revision == "main":
            raise UsageError(
                f"{target.repo} is the source itself: main would be replaced by the conversion.",
                "Add --branch NAME, publish under another name, or replace it with --yes.",
            )
        return
    other = [name for name in target.files if not _HARMLESS.fullmatch(name)]
    if other and remote is None:
        raise HubError(
            f"{target.repo} exists and holds something that ctxforge did not put there: {other[0]}.",
            "Choose another name, add --branch or --create-pr, or replace it with --yes.",
        )


def _remote_record(connection: Connection, target: Repository | None) -> Mapping[str, Any] | None:
    if target is None or FILE_NAME not in target.files:
        return None
    if target.files[FILE_NAME].size > MAX_JSON_BYTES:
        return {}
    try:
        document = json.loads(small_file(connection, target, target.files[FILE_NAME]).read_bytes())
    except (ValueError, CtxforgeError):
        return {}
    return document if isinstance(document, dict) else {}


def _edited_card(
    connection: Connection, target: Repository | None, remote: Mapping[str, Any] | None, steps: tuple[Step, ...]
) -> tuple[str, ...]:
    """A warning where the card that an earlier push left was edited at the Hub, and is about to be replaced."""
    recorded = (remote or {}).get(CARD_DIGEST)
    replaced = any(step.wanted.path == README and step.route != "kept" for step in steps)
    if target is None or README not in target.files or not isinstance(recorded, str) or not replaced:
        return ()
    found = hashlib.sha256(small_file(connection, target, target.files[README]).read_bytes()).hexdigest()
    return () if found == recorded else (f"README.md of {target.repo} was edited there, and is replaced",)


def _check_licence(publication: Publication, card: Card | None, options: PushOptions) -> tuple[str, ...]:
    if publication.source is None:
        return ()
    licence = licence_of(publication.source_card)
    if licence is None:
        return (f"{publication.source.repo} names no licence: whether you may publish it is not known",)
    told = None if card is None else licence_of(card.text)
    if told == licence:
        return ()
    if options.yes:
        return (f"the source's licence is {licence}, the card names {told or 'none'}",)
    raise UsageError(
        f"The source's licence is {licence}, and the README.md to publish names {told or 'none'}.",
        f"Write `license: {licence}` into its metadata, or go on with --yes.",
    )


def _check_size(steps: tuple[Step, ...]) -> None:
    inside = sum(step.upload for step in steps if step.route in ("sent", "passed"))
    if len(steps) > _MOST_FILES or inside > _MOST_IN_COMMIT:
        raise UsageError(
            f"{len(steps)} files with {inside} bytes of small ones are more than one commit can hold.",
            f"The Hub takes {_MOST_FILES} files and {_MOST_IN_COMMIT} bytes of small ones in a commit.",
        )
