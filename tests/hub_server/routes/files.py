"""File contents.

Contract: huggingface_hub/file_download.py `get_hf_file_metadata` (X-Repo-Commit, ETag or X-Linked-Etag, X-Linked-Size,
Content-Length), `http_get` (Range: 206 with Content-Range), and 404 with EntryNotFound and X-Repo-Commit for a file
that a commit doesn't have. The Hub answers an LFS file with a redirect to its storage; here it is served in place.
"""

import re
from urllib.parse import quote

from tests.hub_server.accounts import require_content
from tests.hub_server.answers import Answer, RefusalError, refusal
from tests.hub_server.blobs import Blob, File
from tests.hub_server.call import Call
from tests.hub_server.repos import Commit
from tests.hub_server.routing import route

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@route("GET", "/{kind/}{repo}/resolve/{rev}/{path}")
def resolve(call: Call) -> Answer:
    """A file or a range of it; nothing is read for HEAD."""
    repo = call.repo()
    require_content(call.account, repo)
    commit, path = call.commit(repo), call.parts["path"]
    file = commit.files.get(path)
    if file is None:
        missing = refusal(404, "Entry not found", "EntryNotFound")
        missing.headers["X-Repo-Commit"] = commit.sha
        raise RefusalError(missing)
    return _serve(call, call.state.blobs[file.sha256], file, commit, path)


route("GET", "/{kind/}{repo}/raw/{rev}/{path}")(resolve)


def _serve(call: Call, blob: Blob, file: File, commit: Commit, path: str) -> Answer:
    headers = {
        "Content-Type": "application/octet-stream" if file.lfs else "text/plain; charset=utf-8",
        "ETag": f'"{file.sha256 if file.lfs else file.oid}"',
        "X-Repo-Commit": commit.sha,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}",
    }
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    asked = _RANGE.fullmatch((call.headers.get("Range") or "").strip())
    if asked is None or asked.groups() == ("", ""):
        return Answer(200, headers, blob=blob, stop=blob.size, path=path)
    first, last = asked.groups()
    start = int(first) if first else max(blob.size - int(last), 0)
    stop = min(int(last) + 1, blob.size) if first and last else blob.size
    if start >= min(stop, blob.size):
        answer = refusal(416, "Range Not Satisfiable")
        answer.headers["Content-Range"] = f"bytes */{blob.size}"
        raise RefusalError(answer)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    return Answer(206, headers, blob=blob, start=start, stop=stop, path=path)
