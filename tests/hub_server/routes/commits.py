"""Preupload and commit.

Contract: huggingface_hub/_commit_api.py `_fetch_upload_modes` (uploadMode, shouldIgnore, oid),
`_prepare_commit_payload` and `_send_commit` (NDJSON of header, file, lfsFile, deletedFile, deletedFolder; commitOid,
commitUrl, pullRequestUrl);
`create_commit`'s docstring in huggingface_hub/hf_api.py for parent_commit: with create_pr the request starts from it,
without it the branch must point to it. An unmet parent is 412. An lfsFile that the repository doesn't have is refused
(huggingface_hub#3829 quotes the message).
"""

import base64
import fnmatch
import json
from typing import Any

from tests.hub_server.accounts import Account, require_proposal, require_write
from tests.hub_server.answers import Answer, as_json, refuse
from tests.hub_server.blobs import File, git_file, is_lfs
from tests.hub_server.call import Call
from tests.hub_server.card_rules import check_card
from tests.hub_server.repos import Commit, PullRequest, Repo, now
from tests.hub_server.routing import route

_REGULAR_AT_MOST = 10 << 20
_MISSING = (
    "Your push was rejected because an LFS pointer pointed to a file that does not exist. For instance, this can "
    "happen if you used git push --no-verify to push your changes. Offending file: - {path}"
)


@route("POST", "/api/{kind}/{repo}/preupload/{rev}")
def preupload(call: Call) -> Answer:
    """How each file is to be sent, and what is there already."""
    repo = call.repo()
    _may_commit(call, repo)
    commit, wanted = call.commit(repo), call.json()
    ignore = wanted.get("gitIgnore")
    if ignore is None and ".gitignore" in commit.files:
        ignore = call.state.blobs[commit.files[".gitignore"].sha256].read().decode()
    rules = [line.strip() for line in (ignore or "").splitlines() if line.strip() and line.strip()[0] != "#"]
    return as_json({"files": [_mode(item, commit, rules) for item in wanted.get("files", ())]})


def _may_commit(call: Call, repo: Repo) -> Account:
    return (require_proposal if call.flag("create_pr") else require_write)(call.account, repo)


def _mode(item: dict[str, Any], commit: Commit, rules: list[str]) -> dict[str, Any]:
    path = str(item["path"])
    there = commit.files.get(path)
    lfs = is_lfs(path, int(item["size"]), base64.b64decode(item.get("sample", "")))
    found: dict[str, Any] = {
        "path": path,
        "uploadMode": "lfs" if lfs else "regular",
        "shouldIgnore": any(fnmatch.fnmatch(path, rule) or path.startswith(rule.rstrip("/") + "/") for rule in rules),
    }
    return found | ({"oid": there.sha256 if there.lfs else there.oid} if there else {})


@route("POST", "/api/{kind}/{repo}/commit/{rev}")
def commit(call: Call) -> Answer:
    """All operations or none, under the lock: no state in between exists."""
    repo, rev, in_request = call.repo(), call.parts["rev"], call.flag("create_pr")
    account = _may_commit(call, repo)
    header, operations = _lines(call)
    parent = header.get("parentCommit")
    with call.state.lock:
        base = call.commit(repo)
        if not in_request and rev not in repo.refs:
            refuse(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        if parent and in_request:
            base = call.commit(repo, str(parent))
        elif parent and not base.sha.startswith(str(parent)):
            refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for key, value in operations:
            _apply(call, repo, files, key, value)
        number = max(repo.discussions, default=0) + 1
        ref = f"refs/pr/{number}" if in_request else rev
        message, description = str(header["summary"]), str(header.get("description") or "")
        made = repo.commit(ref, base.sha, files, message, description, account.name)
        if in_request:
            repo.discussions[number] = PullRequest(number, message, description, account.name, now(), "open", True, rev)
    found = {
        "success": True,
        "commitOid": made.sha,
        "commitUrl": f"{call.page(repo)}/commit/{made.sha}",
        "hookOutput": "",
    }
    return as_json(found | ({"pullRequestUrl": f"{call.page(repo)}/discussions/{number}"} if in_request else {}))


def _lines(call: Call) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    try:
        lines = [json.loads(line) for line in call.body.read().splitlines() if line.strip()]
        (first, *rest) = [(str(line["key"]), dict(line["value"])) for line in lines]
    except (ValueError, KeyError, TypeError):
        refuse(400, "Invalid NDJSON")
    if first[0] != "header" or not first[1].get("summary"):
        refuse(400, '"summary" is required')
    if not rest:
        refuse(400, "No operations in the commit")
    return first[1], rest


def _apply(call: Call, repo: Repo, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = str(value.get("path", ""))
    if not path or path[0] == "/" or ".." in path.split("/") or ".git" in path.split("/"):
        refuse(400, f"Invalid path: {path}")
    if key == "file":
        _check_folders(files, path)
        files[path] = _regular(call, repo, path, value)
    elif key == "lfsFile":
        _check_folders(files, path)
        files[path] = _pointer(call, repo, path, value)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            refuse(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not inside:
            refuse(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
        for name in inside:
            del files[name]
    else:
        refuse(400, f'Invalid operation: "{key}"')


def _check_folders(files: dict[str, File], path: str) -> None:
    """A path can't be a file and a folder."""
    parents = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)]
    if any(parent in files for parent in parents) or any(name.startswith(path + "/") for name in files):
        refuse(400, f"A file and a folder of the same name: {path}")


def _regular(call: Call, repo: Repo, path: str, value: dict[str, Any]) -> File:
    text = str(value.get("content", ""))
    data = base64.b64decode(text) if value.get("encoding") == "base64" else text.encode()
    if len(data) > _REGULAR_AT_MOST:
        refuse(400, f"Your push was rejected because it contains files larger than 10 MiB. Offending file: - {path}")
    if path == "README.md":
        errors, _ = check_card(data.decode("utf-8", "replace"), repo.type)
        if errors:
            refuse(400, "Invalid metadata in README.md", errors=[{"message": error} for error in errors])
    return git_file(call.state.blobs.add_bytes(data), lfs=False, xet=False)


def _pointer(call: Call, repo: Repo, path: str, value: dict[str, Any]) -> File:
    sha256 = str(value.get("oid"))
    if value.get("algo") != "sha256" or sha256 not in repo.linked:
        refuse(400, _MISSING.format(path=path))
    blob = call.state.blobs[sha256]
    if value.get("size", blob.size) != blob.size:
        refuse(400, f"The LFS pointer of {path} has another size than its file")
    return git_file(blob, lfs=True, xet=repo.xet)
