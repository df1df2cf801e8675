"""Bring files of the source here: small ones through the cache, weights into a folder that is emptied again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ctxforge.checkpoint import file_sha256
from ctxforge.errors import HubError
from ctxforge.publish.connection import Connection
from ctxforge.publish.files import Data, Held, OnDisk, OnHub, Wanted
from ctxforge.publish.repository import Repository

_AT_ONCE = 8
_ATTRIBUTES = ".gitattributes"


def small_file(connection: Connection, source: Repository, held: Held) -> Path:
    """A small file of the source in the Hugging Face cache, proved to be what the listing says.

    Raises:
        HubError: it can't be downloaded, or the Hub gave something else than it listed.
    """
    with connection.errors(f"{held.path} of {source.repo}"):
        path = connection.run(
            f"reading {held.path}",
            lambda: Path(connection.api.hf_hub_download(source.repo, held.path, revision=source.sha)),
        )
    _prove(OnDisk(path, path.stat().st_size), held, source)
    return path


def cached(source: Repository, held: Held) -> Path | None:
    """The file in the Hugging Face cache; None where it isn't there. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repo, held.path, revision=source.sha)
    return Path(found).resolve() if isinstance(found, str) else None


def weight_file(connection: Connection, source: Repository, held: Held, folder: Path) -> Path:
    """Download a large file of the source into `folder`, going on with a part that is there, and prove it.

    Raises:
        HubError: it can't be downloaded, or isn't what the listing says.
    """
    what = f"{held.path} of {source.repo}"
    with connection.errors(what):
        path = connection.run(
            f"downloading {held.path}",
            lambda: Path(connection.api.hf_hub_download(source.repo, held.path, revision=source.sha, local_dir=folder)),
        )
    try:
        _prove(OnDisk(path, path.stat().st_size), held, source)
    except HubError:
        path.unlink()
        raise
    return path


def _prove(got: OnDisk, held: Held, source: Repository) -> None:
    if held.sha256 is not None:
        same = got.size == held.size and file_sha256(got.path) == held.sha256
    else:
        same = got.size == held.size and got.oid == held.oid
    if not same:
        raise HubError(
            f"The Hub gave {got.size} bytes for {held.path} of {source.repo}, which are not the {held.size} that it"
            " lists.",
            "Try again later, or check what stands between you and the Hub; nothing was published.",
        )


def brought_small(connection: Connection, source: Repository | None, wanted: tuple[Wanted, ...]) -> tuple[Wanted, ...]:
    """The files with every regular git file of the source read: those travel inside the commit."""
    small = [one for one in wanted if isinstance(one.contents, OnHub) and one.contents.held.sha256 is None]
    if not small or source is None:
        return wanted

    def read(one: Wanted) -> Wanted:
        assert isinstance(one.contents, OnHub)
        return Wanted(one.path, Data(small_file(connection, source, one.contents.held).read_bytes()))

    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(small))) as pool:
        found = {one.path: one for one in pool.map(read, small)}
    return tuple(found.get(one.path, one) for one in wanted)


def with_attributes(connection: Connection, target: Repository, wanted: tuple[Wanted, ...]) -> tuple[Wanted, ...]:
    """The files with a .gitattributes that has the lines of the target's and of the source's.

    Each repository has lines of its own there, and the Hub adds some.
    """
    held = target.files.get(_ATTRIBUTES)
    ours = next((one for one in wanted if one.path == _ATTRIBUTES), None)
    if ours is None or held is None:
        return wanted
    contents = ours.contents
    assert isinstance(contents, (Data, OnDisk))  # small files of the source were brought before
    new = contents.data if isinstance(contents, Data) else contents.path.read_bytes()
    old = small_file(connection, target, held).read_bytes()
    lines = old.decode(errors="replace").splitlines()
    missing = [line for line in new.decode(errors="replace").splitlines() if line not in lines]
    merged = old if not missing else ("\n".join([*lines, *missing]) + "\n").encode()
    return tuple(Wanted(one.path, Data(merged)) if one is ours else one for one in wanted)
