"""What an interrupted measurement leaves behind, so that the same command goes on where it stopped.

One small JSON file a finished unit, in a folder that is named after everything the numbers depend on: the model's
files, the text, the settings and the versions. Another model or setting is another folder, so nothing stale is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxforge.errors import InterruptedRunError
from ctxforge.verification.settings import VerifySettings

_KEPT_DAYS = 14
# Settings that change nothing about the numbers of a unit.
_APART = ("trust_remote_code", "source_curve", "tasks", "protocols")


class Journal:
    """Finished units of one model's measurement.

    Args:
        folder: where they are; None keeps nothing. A folder that can't be written keeps nothing either: a measurement
            does not fail for want of a place to resume from.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def read(self) -> dict[str, dict[str, Any]]:
        """The values of finished units by key; a file that is not whole counts for nothing."""
        found: dict[str, dict[str, Any]] = {}
        if self.folder is not None and self.folder.is_dir():
            for path in sorted(self.folder.glob("*.json")):
                with contextlib.suppress(OSError, ValueError):
                    value = json.loads(path.read_text(encoding="utf-8"))
                    if isinstance(value, dict):
                        found[path.stem] = value
        return found

    def write(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep one unit's value, whole or not at all."""
        if self.folder is None:
            return
        part = self.folder / f"{key}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(value), encoding="utf-8")
            part.replace(self.folder / f"{key}.json")
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget everything: the measurement is complete, or shall start anew."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def kept_when_interrupted(journals: Sequence[Journal]) -> Iterator[None]:
    """An interrupt within says what the journals hold, and how to go on with it.

    Raises:
        InterruptedRunError: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        kept = sum(len(journal.read()) for journal in journals)
        raise InterruptedRunError(
            f"interrupted; {kept} finished parts of the measurement are kept",
            "run the same command again to go on with them, or with --fresh to start anew",
        ) from None


def journal_folder(
    model_dir: Path,
    text_sha256: str,
    settings: VerifySettings,
    lengths: tuple[int, int],
    *,
    device: str,
    versions: Mapping[str, str],
    variant: str = "",
) -> Path:
    """Where the units of this model, text and these settings are kept.

    Args:
        model_dir: the checkpoint; files are told apart by name, size and time of change, JSON files by content.
        text_sha256: of the text.
        settings: what is measured.
        lengths: L0 and L' in tokens.
        device: the torch device.
        versions: of what computes the numbers.
        variant: what else was done to the model, such as another rotary table.
    """
    identity = {
        "files": [_identity(path) for path in sorted(model_dir.iterdir()) if path.is_file()],
        "data": [_identity(path) for _task, path in settings.task_data if path.is_file()],
        "text": text_sha256,
        "settings": {k: repr(v) for k, v in dataclasses.asdict(settings).items() if k not in _APART},
        "lengths": lengths,
        "device": device,
        "versions": dict(versions),
        "variant": variant,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return journals() / digest[:32]


def journals() -> Path:
    """The folder of all journals: `verify` in ctxforge's cache folder (`CTXFORGE_CACHE`, else the user's)."""
    own = os.environ.get("CTXFORGE_CACHE")
    general = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctxforge"
    return (Path(own) if own else general) / "verify"


def forget_old() -> None:
    """Remove journals that nobody has gone on with for two weeks."""
    with contextlib.suppress(OSError):
        for folder in journals().iterdir():
            if time.time() - folder.stat().st_mtime > _KEPT_DAYS * 86400:
                shutil.rmtree(folder, ignore_errors=True)


def _identity(path: Path) -> tuple[str, str]:
    status = path.stat()
    if path.suffix in (".json", ".jinja", ".py", ".txt") and status.st_size < 1 << 25:
        return path.name, hashlib.sha256(path.read_bytes()).hexdigest()
    return path.name, f"{status.st_size} {status.st_mtime_ns}"
