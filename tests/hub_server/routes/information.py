"""What a repository is.

Contract: huggingface_hub/hf_api.py `model_info`, `repo_info` (blobs, expand), the fields of `ModelInfo` and
`RepoSibling`; `get_sharded_safetensors_metadata`.
"""

import json
from typing import Any

from tests.hub_server.accounts import require_content
from tests.hub_server.answers import Answer, as_json, refuse
from tests.hub_server.call import Call
from tests.hub_server.card_rules import read_card
from tests.hub_server.repos import Commit, Repo
from tests.hub_server.routes.trees import pointer_size
from tests.hub_server.routing import route


@route("GET", "/api/models/{repo}/safetensors-metadata/{path}")
def safetensors_metadata(call: Call) -> Answer:
    """The header of every shard that an index on main names."""
    call.parts["kind"] = "models"
    repo = call.repo()
    require_content(call.account, repo)
    files = repo.files()
    if call.state.options.older or call.parts["path"] not in files:
        refuse(404, "Entry not found", "EntryNotFound")
    index = json.loads(repo.read(call.parts["path"]))
    shards = sorted(set(index["weight_map"].values()))
    headers = {}
    for shard in shards:
        blob = call.state.blobs[files[shard].sha256]
        length = int.from_bytes(blob.read(0, 8), "little")
        headers[shard] = json.loads(blob.read(8, 8 + length))
    return as_json({"index": {"metadata": index.get("metadata", {})}, "headers": headers})


@route("GET", "/api/{kind}/{repo}/revision/{rev}")
def at_revision(call: Call) -> Answer:
    """A repository at a revision: also for those without access to a gated repository's files."""
    repo = call.repo()
    found = _describe(call, repo, call.commit(repo))
    wanted = [name for key in ("expand", "expand[]") for name in call.query.get(key, ())]
    if wanted:
        found = {name: value for name, value in found.items() if name in ("_id", "id", *wanted)}
    return as_json(found)


route("GET", "/api/{kind}/{repo}")(at_revision)


def _describe(call: Call, repo: Repo, commit: Commit) -> dict[str, Any]:
    card = _card(call, commit)
    blobs = call.flag("blobs")
    listed = card.get("tags")
    tags = [str(tag) for tag in listed] if isinstance(listed, list) else []
    library = card.get("library_name")
    tags += [str(library)] if library else []
    tags += [f"license:{card['license']}"] if card.get("license") else []
    bases = card.get("base_model") or []
    tags += [f"base_model:{base}" for base in ([bases] if isinstance(bases, str) else bases)]
    return {
        "_id": f"id-{repo.id}",
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.sha,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": [*tags, f"region:{repo.region}"],
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": library,
        "cardData": card,
        "config": _config(call, commit),
        "siblings": [_sibling(path, commit, blobs) for path in sorted(commit.files)],
        "usedStorage": sum(call.state.blobs[sha256].size for sha256 in repo.linked),
        "spaces": [],
    }


def _sibling(path: str, commit: Commit, blobs: bool) -> dict[str, Any]:
    file = commit.files[path]
    found: dict[str, Any] = {"rfilename": path}
    if blobs:
        found |= {"size": file.size, "blobId": file.oid}
        if file.lfs:
            found["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": pointer_size(file)}
    return found


def _card(call: Call, commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    return read_card(call.state.blobs[readme.sha256].read().decode("utf-8", "replace")) if readme else {}


def _config(call: Call, commit: Commit) -> dict[str, Any]:
    """The part of config.json that the Hub shows."""
    file = commit.files.get("config.json")
    if file is None:
        return {}
    try:
        config = json.loads(call.state.blobs[file.sha256].read())
    except ValueError:
        return {}
    shown = config if isinstance(config, dict) else {}
    return {name: shown[name] for name in ("architectures", "model_type") if name in shown}
