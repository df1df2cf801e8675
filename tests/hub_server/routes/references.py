"""Branches, tags and history.

Contract: huggingface_hub/hf_api.py `create_branch` (409 for one that exists), `delete_branch`, `create_tag`,
`delete_tag`, `list_repo_refs`, `list_repo_commits`.
"""

from tests.hub_server.accounts import require_write
from tests.hub_server.answers import Answer, as_json, refuse
from tests.hub_server.call import Call
from tests.hub_server.routing import route


@route("POST", "/api/{kind}/{repo}/branch/{branch}")
def create_branch(call: Call) -> Answer:
    """A branch at main's head or at "startingPoint"."""
    repo, branch = call.repo(), call.parts["branch"]
    require_write(call.account, repo)
    start = call.json().get("startingPoint") or "main"
    with call.state.lock:
        if branch in repo.branches:
            refuse(409, "Reference already exists")
        if branch.startswith("refs/") or ".." in branch or branch.endswith("/") or " " in branch:
            refuse(400, "Invalid branch name")
        repo.move(branch, call.commit(repo, str(start)).sha)
    return as_json({}, 201)


@route("DELETE", "/api/{kind}/{repo}/branch/{branch}")
def delete_branch(call: Call) -> Answer:
    """Any branch but main."""
    repo, branch = call.repo(), call.parts["branch"]
    require_write(call.account, repo)
    with call.state.lock:
        if branch == "main":
            refuse(403, "Cannot delete the default branch")
        if branch not in repo.branches:
            refuse(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        repo.remove_ref(branch)
    return as_json({})


@route("POST", "/api/{kind}/{repo}/tag/{rev}")
def create_tag(call: Call) -> Answer:
    """A tag on a revision."""
    repo = call.repo()
    require_write(call.account, repo)
    name = str(call.json().get("tag"))
    with call.state.lock:
        if name in repo.tags:
            refuse(409, "Tag reference exists already")
        repo.move(f"refs/tags/{name}", call.commit(repo).sha)
    return as_json({}, 201)


@route("DELETE", "/api/{kind}/{repo}/tag/{tag}")
def delete_tag(call: Call) -> Answer:
    """Remove a tag."""
    repo, tag = call.repo(), call.parts["tag"]
    require_write(call.account, repo)
    with call.state.lock:
        if tag not in repo.tags:
            refuse(404, f"Invalid rev id: {tag}", "RevisionNotFound")
        repo.remove_ref(f"refs/tags/{tag}")
    return as_json({})


@route("GET", "/api/{kind}/{repo}/refs")
def references(call: Call) -> Answer:
    """Branches, tags and, with include_prs, pull requests."""
    repo = call.repo()
    with call.state.lock:
        shown = dict(repo.refs)
    branches = [_reference(name, f"refs/heads/{name}", sha) for name, sha in shown.items() if name[:5] != "refs/"]
    tags = [_reference(name[10:], name, sha) for name, sha in shown.items() if name.startswith("refs/tags/")]
    pulls = [_reference(name[5:], name, sha) for name, sha in shown.items() if name.startswith("refs/pr/")]
    found = {"branches": branches, "converts": [], "tags": tags}
    return as_json(found | ({"pullRequests": pulls} if call.flag("include_prs") else {}))


@route("GET", "/api/{kind}/{repo}/commits/{rev}")
def commits(call: Call) -> Answer:
    """The history of a revision, newest first."""
    repo = call.repo()
    history = repo.commits(call.commit(repo).sha)
    return as_json(
        [
            {
                "id": commit.sha,
                "title": commit.message,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in history
        ],
        headers={"X-Total-Count": str(len(history))},
    )


def _reference(name: str, ref: str, sha: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": sha}
