"""Reading .zst files: Python's own module from 3.14 on, else the zstandard package."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import IO, Any

from ctxforge.errors import UsageError

_CHUNK = 1 << 17


def open_zstd(raw: IO[bytes], path: Path) -> Any:
    """A buffered reader of what `raw` decompresses to; it raises EOFError where the file is cut or damaged.

    Raises:
        UsageError: nothing here reads zstandard.
    """
    try:
        return importlib.import_module("compression.zstd").open(raw, "rb")
    except ModuleNotFoundError:
        pass
    try:
        module = importlib.import_module("zstandard")
    except ModuleNotFoundError:
        raise UsageError(
            f"{path} is compressed with zstandard, which this Python does not read",
            "pip install zstandard, or compress the file with gzip",
        ) from None
    return io.BufferedReader(_Frames(raw, module), _CHUNK)


class _Frames(io.RawIOBase):
    """The frames of a file one after another. The package's own reader takes a cut file for a whole one."""

    def __init__(self, raw: IO[bytes], module: Any) -> None:
        self._raw = raw
        self._module = module
        self._frame: Any = None
        self._left = b""
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._out and self._feed():
            pass
        count = min(len(view), len(self._out))
        view[:count] = self._out[:count]
        self._out = self._out[count:]
        return count

    def _feed(self) -> bool:
        """Decompress one more chunk; False at the end of the last frame."""
        data = self._left or self._raw.read(_CHUNK)
        self._left = b""
        if not data:
            if self._frame is not None:
                raise EOFError("it ends within a frame")
            return False
        self._frame = self._frame or self._module.ZstdDecompressor().decompressobj()
        try:
            self._out = memoryview(self._frame.decompress(data))
        except self._module.ZstdError as error:
            raise EOFError(str(error)) from error
        if self._frame.eof:
            self._left, self._frame = self._frame.unused_data, None
        return True
