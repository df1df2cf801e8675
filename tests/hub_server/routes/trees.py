"""Listings.

Contract: huggingface_hub/hf_api.py `list_repo_tree` (recursive, expand, pages by the Link header of
huggingface_hub/utils/_pagination.py), `get_paths_info` (form data; paths that don't exist are left out), `RepoFile`,
`RepoFolder`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote

from tests.hub_server.answers import Answer, as_json, refuse
from tests.hub_server.blobs import File
from tests.hub_server.call import Call
from tests.hub_server.repos import Commit, Repo
from tests.hub_server.routing import route

_PATHS_AT_MOST = 1000


@route("GET", "/api/{kind}/{repo}/tree/{rev}")
def tree(call: Call) -> Answer:
    """Files and folders at a revision, in pages."""
    repo = call.repo()
    commit = call.commit(repo)
    folder = call.parts.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    inside = {path: file for path, file in commit.files.items() if path.startswith(prefix)}
    if folder and not inside:
        refuse(404, f'{folder} does not exist on "{call.parts["rev"]}"', "EntryNotFound")
    recursive = call.flag("recursive")
    names = set()
    for path in inside:
        pieces = path[len(prefix) :].split("/")
        depths = range(1, len(pieces) + 1) if recursive else (1,)
        names |= {prefix + "/".join(pieces[:depth]) for depth in depths}
    listed = sorted(names)
    start = int(call.query.get("cursor", ["0"])[-1])
    size = min(int(call.query.get("limit", [str(call.state.options.page_size)])[-1]), call.state.options.page_size)
    page = [_entry(call, repo, commit, name) for name in listed[start : start + size]]
    headers = {}
    if start + size < len(listed):
        here = f"{call.state.url}/api/{call.kind}s/{repo.id}/tree/{quote(call.parts['rev'], safe='')}"
        here += f"/{quote(folder, safe='')}" if folder else ""
        flags = f"recursive={recursive}&expand={call.flag('expand')}&cursor={start + size}"
        headers["Link"] = f'<{here}?{flags}>; rel="next"'
    return as_json(page, headers=headers)


route("GET", "/api/{kind}/{repo}/tree/{rev}/{path}")(tree)


@route("POST", "/api/{kind}/{repo}/paths-info/{rev}")
def paths_info(call: Call) -> Answer:
    """What is at each of some paths."""
    repo = call.repo()
    commit = call.commit(repo)
    if "json" in call.headers.get("Content-Type", ""):
        wanted = call.json()
        paths, expand = list(wanted.get("paths", ())), bool(wanted.get("expand"))
    else:
        form = parse_qs(call.body.read().decode())
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[-1].lower() == "true"
    if len(paths) > _PATHS_AT_MOST:
        refuse(413, "too many parameters")
    call.query["expand"] = [str(expand)]
    names = [path.strip("/") for path in paths]
    return as_json([_entry(call, repo, commit, name) for name in names if _exists(commit.files, name)])


def _exists(files: Mapping[str, File], name: str) -> bool:
    return name in files or any(path.startswith(f"{name}/") for path in files)


def _entry(call: Call, repo: Repo, commit: Commit, name: str) -> dict[str, Any]:
    file = commit.files.get(name)
    if file is None:
        inside = sorted(f"{path} {item.oid}" for path, item in commit.files.items() if path.startswith(f"{name}/"))
        found: dict[str, Any] = {"type": "directory", "oid": hashlib.sha1("\n".join(inside).encode()).hexdigest()}
        found |= {"size": 0, "path": name}
    else:
        found = {"type": "file", "oid": file.oid, "size": file.size, "path": name}
        if file.lfs:
            found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_size(file)}
        if xet := call.state.shown_xet(file.xet_hash):
            found["xetHash"] = xet
    if call.flag("expand"):
        history = repo.commits(commit.sha)
        last = next((old for old in history if any(_within(path, name) for path in old.paths)), history[-1])
        found["lastCommit"] = {"id": last.sha, "title": last.message, "date": last.date}
        if file is not None:
            found["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return found


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")


def pointer_size(file: File) -> int:
    """Bytes of a file's LFS pointer."""
    return len(f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n")
