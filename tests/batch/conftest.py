"""The Hub on loopback, for jobs that read from it and publish to it."""

from __future__ import annotations

from tests.publish.conftest import connected, hub, said

__all__ = ["connected", "hub", "said"]
