"""LFS uploads.

Contract: huggingface_hub/lfs.py (`post_lfs_batch_info`, `lfs_upload`, `_upload_single_part`, `_upload_multi_part`) and
git-lfs docs/api/batch.md. An upload needs write access even for a pull request (huggingface_hub#3816).
"""

import hashlib
from pathlib import Path

from tests.hub_server.accounts import require_write
from tests.hub_server.answers import Answer, as_json, refuse
from tests.hub_server.call import Call
from tests.hub_server.repos import Repo
from tests.hub_server.routing import route
from tests.hub_server.state import Upload

_LFS = {"Content-Type": "application/vnd.git-lfs+json"}


@route("POST", "/{kind/}{repo}.git/info/lfs/objects/batch")
def batch(call: Call) -> Answer:
    """Where to upload what the repository doesn't have yet; an object that it has gets no actions."""
    repo = call.repo()
    require_write(call.account, repo)
    wanted = call.json()
    ref = (wanted.get("ref") or {}).get("name")
    if ref is not None:
        call.commit(repo, ref)
    objects = [_actions(call, repo, str(item["oid"]), int(item["size"]), wanted) for item in wanted["objects"]]
    parts = any("chunk_size" in item.get("actions", {}).get("upload", {}).get("header", {}) for item in objects)
    return as_json({"transfer": "multipart" if parts else "basic", "objects": objects}, headers=_LFS)


def _actions(call: Call, repo: Repo, sha256: str, size: int, wanted: dict[str, object]) -> dict[str, object]:
    known = {"oid": sha256, "size": size, "authenticated": True}
    state = call.state
    if sha256 in repo.linked:
        if state.blobs[sha256].size != size:
            return known | {"error": {"code": 422, "message": "The object exists with another size"}}
        return known
    ticket = state.promise(Upload(repo, sha256, size))
    upload: dict[str, object] = {"href": f"{state.url}/uploads/{ticket}"}
    if size > state.options.multipart_above and "multipart" in (wanted.get("transfers") or ()):  # type: ignore[operator]
        count = -(-size // state.options.part_size)
        header = {str(number): f"{state.url}/uploads/{ticket}/{number}" for number in range(1, count + 1)}
        upload["header"] = header | {"chunk_size": str(state.options.part_size)}
    verify = {"href": f"{call.page(repo)}.git/info/lfs/objects/verify", "header": {}}
    return known | {"actions": {"upload": upload, "verify": verify}}


@route("PUT", "/uploads/{ticket}")
def put(call: Call) -> Answer:
    """A whole object; refused unless its bytes have the hash and the size that were promised."""
    upload = _promised(call)
    path = call.state.blobs.staging_path()
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("wb") as file:
            for part in call.body.chunks():
                digest.update(part)
                size += len(part)
                file.write(part)
        _check(upload, digest.hexdigest(), size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    _keep(call, upload, path)
    return Answer(200, {"ETag": f'"{digest.hexdigest()}"'})


@route("PUT", "/uploads/{ticket}/{number}")
def put_part(call: Call) -> Answer:
    """One part, written at its place; it may be sent again."""
    upload, number = _promised(call), int(call.parts["number"])
    data = call.body.read()
    start = (number - 1) * call.state.options.part_size
    if start >= upload.size or len(data) != min(call.state.options.part_size, upload.size - start):
        refuse(400, f"Part {number} has {len(data)} bytes")
    etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
    with call.state.lock:
        if upload.path is None:
            upload.path = call.state.blobs.staging_path()
            upload.path.touch()
        with upload.path.open("r+b") as file:
            file.seek(start)
            file.write(data)
        upload.parts[number] = etag
    return Answer(200, {"ETag": f'"{etag}"'})


@route("POST", "/uploads/{ticket}")
def complete(call: Call) -> Answer:
    """All parts are there: check the whole. Done once, it may be asked for again."""
    upload, wanted = _promised(call), call.json()
    listed = [(int(part["partNumber"]), str(part["etag"]).strip('"')) for part in wanted["parts"]]
    with call.state.lock:
        if listed != sorted(upload.parts.items()) or wanted["oid"] != upload.sha256:
            refuse(400, "InvalidPart")
        if upload.path is not None:
            with upload.path.open("rb") as file:
                _check(upload, hashlib.file_digest(file, "sha256").hexdigest(), upload.path.stat().st_size)
            _keep(call, upload, upload.path)
            upload.path = None
    return as_json({"success": True}, headers=_LFS)


@route("POST", "/{kind/}{repo}.git/info/lfs/objects/verify")
def verify(call: Call) -> Answer:
    """Whether the object arrived, with its size."""
    repo, wanted = call.repo(), call.json()
    sha256 = str(wanted.get("oid"))
    if sha256 not in repo.linked:
        refuse(404, "Object does not exist")
    if call.state.blobs[sha256].size != wanted.get("size"):
        refuse(422, "Size mismatch")
    return as_json({}, headers=_LFS)


def _promised(call: Call) -> Upload:
    return call.state.uploads.get(call.parts["ticket"]) or refuse(403, "Request has expired")


def _check(upload: Upload, sha256: str, size: int) -> None:
    if size != upload.size:
        refuse(400, f"IncompleteBody: {size} bytes came where {upload.size} were promised")
    if sha256 != upload.sha256:
        refuse(400, "BadDigest: the content has another sha256 than promised")


def _keep(call: Call, upload: Upload, path: Path) -> None:
    with call.state.lock:
        if upload.sha256 in call.state.blobs:
            path.unlink()
        else:
            call.state.blobs.add_upload(path, upload.sha256)
        upload.repo.link(upload.sha256)
