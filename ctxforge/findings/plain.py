"""Text that every output can carry."""

from __future__ import annotations

import re

# What XML 1.0 forbids, lone surrogates (undecodable file names) among it.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def line(text: str) -> str:
    """`text` on one line, with characters that XML or UTF-8 cannot hold replaced by U+FFFD."""
    return " ".join(_FORBIDDEN.sub("\ufffd", text).split())
