"""The writer: what it carries, how, where it refuses, and that a failure leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctxforge.checkpoint import (
    Edits,
    ScaleRows,
    WriteReport,
    check_output,
    estimate_write,
    file_sha256,
    materialise,
    read_checkpoint,
    staging,
    verify_integrity,
    write_checkpoint,
)
from ctxforge.errors import CheckpointError, CtxforgeError, ExitCode, InternalError, ResourceError, UsageError
from tests.checkpoint.builders import add_clutter, build, digest, tree

QUERY = ScaleRows("model.layers.0.self_attn.q_proj.weight", 1.5)
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_config_only(tmp_path: Path) -> None:
    root = build(tmp_path / "src")
    carried = tree(root)
    add_clutter(root)
    before = digest(root)
    checkpoint = read_checkpoint(root)
    seen: list[tuple[int, int]] = []
    edits = Edits({"config.json": b'{"a": 1}', "notes/new.txt": b"x"}, removed=("LICENSE",))
    report = write_checkpoint(checkpoint, edits, tmp_path / "out", progress=lambda *both: seen.append(both))
    expected = {**carried, "config.json": b'{"a": 1}', "notes/new.txt": b"x"}
    del expected["LICENSE"]
    assert tree(tmp_path / "out") == expected
    assert digest(root) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]
    assert seen[-1][0] == seen[-1][1] == sum(len(carried[name]) for name in report.copied + report.cloned)
    assert report.written == ("config.json", "notes/new.txt")
    assert report.sha256["config.json"] == hashlib.sha256(b'{"a": 1}').hexdigest()
    assert FIRST not in report.sha256
    assert verify_integrity(tmp_path / "out") == []


def test_finish_sees_the_hashes_and_adds_the_provenance(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(build(tmp_path / "src"))

    def finish(report: WriteReport) -> dict[str, bytes]:
        assert not (tmp_path / "out").exists()
        return {"ctxforge.json": json.dumps(dict(report.sha256)).encode()}

    report = write_checkpoint(checkpoint, Edits({"config.json": b"{}"}), tmp_path / "out", finish=finish, checksum=True)
    recorded = json.loads((tmp_path / "out" / "ctxforge.json").read_text())
    assert set(recorded) == set(tree(tmp_path / "out")) - {"ctxforge.json"}
    assert all(file_sha256(tmp_path / "out" / name) == value for name, value in recorded.items())
    assert "ctxforge.json" in report.written


def test_modes(tmp_path: Path) -> None:
    root = build(tmp_path / "src")
    (root / FIRST).chmod(0o600)
    old = os.umask(0o027)
    try:
        write_checkpoint(read_checkpoint(root), Edits({"config.json": b"{}"}), tmp_path / "out")
    finally:
        os.umask(old)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def no_kernel_copy(*args: int) -> int:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("kernel", ["as it is", "refused", "stops early"])
def test_copies_are_equal_however_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    root = build(tmp_path / "src", hidden=64)
    monkeypatch.setattr(materialise, "_clone", lambda *_: False)
    monkeypatch.setattr(materialise, "BLOCK", 1000)
    if kernel == "refused":
        monkeypatch.setattr(os, "copy_file_range", no_kernel_copy)
    elif kernel == "stops early":
        real, left = os.copy_file_range, [3]

        def some(source: int, target: int, count: int, *offsets: int) -> int:
            left[0] -= 1
            return real(source, target, min(count, 777), *offsets) if left[0] > 0 else 0

        monkeypatch.setattr(os, "copy_file_range", some)
    report = write_checkpoint(read_checkpoint(root), Edits({}), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(root)
    assert set(report.copied) == set(tree(root))
    weights = sum((root / name).stat().st_size for name in (FIRST, SECOND))
    assert report.tensor_bytes_written == weights


def test_links_share_the_inode_and_edited_shards_never_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialise, "_clone", lambda *_: False)
    root = build(tmp_path / "src")
    before = digest(root)
    report = write_checkpoint(
        read_checkpoint(root), Edits({"config.json": b"{}"}, (QUERY,)), tmp_path / "out", link=True
    )
    assert SECOND in report.linked
    assert report.patched == (FIRST,)
    assert (tmp_path / "out" / SECOND).samefile(root / SECOND)
    assert not (tmp_path / "out" / FIRST).samefile(root / FIRST)
    assert digest(root) == before
    plain = write_checkpoint(read_checkpoint(root), Edits({"config.json": b"{}"}), tmp_path / "b", link=True)
    assert plain.tensor_bytes_written == 0
    assert plain.bytes_written == 2


def test_links_fall_back_to_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialise, "_clone", lambda *_: False)
    monkeypatch.setattr(os, "link", no_kernel_copy)
    root = build(tmp_path / "src")
    report = write_checkpoint(read_checkpoint(root), Edits({}), tmp_path / "out", link=True)
    assert report.linked == ()
    assert tree(tmp_path / "out") == tree(root)


def test_a_clone_counts_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext4 and tmpfs can't share blocks, so the ioctl is stood in for by a copy."""
    import fcntl

    def ioctl(writer: int, request: int, reader: int) -> int:
        assert request == 0x40049409
        os.pwrite(writer, os.pread(reader, 1 << 20, 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    root = build(tmp_path / "src")
    report = write_checkpoint(read_checkpoint(root), Edits({}, (QUERY,)), tmp_path / "out")
    assert report.tensor_bytes_written == 8 * 8 * 2
    assert set(report.cloned) == set(tree(root)) - {FIRST}
    assert report.copied == ()


def test_estimate_is_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialise, "_clone", lambda *_: False)
    root = build(tmp_path / "src")
    add_clutter(root)
    checkpoint = read_checkpoint(root)
    edits = Edits({"config.json": b"{}"}, (QUERY,), removed=("LICENSE",))
    estimate = estimate_write(checkpoint, edits, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]
    report = write_checkpoint(checkpoint, edits, tmp_path / "out")
    assert estimate.bytes_to_write == report.bytes_written
    assert estimate.patched == report.patched
    assert set(estimate.copied) == set(report.copied)
    assert estimate.tensor_bytes_edited == 128
    assert {"LICENSE", "pytorch_model.bin"} <= set(estimate.removed)
    assert estimate.bytes_to_download == 0
    assert estimate.bytes_free
    assert estimate_write(checkpoint, edits, tmp_path / "a" / "b").bytes_free is None


def outputs(tmp_path: Path) -> dict[str, tuple[Path, type[CtxforgeError], str]]:
    source = tmp_path / "src"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("full")
    (tmp_path / "alias").symlink_to("src")
    return {
        "not empty": (tmp_path / "full", UsageError, "exists and is not empty"),
        "a file": (tmp_path / "file", UsageError, "not a folder"),
        "a link": (tmp_path / "link", UsageError, "is a link"),
        "the source": (source, UsageError, "is the source itself"),
        "the source by a detour": (source / ".." / "src", UsageError, "is the source itself"),
        "inside the source": (source / "out", UsageError, "inside the source"),
        "inside by a link": (tmp_path / "alias" / "out", UsageError, "inside the source"),
        "around the source": (tmp_path, UsageError, "contains the source"),
        "no parent": (tmp_path / "no" / "out", UsageError, "does not exist"),
        "no name": (tmp_path / "..", UsageError, "not a name"),
    }


@pytest.mark.parametrize("overwrite", [False, True])
def test_refused_outputs(tmp_path: Path, overwrite: bool) -> None:
    root = build(tmp_path / "src")
    checkpoint = read_checkpoint(root)
    for name, (out, kind, cause) in outputs(tmp_path).items():
        before = digest(tmp_path)
        with pytest.raises(kind) as caught:
            write_checkpoint(checkpoint, Edits({}), out, overwrite=overwrite)
        if name != "not empty" or not overwrite:
            assert cause in caught.value.cause, name
        assert caught.value.remedy
        assert digest(tmp_path) == before


def test_an_unwritable_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(build(tmp_path / "src"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ResourceError, match="not writable") as caught:
        check_output(checkpoint, tmp_path / "out")
    assert caught.value.exit_code is ExitCode.RESOURCES


def test_overwrite_replaces_a_checkpoint_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(build(tmp_path / "src"))
    out = tmp_path / "out"
    (tmp_path / "out").mkdir()
    write_checkpoint(checkpoint, Edits({"config.json": b'{"first": 1}'}), out)  # an empty folder may be there
    old = digest(out)

    def fail(report: WriteReport) -> dict[str, bytes]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(checkpoint, Edits({"config.json": b"{}"}), out, overwrite=True, finish=fail)
    assert digest(out) == old
    for exchange in (True, False):
        if not exchange:
            monkeypatch.setattr(staging, "_exchange", lambda *_: False)
        edits = Edits({"config.json": json.dumps({"exchange": exchange}).encode()})
        write_checkpoint(checkpoint, edits, out, overwrite=True)
        assert read_checkpoint(out).config == {"exchange": exchange}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


def test_a_swap_cut_in_half_is_undone(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(build(tmp_path / "src"))
    out = tmp_path / "out"
    write_checkpoint(checkpoint, Edits({"config.json": b'{"old": 1}'}), out)
    out.rename(tmp_path / ".out.ctxforge-1-0123abcd-old")
    (tmp_path / ".out.ctxforge-1-0123abcd").mkdir()
    with pytest.raises(UsageError, match="not empty"):
        write_checkpoint(checkpoint, Edits({}), out)
    assert read_checkpoint(out).config == {"old": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


def test_stale_folders_go_and_others_stay(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(build(tmp_path / "src"))
    stale = tmp_path / ".out.ctxforge-1-0123abcd"
    stale.mkdir()
    (stale / "half").write_bytes(b"x")
    kept = [".other.ctxforge-1-0123abcd", ".out.ctxforge-mine", ".outx.ctxforge-1-0123abcd"]
    for name in kept:
        (tmp_path / name).mkdir()
    write_checkpoint(checkpoint, Edits({}), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "out", "src"])


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(build(tmp_path / "src"))

    def again(report: WriteReport) -> dict[str, bytes]:
        before = digest(tmp_path)
        with pytest.raises(ResourceError, match="Another run of ctxforge is writing") as caught:
            write_checkpoint(checkpoint, Edits({}), tmp_path / "out")
        assert caught.value.exit_code is ExitCode.RESOURCES
        assert digest(tmp_path) == before
        return {}

    write_checkpoint(checkpoint, Edits({}), tmp_path / "out", finish=again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


def test_file_systems_without_locks_still_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    write_checkpoint(read_checkpoint(build(tmp_path / "src")), Edits({}), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


def refused(tmp_path: Path, edits: Edits, kind: type[CtxforgeError], cause: str, **options: Any) -> CtxforgeError:
    """Write, expect `kind`, and check that nothing is left and nothing was touched."""
    before = digest(tmp_path)
    with pytest.raises(kind, match=cause) as caught:
        write_checkpoint(read_checkpoint(tmp_path / "src"), edits, tmp_path / "out", **options)
    assert digest(tmp_path) == before
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (errno.ENOSPC, "Out of disk space"),
        (errno.EDQUOT, "Out of disk space"),
        (errno.EROFS, "is not writable"),
        (errno.EINTR, "failed"),
    ],
)
@pytest.mark.parametrize("seam", ["write", "fsync", "mkdir"])
def test_failing_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, cause: str, seam: str) -> None:
    build(tmp_path / "src")

    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, seam, fail)
    error = refused(tmp_path, Edits({"config.json": b"{}"}), ResourceError, cause)
    assert error.exit_code is ExitCode.RESOURCES


def test_too_little_space_is_seen_before_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctxforge.checkpoint import write

    build(tmp_path / "src")
    monkeypatch.setattr(materialise, "_clone", lambda *_: False)
    monkeypatch.setattr(write, "free_bytes", lambda _: 100)
    monkeypatch.setattr(materialise, "copy_range", lambda *_: pytest.fail("copied"))
    refused(tmp_path, Edits({}), ResourceError, "Out of disk space in .* are needed, 100 B are free")


def test_a_file_size_limit(tmp_path: Path) -> None:
    build(tmp_path / "src", hidden=64)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        refused(tmp_path, Edits({}), ResourceError, "Out of disk space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one: a tmpfs of 64 kB, in a mount namespace of its own."""
    root = build(tmp_path / "src", hidden=128)
    (tmp_path / "disk").mkdir()
    out = tmp_path / "disk" / "out"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from ctxforge.checkpoint import *\nfrom ctxforge.checkpoint import write\n"
        "from ctxforge.errors import ResourceError\n"
        "if sys.argv[1] == 'late': write._check_space = lambda *_: None\n"
        f"try: write_checkpoint(read_checkpoint({str(root)!r}), Edits({{}}), Path({str(out)!r}))\n"
        "except ResourceError as error: sys.stdout.write(error.cause)\n"
        f"assert not list(Path({str(tmp_path / 'disk')!r}).iterdir())\n"
    )
    script = f'mount -t tmpfs -o size=64k none "{tmp_path / "disk"}" && exec "$0" -c "$1" "$2"'
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for when in ("early", "late"):
        command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, sys.executable, code, when]
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no unshare here")
        if "unshare" in done.stderr or "mount" in done.stderr:
            pytest.skip("no mount namespaces here")
        assert done.returncode == 0, done.stderr
        assert "Out of disk space" in done.stdout
        assert "are needed" in done.stdout


def test_a_source_that_changes_meanwhile(tmp_path: Path) -> None:
    root = build(tmp_path / "src")
    checkpoint = read_checkpoint(root)
    os.truncate(root / SECOND, 100)
    with pytest.raises(CheckpointError, match="changed while"):
        write_checkpoint(checkpoint, Edits({}), tmp_path / "out")
    (root / SECOND).unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        write_checkpoint(checkpoint, Edits({}), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a\\b"])
def test_edits_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    build(tmp_path / "src")
    refused(tmp_path, Edits({name: b"x"}), CheckpointError, "not a plain path")
    refused(tmp_path, Edits({}), CheckpointError, "not a plain path", finish=lambda _: {name: b"x"})


def test_misuse_is_an_internal_error(tmp_path: Path) -> None:
    build(tmp_path / "src")
    refused(tmp_path, Edits({FIRST: b"x"}), InternalError, "weight file")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text("{}")
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InternalError, match="not fetched"):
        write_checkpoint(read_checkpoint(tmp_path / "bin"), Edits({}), tmp_path / "out")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, ValueError])
def test_any_exception_removes_the_staging_folder(tmp_path: Path, stop: type[BaseException]) -> None:
    build(tmp_path / "src")

    def progress(done: int, total: int) -> None:
        raise stop

    before = digest(tmp_path)
    with pytest.raises(stop):
        write_checkpoint(read_checkpoint(tmp_path / "src"), Edits({}), tmp_path / "out", progress=progress)
    assert digest(tmp_path) == before
