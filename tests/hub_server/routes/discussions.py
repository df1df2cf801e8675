"""Discussions and pull requests, as far as publishing needs them.

Contract: huggingface_hub/hf_api.py `create_discussion`, `get_repo_discussions`, `get_discussion_details`,
`merge_pull_request`, `change_discussion_status`; huggingface_hub/community.py `deserialize_event`. One that is made
over this route is a draft, as on the Hub; one that a commit with create_pr makes is open.
"""

from dataclasses import replace
from typing import Any

from tests.hub_server.accounts import require_account, require_proposal, require_write
from tests.hub_server.answers import Answer, as_json, refuse
from tests.hub_server.call import Call
from tests.hub_server.repos import PullRequest, Repo, now
from tests.hub_server.routing import route

_PAGE = 50


@route("POST", "/api/{kind}/{repo}/discussions")
def create(call: Call) -> Answer:
    """A discussion or a draft pull request that begins at main's head."""
    repo, wanted = call.repo(), call.json()
    account = require_proposal(call.account, repo)
    request = bool(wanted.get("pullRequest"))
    with call.state.lock:
        number = max(repo.discussions, default=0) + 1
        found = PullRequest(
            number,
            str(wanted.get("title")),
            str(wanted.get("description") or ""),
            account.name,
            now(),
            "draft" if request else "open",
            request,
        )
        repo.discussions[number] = found
        if request:
            repo.move(found.ref, repo.head())
    return as_json({"num": number, "url": f"{call.page(repo)}/discussions/{number}", "pullRequest": request})


@route("GET", "/api/{kind}/{repo}/discussions")
def listing(call: Call) -> Answer:
    """A page of them, newest first."""
    repo = call.repo()
    found = sorted(repo.discussions.values(), key=lambda item: -item.number)
    kind, status, author = (call.query.get(name, ["all"])[-1] for name in ("type", "status", "author"))
    if kind != "all":
        found = [item for item in found if item.is_pull_request == (kind == "pull_request")]
    if status != "all":
        found = [item for item in found if (item.status in ("open", "draft")) == (status == "open")]
    if author != "all":
        found = [item for item in found if item.author == author]
    start = int(call.query.get("p", ["0"])[-1]) * _PAGE
    shown = [_describe(repo, item) for item in found[start : start + _PAGE]]
    return as_json({"discussions": shown, "count": len(found), "start": start})


@route("GET", "/api/{kind}/{repo}/discussions/{number}")
def details(call: Call) -> Answer:
    """One of them with its events."""
    repo = call.repo()
    item = _find(call, repo)
    found = _describe(repo, item) | {"events": list(item.events)}
    if item.is_pull_request:
        found |= {"changes": {"base": f"refs/heads/{item.base}", "mergeCommitId": item.merge_sha}}
        found |= {"filesWithConflicts": [], "diff": ""}
    return as_json(found)


@route("POST", "/api/{kind}/{repo}/discussions/{number}/status")
def change_status(call: Call) -> Answer:
    """Open or close."""
    repo = call.repo()
    account, status = require_account(call.account), str(call.json().get("status"))
    with call.state.lock:
        item = _find(call, repo)
        if account.name != item.author:
            require_write(account, repo)
        event = _event("status-change", account.name, {"status": status})
        repo.discussions[item.number] = replace(item, status=status, events=(*item.events, event))
    return as_json({"newStatus": event})


@route("POST", "/api/{kind}/{repo}/discussions/{number}/comment")
def comment(call: Call) -> Answer:
    """A comment."""
    repo = call.repo()
    account, text = require_account(call.account), str(call.json().get("comment"))
    data = {"edited": False, "hidden": False, "latest": {"raw": text, "html": text, "updatedAt": now(), "author": {}}}
    with call.state.lock:
        item = _find(call, repo)
        event = _event("comment", account.name, data)
        repo.discussions[item.number] = replace(item, events=(*item.events, event))
    return as_json({"newMessage": event})


@route("POST", "/api/{kind}/{repo}/discussions/{number}/merge")
def merge(call: Call) -> Answer:
    """What the request changed since it left its base, in one commit on the base; a path that both changed is 409."""
    repo = call.repo()
    account = require_write(call.account, repo)
    call.body.drain()
    with call.state.lock:
        item = _find(call, repo)
        if not item.is_pull_request or item.status not in ("open", "draft"):
            refuse(409, "Only an open Pull Request can be merged")
        theirs, ours = repo.at(item.ref), repo.at(item.base)
        common = {commit.sha for commit in repo.commits(ours.sha)}
        base = next(commit for commit in repo.commits(theirs.sha) if commit.sha in common)
        files = dict(ours.files)
        for path in {*theirs.files, *base.files}:
            if theirs.files.get(path) == base.files.get(path):
                continue
            if ours.files.get(path) not in (base.files.get(path), theirs.files.get(path)):
                refuse(409, f"Conflict in {path}")
            files.pop(path, None)
            if path in theirs.files:
                files[path] = theirs.files[path]
        title = f"{item.title} (#{item.number})"
        made = repo.commit(item.base, ours.sha, files, title, item.description, account.name)
        event = _event("status-change", account.name, {"status": "merged"})
        repo.discussions[item.number] = replace(item, status="merged", merge_sha=made.sha, events=(*item.events, event))
    return as_json({"success": True, "commitOid": made.sha})


def _find(call: Call, repo: Repo) -> PullRequest:
    number = call.parts["number"]
    found = repo.discussions.get(int(number)) if number.isdecimal() else None
    return found or refuse(404, "Discussion not found", "DiscussionNotFound")


def _describe(repo: Repo, item: PullRequest) -> dict[str, Any]:
    return {
        "num": item.number,
        "title": item.title,
        "author": {"name": item.author},
        "createdAt": item.date,
        "status": item.status,
        "isPullRequest": item.is_pull_request,
        "repo": {"name": repo.id, "type": repo.type},
    }


def _event(kind: str, author: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"event-{now()}", "type": kind, "createdAt": now(), "author": {"name": author}, "data": data}
