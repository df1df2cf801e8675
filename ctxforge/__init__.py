"""ctxforge: take a language model's checkpoint and emit one that works at a longer context.

    import ctxforge
    done = ctxforge.extend("org/name", method="yarn", to="64k", out="name-64k")
    print(done.out, ctxforge.check(done.out).passed)

Everything is imported when it is used: `import ctxforge` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxforge.api import calibrate, check, diff, extend, inspect, plan, push, run, verify

__all__ = ["calibrate", "check", "diff", "extend", "inspect", "plan", "push", "run", "verify"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ctxforge import api

        return getattr(api, name)
    raise AttributeError(f"module 'ctxforge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
