"""Repositories come, change and go.

Contract: huggingface_hub/hf_api.py `create_repo` (409 whose body holds "url"), `delete_repo`, `update_repo_settings`,
`move_repo`; names: huggingface_hub/utils/_validators.py `validate_repo_id`.
"""

import re

from tests.hub_server.accounts import Account, require_account, require_sight, require_write
from tests.hub_server.answers import Answer, as_json, refuse
from tests.hub_server.blobs import GITATTRIBUTES, git_file
from tests.hub_server.call import Call
from tests.hub_server.repos import Change, Repo
from tests.hub_server.routing import route

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?")


@route("POST", "/api/repos/create")
def create(call: Call) -> Answer:
    """A new repository with .gitattributes on main, unless the name is taken or the namespace closed to this token."""
    account, wanted = require_account(call.account), call.json()
    name, namespace = str(wanted.get("name", "")), wanted.get("organization") or account.name
    kind = wanted.get("type") or "model"
    repo_id = f"{namespace}/{name}"
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith(".git"):
        refuse(400, f'Invalid repo name: "{name}"')
    if kind not in ("model", "dataset", "space"):
        refuse(400, '"type" must be one of [model, dataset, space]')
    if not account.may_write_in(namespace, repo_id):
        refuse(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    state = call.state
    with state.lock:
        for other in ("model", "dataset", "space"):
            taken = state.repos.get((other, repo_id))
            if taken is not None and (other == kind or not state.options.shared_names):
                refuse(409, f"You already created this {other} repo", url=call.page(taken), name=repo_id)
        if account.role == "fineGrained" and "repo.write" not in account.scopes.get(namespace, ()):
            refuse(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        repo = state.make_repo(repo_id, kind)
        repo.private = wanted.get("visibility") == "private" or wanted.get("private") is True
        repo.xet, repo.region = state.options.xet, wanted.get("region") or state.options.region
        state.list_repo(repo)
        attributes = git_file(state.blobs.add_bytes(GITATTRIBUTES), lfs=False, xet=False)
        repo.commit("main", None, {".gitattributes": attributes}, "initial commit", "", account.name)
    return as_json({"url": call.page(repo), "name": repo_id, "id": f"id-{repo_id}"})


@route("DELETE", "/api/repos/delete")
def delete(call: Call) -> Answer:
    """The repository and its history are gone; what it linked to stays where others link to it too."""
    account, wanted = require_account(call.account), call.json()
    with call.state.lock:
        repo = _named(call, account, wanted)
        del call.state.repos[repo.type, repo.id]
        call.state.note(Change(repo.id, "delete", private=repo.private))
    return Answer(200, body=b"OK")


@route("POST", "/api/repos/move")
def move(call: Call) -> Answer:
    """Another name."""
    account, wanted = require_account(call.account), call.json()
    source, target = str(wanted.get("fromRepo")), str(wanted.get("toRepo"))
    namespace, name = source.split("/", 1)
    with call.state.lock:
        repo = _named(call, account, {"name": name, "organization": namespace, "type": wanted.get("type")})
        if not account.may_write_in(target.split("/")[0], target):
            refuse(403, "You don't have the rights to move this repo to that namespace")
        if (repo.type, target) in call.state.repos:
            refuse(409, f"This {repo.type} already exists")
        del call.state.repos[repo.type, repo.id]
        repo.id = target
        call.state.list_repo(repo)
    return Answer(200, body=b"OK")


@route("PUT", "/api/{kind}/{repo}/settings")
def settings(call: Call) -> Answer:
    """Visibility and gating."""
    repo = call.repo()
    require_write(call.account, repo)
    wanted = call.json()
    with call.state.lock:
        if "visibility" in wanted or "private" in wanted:
            repo.private = wanted.get("visibility") == "private" or wanted.get("private") is True
        repo.gated = wanted.get("gated", repo.gated)
        call.state.note(Change(repo.id, "settings", private=repo.private))
    return as_json({"private": repo.private, "gated": repo.gated})


def _named(call: Call, account: Account, wanted: dict[str, object]) -> Repo:
    repo_id = f"{wanted.get('organization') or account.name}/{wanted.get('name')}"
    repo = require_sight(account, call.state.repos.get((str(wanted.get("type") or "model"), repo_id)))
    require_write(account, repo)
    return repo
