"""Text that every output can carry; the same as for the static checks."""

from __future__ import annotations

from ctxforge.findings.plain import line

__all__ = ["line"]
