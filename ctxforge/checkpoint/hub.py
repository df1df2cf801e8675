"""Read a checkpoint on the Hugging Face Hub: small files through its cache, tensor headers by byte range."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.header import MAX_HEADER_BYTES, header_length, parse_header, read_header
from ctxforge.checkpoint.jsonio import MAX_JSON_BYTES, ascii_name
from ctxforge.checkpoint.layout import CONFIG, JSON_SIDECARS, find_weights, unsupported_hub_gguf
from ctxforge.checkpoint.local import assemble, collect_tensors, read_local, resolve_layout
from ctxforge.checkpoint.types import Checkpoint, TensorInfo
from ctxforge.errors import CheckpointError, CtxforgeError, HubError, UsageError

_FIRST_READ = 100_000
"""Bytes of the first range: 97 % of the headers on the Hub fit in it (huggingface_hub#1855)."""

_FIRST_READS = 262_144
"""Bytes of all first ranges together, where there are many shards: their headers are short, and bytes count."""

_SHORTEST_READ = 4096

_SHA = re.compile(r"[0-9a-f]{40}")


def read_hub(repo: str, revision: str | None) -> Checkpoint:
    """Read the configuration and tensor headers of a Hub repository, pinned to the commit that `revision` is now.

    With HF_HUB_OFFLINE set, or without a network where the revision is a full commit sha, the cached snapshot is read.

    Raises:
        HubError: not found, gated, no network, or not in the cache.
        CheckpointError: the repository holds no sound checkpoint.
        UnsupportedError: it holds GGUF files only.
    """
    source = f"{repo}@{revision}" if revision else repo
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        with hub_errors(repo, revision):
            api = _api()
            sha = str(api.model_info(repo, revision=revision).sha)
            sizes = {
                entry.path: int(entry.size)
                for entry in api.list_repo_tree(repo, revision=sha, recursive=True)
                if hasattr(entry, "size")
            }
    except HubError as error:
        network = isinstance(error.__cause__, OfflineModeIsEnabled) or (
            revision is not None and _SHA.fullmatch(revision) and is_network(error.__cause__)
        )
        cached = _cached_snapshot(repo, revision) if network else None
        if cached is None:
            raise
        return _read_cached(cached, source)
    return _read_online(repo, revision, sha, sizes, source)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="ctxforge")


def _read_online(repo: str, revision: str | None, sha: str, sizes: Mapping[str, int], source: str) -> Checkpoint:
    sizes = dict(sorted(sizes.items()))
    layout = find_weights(sizes, source)
    if layout.weights == "gguf":
        raise unsupported_hub_gguf(source)
    wanted = [CONFIG, *([layout.index] if layout.index else []), *(name for name in JSON_SIDECARS if name in sizes)]
    for name in wanted:
        if sizes[name] > MAX_JSON_BYTES:
            raise CheckpointError(f"{name} has {sizes[name]} bytes.", f"Use a repository with a sound {name}.")
    root = _download_small(repo, revision, sha, wanted)
    layout, mapping = resolve_layout(root, sizes, source)
    tensors: dict[str, TensorInfo] = {}
    if layout.weights == "safetensors":
        tensors = collect_tensors(_headers(repo, sha, layout.files, sizes), mapping)
    return assemble(source, None, sha, layout, tensors, sizes, root)


def _download_small(repo: str, revision: str | None, sha: str, names: list[str]) -> Path:
    """Bring small files into the Hugging Face cache and give the snapshot folder that they are in."""
    from huggingface_hub import hf_hub_download

    with hub_errors(repo, sha):
        # Asking for one file by branch name makes the cache remember which commit the branch is, for offline use.
        hf_hub_download(repo, names[0], revision=revision, library_name="ctxforge")
        paths = [Path(hf_hub_download(repo, name, revision=sha, library_name="ctxforge")) for name in names]
    return paths[0].parent


def _headers(
    repo: str, sha: str, files: tuple[str, ...], sizes: Mapping[str, int]
) -> dict[str, tuple[TensorInfo, ...]]:
    """The tensors of every shard, several at a time: a large model has hundreds of shards."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=min(8, len(files))) as pool:
        first = max(_SHORTEST_READ, min(_FIRST_READ, _FIRST_READS // len(files)))
        found = pool.map(lambda name: _header(repo, sha, name, sizes[name], first), files)
        return dict(zip(files, found, strict=True))


def _header(repo: str, sha: str, name: str, size: int, first: int) -> tuple[TensorInfo, ...]:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, name, revision=sha)
    if isinstance(cached, str):
        return read_header(Path(cached), name).tensors
    with hub_errors(repo, sha):
        data = _range(repo, sha, name, 0, min(size, first))
        length = header_length(data[:8], name, size)
        body = data[8 : 8 + length]
        if len(body) < length:
            body += _range(repo, sha, name, 8 + len(body), length - len(body))
    return parse_header(body, name, size).tensors


def _range(repo: str, sha: str, name: str, start: int, count: int) -> bytes:
    """`count` bytes of a file on the Hub; stops reading there even where a server ignores the range."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but exported lazily

    if count <= 0:
        return b""
    assert count <= MAX_HEADER_BYTES + _FIRST_READ
    headers = {**build_hf_headers(library_name="ctxforge"), "Range": f"bytes={start}-{start + count - 1}"}
    url = hf_hub_url(repo, name, revision=sha)
    parts: list[bytes] = []
    have = 0
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        skip = start if response.status_code == 200 else 0
        for chunk in response.iter_raw():
            parts.append(chunk)
            have += len(chunk)
            if have >= skip + count:
                break
    data = b"".join(parts)[skip : skip + count]
    if len(data) < count:
        raise CheckpointError(f"{name} ends early on the Hub.", "Try again; report it to the repository if it stays.")
    return data


def _cached_snapshot(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, CONFIG, revision=revision or "main")
    return Path(found).parent if isinstance(found, str) else None


def _read_cached(root: Path, source: str) -> Checkpoint:
    """Read a snapshot in the cache; one with files missing is the network's fault rather than the checkpoint's."""
    try:
        return read_local(root, source=source, revision=root.name)
    except CheckpointError as error:
        raise HubError(
            f"{source} is only partly in the cache: {error.cause}",
            "Connect once to download it (unset HF_HUB_OFFLINE).",
        ) from error


def download(checkpoint: Checkpoint) -> Checkpoint:
    """Download the files of a Hub checkpoint, at its pinned commit, into the Hugging Face cache.

    Raises:
        HubError: the download failed.
        CheckpointError: what arrived isn't what the headers said.
    """
    from huggingface_hub import snapshot_download

    repo = checkpoint.source.split("@", 1)[0]
    names = [glob.escape(info.name) for info in checkpoint.files]
    with hub_errors(repo, checkpoint.revision):
        root = snapshot_download(repo, revision=checkpoint.revision, allow_patterns=names, library_name="ctxforge")
    return read_local(Path(root), source=checkpoint.source, revision=checkpoint.revision)


def missing_bytes(checkpoint: Checkpoint) -> int:
    """How many bytes of a Hub checkpoint aren't in the cache yet."""
    from huggingface_hub import try_to_load_from_cache

    repo = checkpoint.source.split("@", 1)[0]
    return sum(
        info.size
        for info in checkpoint.files
        if not isinstance(try_to_load_from_cache(repo, info.name, revision=checkpoint.revision), str)
    )


def is_network(error: BaseException | None) -> bool:
    """Whether the failure is of the connection, not an answer of the Hub."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return False
    module = type(error).__module__.split(".")[0]
    return isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError)) or (
        module in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
    )


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP client raise into a HubError that says what to do."""
    try:
        yield
    except CtxforgeError:
        raise
    except Exception as error:
        found = _hub_error(error, repo, revision)
        if found is None:
            raise
        raise found from error


def _hub_error(error: Exception, repo: str, revision: str | None) -> CtxforgeError | None:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{ascii_name(repo)} is not a valid Hub id.", "Give org/name, or an existing folder.")
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{repo} is gated: your account has no access to it.",
            f"Accept its terms at https://huggingface.co/{repo}, then log in with `hf auth login` or set HF_TOKEN.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {ascii_name(str(revision))}.", "Check the branch, tag or commit.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"There is no model {repo} on the Hub that you can see, and no such folder here.",
            "Check the spelling; for a private model log in with `hf auth login` or set HF_TOKEN.",
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return HubError(f"A file of {repo} is missing on the Hub.", "Try again; the repository may just be changing.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(
            f"{repo} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it.",
            "Unset HF_HUB_OFFLINE, set HF_HOME to the cache that has it, or give a local folder.",
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", "an error")
        return HubError(f"The Hub answered {status} for {repo}.", "Try again later; check HF_TOKEN and HF_ENDPOINT.")
    if is_network(error):
        return HubError(
            f"The Hub cannot be reached for {repo} ({type(error).__name__}).",
            "Check the network, or set HF_HUB_OFFLINE=1 to use what is in the cache.",
        )
    if isinstance(error, OSError):
        from ctxforge.checkpoint.staging import write_error

        return write_error(error, Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser())
    return None
