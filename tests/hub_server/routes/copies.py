"""Server-side copies.

Contract: huggingface_hub/hf_api.py `_duplicate_lfs_files` (POST on the *source* with `target` and at most 500 `files`
of xetHash, sha256 and filename; answers with `failed`), `CommitOperationCopy` in huggingface_hub/_commit_api.py (same
storage region only), hub-docs docs/hub/storage-regions.md.
"""

from typing import Any

from tests.hub_server.accounts import require_content, require_sight, require_write
from tests.hub_server.answers import Answer, as_json, refuse
from tests.hub_server.blobs import xet_hash
from tests.hub_server.call import Call
from tests.hub_server.repos import Repo
from tests.hub_server.routing import route

_MOST = 500


@route("POST", "/api/{kind}/{repo}/lfs-files/duplicate")
def duplicate(call: Call) -> Answer:
    """Link objects of the source to the target: read access there, write access here, no bytes moved."""
    if call.state.options.older:
        refuse(404, f"Cannot POST /api/{call.kind}s/{call.parts['repo']}/lfs-files/duplicate")
    source, wanted = call.repo(), call.json()
    require_content(call.account, source)
    target = require_sight(call.account, call.state.repos.get((wanted["target"]["type"], wanted["target"]["name"])))
    require_write(call.account, target)
    files = wanted["files"]
    if not 0 < len(files) <= _MOST:
        refuse(400, f'"files" must contain between 1 and {_MOST} items')
    if source.region != target.region:
        refuse(400, f"Cannot duplicate files across storage regions: {source.region} to {target.region}")
    failed, succeeded = [], []
    with call.state.lock:
        for item in files:
            problem = _problem(source, item)
            if problem:
                failed.append({"sha256": item.get("sha256"), "error": problem})
            else:
                target.link(item["sha256"])
                succeeded.append({"sha256": item["sha256"]})
    return as_json({"success": succeeded, "failed": failed})


def _problem(source: Repo, item: dict[str, Any]) -> str | None:
    if item.get("sha256") not in source.linked:
        return "LFS file not found in the source repository"
    if not source.xet or item.get("xetHash") != xet_hash(item["sha256"]):
        return "LFS file has no such xet hash"
    return None
