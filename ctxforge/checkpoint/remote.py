"""What the Hub lists of a repository's files, and small files through its cache; weights are never moved here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctxforge.checkpoint.hub import _api as hub_api
from ctxforge.checkpoint.hub import hub_errors


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it.

    Args:
        size: in bytes.
        blob_id: the git object id: SHA-1 of the file itself, or of the pointer of an LFS file.
        sha256: of the contents of an LFS file, in hex (its oid); None for a file that is kept in git.
    """

    size: int
    blob_id: str
    sha256: str | None


def list_remote(repo: str, sha: str) -> dict[str, RemoteFile]:
    """All files of a Hub repository at a commit, by name.

    Raises:
        HubError: not found, gated, no network.
    """
    with hub_errors(repo, sha):
        entries = list(hub_api().list_repo_tree(repo, revision=sha, recursive=True))
    found = {}
    for entry in entries:
        if hasattr(entry, "size"):
            lfs = getattr(entry, "lfs", None)
            found[entry.path] = RemoteFile(int(entry.size), str(entry.blob_id), None if lfs is None else lfs.sha256)
    return dict(sorted(found.items()))


def download_small(repo: str, sha: str, names: Sequence[str]) -> Path:
    """Bring files into the Hugging Face cache and give the snapshot folder that they are in.

    Raises:
        HubError: the download failed.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(repo, sha):
        paths = [Path(hf_hub_download(repo, name, revision=sha, library_name="ctxforge")) for name in names]
    return paths[0].parents[names[0].count("/")]
